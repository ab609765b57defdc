//! What a move from kube-proxy's IPVS mode needs besides: its live connections are handed over before its virtual services go.
//! Nothing of this does anything on a node without IPVS.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Tools;
use crate::host::Host;
use crate::ipvs::{Known, Leftover, Patience, Progress, Takeover};
use crate::node_addresses;

/// Between two looks at connections that were handed over and have not been picked up.
const SETTLE: Duration = Duration::from_secs(30);

/// After so long it is looked again where it could not be.
const AGAIN: Duration = Duration::from_mins(5);

/// After so long an idle connection that was handed over is given up, with the table that knows it.
const GIVE_UP: Duration = Duration::from_hours(24);

impl Tools {
    /// What is known of the cluster's Services and of the node, by which kube-proxy's virtual services are told from others'.
    async fn known(&self) -> Result<Known, String> {
        let desired = self.dataplane.desired().await.map_err(|error| error.to_string())?;
        let own = node_addresses::list().map_err(|error| error.to_string())?;
        let sources: Vec<IpAddr> = self.services.index().node_addresses().to_vec();
        Ok(Known::of(&desired, own, &sources))
    }

    async fn with_takeover<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Takeover<'_>, &Known) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let known = self.known().await?;
        let done = self.beside(move |host: &dyn Host| {
            let mut takeover = Takeover::open(host).map_err(|error| error.to_string())?;
            work(&mut takeover, &known)
        });
        done.await?
    }

    /// Why the node can't be moved from IPVS as it is, in words with a code.
    pub(super) async fn ipvs_blockers(&self) -> Vec<String> {
        let is_managed = self.kube_proxy.is_some();
        let found = self.with_takeover(move |takeover, known| {
            let blockers = takeover.blockers(known).map_err(|error| error.to_string())?;
            let mut blockers: Vec<String> = blockers.iter().map(|b| format!("{}: {b}", b.code())).collect();
            let sorted = takeover.services(known).map_err(|error| error.to_string())?;
            if !is_managed && !sorted.kube_proxys.is_empty() {
                blockers.push(
                    "ipvs-kube-proxy-stays: kube-proxy makes its virtual services anew as long as it runs; the agent needs \
                     --kube-proxy-label to send it away"
                        .to_owned(),
                );
            }
            Ok(blockers)
        });
        found.await.unwrap_or_else(|why| vec![format!("ipvs-unknown: {why}")])
    }

    /// Hands live connections over, before kube-proxy's chains go.
    pub(super) async fn hand_over_ipvs(&self) -> Result<(), String> {
        let handed = self.with_takeover(|takeover, known| takeover.hand_over(known).map_err(|error| error.to_string()));
        let handed = handed.await?;
        if handed.connections + handed.left_out > 0 {
            let (connections, left_out) = (handed.connections, handed.left_out);
            tracing::debug!(connections, left_out, "connections of IPVS' were handed over");
        }
        Ok(())
    }

    /// Removes what is kube-proxy's in IPVS, after its chains. Gives what is waited for, if anything is.
    pub(super) async fn remove_ipvs(&self, patience: Patience) -> Result<Option<String>, String> {
        let removed = self.with_takeover(move |takeover, known| {
            let progress = takeover.remove(known, patience).map_err(|error| error.to_string())?;
            if let Progress::Draining { sockets, carried } = progress {
                return Ok(Some(format!(
                    "{sockets} connections of the node's own from Services' addresses, and {carried} that IPVS knows, to end"
                )));
            }
            takeover.settle(Patience::Wait).map_err(|error| error.to_string())?;
            let is_trouble = |leftover: &Leftover| !matches!(leftover, Leftover::Handover);
            let mut left = takeover.leftovers(known).map_err(|error| error.to_string())?;
            if left.iter().any(|leftover| matches!(leftover, Leftover::Set(_))) {
                takeover.remove_sets().map_err(|error| error.to_string())?;
                left = takeover.leftovers(known).map_err(|error| error.to_string())?;
            }
            left.retain(is_trouble);
            // Where there is no program for ipsets, nobody but IPVS mode, which needs it, can have made any.
            left.retain(|leftover| !matches!(leftover, Leftover::SetsUnknown(_)));
            if left.is_empty() {
                Ok(None)
            } else {
                Err(format!("still there of IPVS mode: {left:?}"))
            }
        });
        let waits = removed.await?;
        self.settling.notify_one();
        Ok(waits)
    }

    /// Looks after connections that were handed over until each has been picked up by our table. Never ends.
    pub(in crate::switchover) async fn settle_ipvs(&self) {
        let mut since = Instant::now();
        loop {
            let patience = if since.elapsed() < GIVE_UP {
                Patience::Wait
            } else {
                Patience::Now
            };
            let settled = self.beside(move |host: &dyn Host| {
                let mut takeover = Takeover::open(host).map_err(|error| error.to_string())?;
                takeover.settle(patience).map_err(|error| error.to_string())
            });
            match settled.await.and_then(|done| done) {
                Ok(0) => {
                    self.settling.notified().await;
                    since = Instant::now();
                }
                Ok(connections) => {
                    tracing::debug!(connections, "connections that were handed over are not picked up yet");
                    tokio::time::sleep(SETTLE).await;
                }
                Err(error) => {
                    // Before our table is active there is nothing to settle.
                    tracing::debug!(error, "handed over connections can't be looked after now");
                    let _ = tokio::time::timeout(AGAIN, self.settling.notified()).await;
                }
            }
        }
    }
}
