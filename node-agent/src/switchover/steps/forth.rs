//! Snapshot, load, rehearsal, flip.

use std::net::SocketAddr;
use std::time::Instant;

use jiff::SignedDuration;
use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::{Protocol, Vip};

use super::{Tools, rejected, reverting};
use crate::dataplane::Netlink;
use crate::dataplane::actor::RequestError;
use crate::dataplane::explain::{Outcome, Snapshot};
use crate::dataplane::explain::{Packet, explain};
use crate::node_addresses;
use crate::probe::{Answered, How, describe, probe};
use crate::switchover::position::{Armed, Job, Position};
use crate::switchover::snapshot;

/// How many of the baseline are rehearsed: for each the kernel's table is read, which takes 3 s at 30,000 Services of 10 endpoints.
const REHEARSED: usize = 3;

impl Tools {
    /// Keeps a copy of the old rules. Nothing was touched yet: without the copy the work is refused.
    pub(super) async fn snapshot(&self, job: Job, baseline: Vec<Answered>) -> Position {
        let (folder, name) = (self.snapshots.clone(), format!("{}-{}", job.task, job.attempt));
        let taken = self.beside(move |host| snapshot::take(host, &folder, &name)).await;
        match taken.and_then(|done| done.map_err(|error| error.to_string())) {
            Ok(()) => Position::Loading { job, baseline },
            Err(why) => rejected(job, vec![format!("snapshot-failed: {why}")]),
        }
    }

    /// Loads the table dormant, reads it back and compares.
    pub(super) async fn load(&self, job: Job, baseline: Vec<Answered>) -> Position {
        if !self.listed().await {
            return reverting(job, "the Services are not known".to_owned());
        }
        let loaded = match self.dataplane.load().await {
            Ok(()) => self.dataplane.compare().await,
            Err(error) => Err(error),
        };
        match loaded {
            Ok(()) => Position::Rehearsing { job, baseline },
            Err(error) => reverting(job, format!("the table could not be loaded: {error}")),
        }
    }

    /// Asks of the dormant table what would become of some of the probe's connections, and connects to an endpoint that it names.
    /// The dead-man's switch is armed before the flip: its deadline goes to the ledger first.
    pub(super) async fn rehearse(&self, job: Job, baseline: Vec<Answered>) -> Position {
        // Those that the work names come first.
        let questions: Vec<Answered> = baseline.iter().take(REHEARSED).cloned().collect();
        let rehearsed = match self.beside(move |_| would_be_sent(&questions)).await {
            Ok(rehearsed) => rehearsed,
            Err(error) => Err(error),
        };
        let to_try = match rehearsed {
            Ok(to_try) => to_try,
            Err(why) => return reverting(job, format!("the rehearsal failed: {why}")),
        };
        let silent = probe(&to_try).await;
        if to_try.len() == silent.len() && !to_try.is_empty() {
            // One may be a Service whose endpoint dies just now; not all of them.
            return reverting(
                job,
                format!(
                    "the rehearsal failed: no endpoint answers this node: {}",
                    describe(&silent)
                ),
            );
        }
        let within = SignedDuration::from_secs(i64::from(job.confirm_within_seconds));
        let deadline = self.clock.now().saturating_add(within).unwrap_or(jiff::Timestamp::MAX);
        Position::Flipping {
            job,
            armed: Armed { baseline, deadline },
        }
    }

    /// Makes the table active, unless it is so already. A restart may lie between the loading and this: what is woken must be
    /// what the Services mean now.
    pub(super) async fn flip(&self, job: Job, armed: Armed) -> Position {
        match self.wake(&job, &armed).await {
            Ok(()) => Position::Verifying { job, armed },
            Err(why) => reverting(job, format!("the table could not be made active: {why}")),
        }
    }

    async fn wake(&self, job: &Job, armed: &Armed) -> Result<(), String> {
        let told = |error: RequestError| error.to_string();
        match self.dataplane.state().await.map_err(told)? {
            TableState::Active => return self.arm_guard(job, armed).await,
            TableState::Dormant => {}
            // After a reboot the table is gone: then the old rules are what the node has, and that is where it goes.
            TableState::Absent => return Err("it is gone".to_owned()),
        }
        if !self.listed().await {
            return Err("the Services are not known".to_owned());
        }
        self.dataplane.load().await.map_err(told)?;
        self.dataplane.compare().await.map_err(told)?;
        self.arm_guard(job, armed).await?;
        let began = Instant::now();
        self.dataplane.set_dormant(false).await.map_err(told)?;
        tracing::info!(took = ?began.elapsed(), "the table is awake");
        Ok(())
    }
}

/// An endpoint of each address of the baseline that is asked by TCP, as the kernel's table has it.
fn would_be_sent(baseline: &[Answered]) -> Result<Vec<SocketAddr>, String> {
    let mut kernel = Netlink::open().map_err(|error| error.to_string())?;
    let mut to_try = Vec::new();
    for answered in baseline {
        let to = Vip {
            address: answered.address.ip(),
            protocol: match answered.how {
                How::Connect => Protocol::Tcp,
                How::Dns => Protocol::Udp,
            },
            port: answered.address.port(),
        };
        let packet = Packet::new(to, None, None).map_err(|error| error.to_string())?;
        let own = node_addresses::list().map_err(|error| error.to_string())?;
        let snapshot: Snapshot = kernel.snapshot(&packet, own).map_err(|error| error.to_string())?;
        match explain(&snapshot, &packet).fate.map(|fate| fate.outcome) {
            Some(Outcome::Sent { endpoints, .. }) if !endpoints.is_empty() => {
                to_try.extend(endpoints.first().filter(|_| answered.how == How::Connect));
            }
            // A sampled Service may have lost its endpoints since; one that the work names must not.
            _ if !answered.named => {}
            outcome => {
                return Err(format!(
                    "{} answers through the old rules; the table would not send it to an endpoint, but: {outcome:?}",
                    answered.address
                ));
            }
        }
    }
    Ok(to_try)
}
