//! After the confirmation: kube-proxy leaves the node, its rules stand by for a while, and then go.

use jiff::{SignedDuration, Timestamp};

use super::{ROUND, Tools};
use crate::facts;
use crate::ipvs::Patience;
use crate::probe::Answered;
use crate::switchover::cleanup::remove_kube_proxys;
use crate::switchover::position::{Job, Position};

/// How long kube-proxy may take to leave: a Pod's own grace period of 30 s, and what its controller and kubelet need.
const LEAVES_WITHIN: SignedDuration = SignedDuration::from_secs(180);

impl Tools {
    /// Sends kube-proxy away, and looks whether it has gone. Our table has been confirmed, and answers meanwhile.
    ///
    /// The ledger says so already; now the guard must not fire any more. An attempt whose guard has fired in between goes on all
    /// the same: the old rules stand until the table is active again.
    pub(super) async fn park(&self, job: Job, baseline: Vec<Answered>, until: Option<Timestamp>) -> Position {
        if until.is_none()
            && let Err(why) = self.disarm_guard(&job).await
        {
            self.wait_for(Some(format!("the dead-man's switch to be disarmed: {why}")));
            tokio::time::sleep(ROUND).await;
            return Position::Parking { job, baseline, until };
        }
        let Some(kube_proxy) = &self.kube_proxy else {
            return confirming(job, baseline, None);
        };
        let now = self.clock.now();
        let Some(until) = until else {
            let until = now.saturating_add(LEAVES_WITHIN).unwrap_or(Timestamp::MAX);
            return Position::Parking {
                job,
                baseline,
                until: Some(until),
            };
        };
        if let Err(why) = self.proven(&baseline).await {
            return self.back_with_kube_proxy(job, why).await;
        }
        let gone = match kube_proxy.send_away().await {
            Ok(()) => kube_proxy.is_gone().await,
            Err(error) => Err(error),
        };
        // A Pod with another label, a static one or a unit of systemd is not seen in the API, but answers.
        let address = self.paths.kube_proxy;
        let word = self.beside(move |_| facts::proxy_mode::ask(address)).await;
        let gone = gone.map(|gone| gone && !matches!(word, Ok(Ok(_))));
        match gone {
            Ok(true) => {
                self.wait_for(None);
                let stand_by = SignedDuration::try_from(self.stand_by).unwrap_or(SignedDuration::MAX);
                Position::StandingBy {
                    job,
                    baseline,
                    until: now.saturating_add(stand_by).unwrap_or(Timestamp::MAX),
                }
            }
            not_gone if now >= until => {
                self.wait_for(None);
                let why = match not_gone {
                    Err(error) => error.to_string(),
                    Ok(_) => format!(
                        "its Pod is still there, or something answers at its metrics address, although the Node has the label {}",
                        kube_proxy.label.key
                    ),
                };
                Position::Moved {
                    job,
                    trouble: Some(format!(
                        "kube-proxy did not leave the node within {LEAVES_WITHIN:#}, and its rules stay behind ours: {why}"
                    )),
                    told: false,
                }
            }
            not_gone => {
                self.wait_for(Some(match not_gone {
                    Err(error) => format!("kube-proxy can't be sent away: {error}"),
                    Ok(_) => "kube-proxy to leave the node".to_owned(),
                }));
                tokio::time::sleep(ROUND).await;
                Position::Parking {
                    job,
                    baseline,
                    until: Some(until),
                }
            }
        }
    }

    /// kube-proxy's last rules stand behind ours, and the probe goes on.
    pub(super) async fn stand_by(&self, job: Job, baseline: Vec<Answered>, until: Timestamp) -> Position {
        if let Err(why) = self.proven(&baseline).await {
            return self.back_with_kube_proxy(job, why).await;
        }
        self.wait_for(Some(format!("{until}, when the old rules go")));
        tokio::time::sleep(ROUND).await;
        Position::StandingBy { job, baseline, until }
    }

    /// Removes kube-proxy's rules, and proves once more that the Services answer. Before that the kernel must show the table
    /// active and whole: it may be gone after a reboot, and then it is made anew.
    ///
    /// Of IPVS mode, live connections are handed over first, and `kube-ipvs0` waits for those that need it, up to a deadline.
    pub(super) async fn confirm(&self, job: Job, baseline: Vec<Answered>, until: Option<Timestamp>) -> Position {
        let ready = async {
            self.disarm_guard(&job).await?;
            self.restore().await?;
            self.dataplane.compare().await.map_err(|error| error.to_string())
        };
        if let Err(why) = ready.await {
            tracing::error!(
                why,
                "the table is not as it must be; kube-proxy's rules stay until it is"
            );
            self.wait_for(Some(format!("the table to be as it must be: {why}")));
            tokio::time::sleep(ROUND).await;
            return confirming(job, baseline, until);
        }
        let now = self.clock.now();
        let drain = SignedDuration::try_from(self.ipvs_drain).unwrap_or(SignedDuration::MAX);
        let until = until.unwrap_or_else(|| now.saturating_add(drain).unwrap_or(Timestamp::MAX));
        let patience = if now < until { Patience::Wait } else { Patience::Now };
        let removed = async {
            self.hand_over_ipvs().await?;
            self.beside(remove_kube_proxys).await??;
            self.remove_ipvs(patience).await
        };
        let removed = removed.await;
        self.wait_for(removed.as_ref().ok().cloned().flatten());
        let trouble = match removed {
            Err(why) => Some(format!(
                "kube-proxy's rules could not all be removed, they stay behind ours: {why}"
            )),
            Ok(Some(_)) => {
                tokio::time::sleep(ROUND).await;
                return confirming(job, baseline, Some(until));
            }
            Ok(None) => self
                .proven(&baseline)
                .await
                .err()
                .map(|why| format!("after the move {why}")),
        };
        Position::Moved {
            job,
            trouble,
            told: false,
        }
    }
}

fn confirming(job: Job, baseline: Vec<Answered>, until: Option<Timestamp>) -> Position {
    Position::Confirming { job, baseline, until }
}
