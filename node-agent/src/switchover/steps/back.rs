//! The way back.

use std::net::SocketAddr;
use std::time::Duration;

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::rollout::ProbeTarget;

use super::{ROUND, Tools};
use crate::probe::{describe, probe};
use crate::switchover::old_rules::{expected, in_sync};
use crate::switchover::position::{End, Job, Position};

/// Until the old rules are tried again after they did not answer: each try costs what they do not answer meanwhile.
const NOT_SO_SOON: Duration = Duration::from_secs(10);

impl Tools {
    /// Lets kube-proxy in, waits until its rules are seen to be in sync, and only then makes the table dormant. If the Services
    /// that the work named do not answer through them, the table is woken again.
    pub(super) async fn return_to_old_rules(&self, job: Job, why: String) -> Position {
        let returned = match self.may_return().await {
            Ok(()) => self.give_back(&job).await,
            Err(what) => Err((what, ROUND)),
        };
        match returned {
            Ok(()) => self.reverted(job, why),
            Err((what, pause)) => {
                self.wait_for(Some(what));
                tokio::time::sleep(pause).await;
                Position::Returning { job, why }
            }
        }
    }

    /// Lets kube-proxy in, and looks whether it is back and its rules are whole.
    ///
    /// # Errors
    /// What is waited for, in words.
    async fn may_return(&self) -> Result<(), String> {
        self.let_in().await?;
        if let Some(kube_proxy) = &self.kube_proxy
            && !matches!(kube_proxy.is_gone().await, Ok(false))
        {
            return Err("kube-proxy to come back to the node".to_owned());
        }
        let in_sync = self.old_rules_in_sync().await;
        in_sync.map_err(|lacking| format!("kube-proxy's rules to be in sync: {lacking}"))
    }

    /// Makes the table dormant, and wakes it again if Services do not answer through the old rules that did through ours.
    ///
    /// # Errors
    /// What is waited for, in words, and when to try again.
    async fn give_back(&self, job: &Job) -> Result<(), (String, Duration)> {
        let kubernetes = ProbeTarget {
            namespace: "default".to_owned(),
            name: "kubernetes".to_owned(),
            port: 443,
        };
        let targets = job.probe.iter().chain([&kubernetes]);
        let addresses: Vec<SocketAddr> = targets.flat_map(|target| self.services.addresses(target)).collect();
        // What is silent through our table too is not the old rules' fault.
        let through_ours = match self.dataplane.state().await {
            Ok(TableState::Active) => probe(&addresses).await,
            _ => vec![],
        };
        let asleep = self.dataplane.set_dormant(true).await;
        asleep.map_err(|error| (format!("the kernel to make the table dormant: {error}"), ROUND))?;
        let mut silent = probe(&addresses).await;
        silent.retain(|silent| !through_ours.iter().any(|known| known.address == silent.address));
        if silent.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.restore().await {
            tracing::error!(error, "the table could not be woken again");
        }
        let what = format!("Services to answer through kube-proxy's rules: {}", describe(&silent));
        Err((what, NOT_SO_SOON))
    }

    /// Takes the label off that keeps kube-proxy away, if there is one.
    async fn let_in(&self) -> Result<(), String> {
        let Some(kube_proxy) = &self.kube_proxy else {
            return Ok(());
        };
        let done = kube_proxy.let_in().await;
        done.map_err(|error| format!("kube-proxy can't be let in: {error}"))
    }

    fn reverted(&self, job: Job, why: String) -> Position {
        self.wait_for(None);
        Position::Ended {
            job,
            end: End::Reverted(why),
            told: false,
        }
    }

    /// Back when kube-proxy has been sent away. Its last rules may be some seconds old, but they answered: better than a table that
    /// does not. If they are gone or stale, as after a reboot, kube-proxy has to come first.
    pub(super) async fn back_with_kube_proxy(&self, job: Job, why: String) -> Position {
        match self.old_rules_in_sync().await {
            Ok(()) => Position::Reverting { job, why, let_in: true },
            Err(_) => Position::Returning { job, why },
        }
    }

    async fn old_rules_in_sync(&self) -> Result<(), String> {
        if !self.listed().await {
            return Err("the Services are not known".to_owned());
        }
        let desired = self.dataplane.desired().await.map_err(|error| error.to_string())?;
        let expected = expected(&desired.frontends);
        let mode = self.beside(move |host| in_sync(host, &expected)).await??;
        tracing::info!(mode, "kube-proxy's rules are in sync");
        Ok(())
    }

    /// Puts the old rules back in charge. Retried for ever: nothing else may happen before this is done.
    pub(super) async fn revert(&self, job: Job, why: String, let_in: bool) -> Position {
        let again = |job, why| Position::Reverting { job, why, let_in };
        if let Err(error) = self.dataplane.set_dormant(true).await {
            tracing::error!(%error, "the table could not be made dormant; trying again");
            tokio::time::sleep(ROUND).await;
            return again(job, why);
        }
        if let Err(error) = self.disarm_guard(&job).await {
            // It does no harm to this attempt: the table sleeps. The next one can't begin before it is over.
            tracing::warn!(error, "the guard stays armed");
        }
        if let_in && let Err(what) = self.let_in().await {
            self.wait_for(Some(what));
            tokio::time::sleep(ROUND).await;
            return again(job, why);
        }
        self.reverted(job, why)
    }
}
