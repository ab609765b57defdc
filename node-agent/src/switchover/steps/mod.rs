//! What each position does. Every step may be repeated: what is done already is seen and left.
//!
//! - [`preflight`]: whether the node can be moved
//! - [`forth`]: snapshot, load, rehearsal, flip
//! - [`prove`]: whether the Services answer through our table as they did before
//! - [`keep`]: after the confirmation: kube-proxy leaves, and its rules go
//! - [`ipvs`]: what a move from IPVS needs besides
//! - [`back`]: the way back

mod back;
mod forth;
mod ipvs;
mod keep;
mod preflight;
mod prove;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nftfleet_domain::inventory::TableState;
use tokio::sync::Notify;

use super::position::{End, Job, Position};
use crate::clock::Clock;
use crate::dataplane::Actor;
use crate::facts::Paths;
use crate::guard::Guard;
use crate::guard::protocol::State;
use crate::host::Host;
use crate::kube::Services;
use crate::kube::kube_proxy::KubeProxy;

/// Between two rounds of the probe while a flip waits for its confirmation, and between two tries.
const ROUND: Duration = Duration::from_millis(500);

/// How long a step waits for the first lists of Services.
const SERVICES_WITHIN: Duration = Duration::from_secs(30);

/// What the steps act on.
#[derive(Clone)]
pub struct Tools {
    /// The data plane.
    pub dataplane: Actor,
    /// The dead-man's switch.
    pub guard: Guard,
    /// What the Services mean.
    pub services: Services,
    /// The node.
    pub host: Arc<dyn Host>,
    /// Where its files are.
    pub paths: Paths,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// kube-proxy, if it can be sent away by a label; else it is left to the operator.
    pub kube_proxy: Option<KubeProxy>,
    /// For how long kube-proxy's rules stand by after it has gone.
    pub stand_by: Duration,
    /// How long connections that need `kube-ipvs0` are waited for.
    pub ipvs_drain: Duration,
    /// Says that connections were handed over.
    pub settling: Arc<Notify>,
    /// Where copies of the old rules are kept.
    pub snapshots: PathBuf,
    /// What the present step waits for, for a person who asks.
    pub waiting_for: Arc<Mutex<Option<String>>>,
}

impl Tools {
    /// Does the step of `position`, and says where the move stands after it.
    pub async fn step(&self, position: Position) -> Position {
        match position {
            Position::Preflight { job } => self.preflight(job).await,
            Position::Snapshotting { job, baseline } => self.snapshot(job, baseline).await,
            Position::Loading { job, baseline } => self.load(job, baseline).await,
            Position::Rehearsing { job, baseline } => self.rehearse(job, baseline).await,
            Position::Flipping { job, armed } => self.flip(job, armed).await,
            Position::Verifying { job, armed } => self.verify(job, armed).await,
            Position::Soaking { job, armed } => self.soak(job, armed).await,
            Position::Parking { job, baseline, until } => self.park(job, baseline, until).await,
            Position::StandingBy { job, baseline, until } => self.stand_by(job, baseline, until).await,
            Position::Confirming { job, baseline, until } => self.confirm(job, baseline, until).await,
            Position::Returning { job, why } => self.return_to_old_rules(job, why).await,
            Position::Reverting { job, why, let_in } => self.revert(job, why, let_in).await,
            still @ (Position::Idle | Position::Moved { .. } | Position::Ended { .. }) => still,
        }
    }

    /// Waits for the first lists of Services; gives whether they came in time.
    async fn listed(&self) -> bool {
        self.services.listed_within(SERVICES_WITHIN).await
    }

    /// Makes the table hold all Services and active, whatever the kernel holds now.
    ///
    /// # Errors
    /// Why not, in words: the Services are not known, or the kernel refused.
    pub async fn restore(&self) -> Result<(), String> {
        if !self.listed().await {
            return Err("the Services are not known yet".to_owned());
        }
        self.dataplane.load_active().await.map_err(|error| error.to_string())
    }

    /// Keeps an active table in step, where the ledger says nothing: as long as the guard may put it to sleep it stays asleep when
    /// it is; else it is kept active.
    pub async fn serve_on(&self) {
        while !matches!(
            self.dataplane.state().await,
            Ok(TableState::Absent | TableState::Dormant)
        ) {
            // What can't be told is taken for armed.
            let is_armed = !matches!(self.guard.query().await, Ok(None | Some(State::Idle)));
            let served = if !self.listed().await {
                Err("the Services are not known yet".to_owned())
            } else if is_armed {
                self.dataplane.load().await.map_err(|error| error.to_string())
            } else {
                self.dataplane.load_active().await.map_err(|error| error.to_string())
            };
            match served {
                Ok(()) if !is_armed => return,
                Ok(()) => {}
                Err(error) => tracing::error!(error, "the table is not in step; trying again"),
            }
            tokio::time::sleep(ROUND).await;
        }
    }

    /// Runs what blocks beside the loop. A panic is an error in words.
    async fn beside<T: Send + 'static>(&self, work: impl FnOnce(&dyn Host) -> T + Send + 'static) -> Result<T, String> {
        let host = Arc::clone(&self.host);
        let done = tokio::task::spawn_blocking(move || work(&*host)).await;
        done.map_err(|error| error.to_string())
    }

    /// Says what the present step waits for, or that it waits no more.
    fn wait_for(&self, what: Option<String>) {
        let mut waiting = self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(what), true) = (&what, *waiting != what) {
            tracing::info!(what, "the move waits");
        }
        *waiting = what;
    }
}

/// Back before kube-proxy was sent away.
fn reverting(job: Job, why: String) -> Position {
    Position::Reverting {
        job,
        why,
        let_in: false,
    }
}

/// Refused before anything was touched.
fn rejected(job: Job, blockers: Vec<String>) -> Position {
    Position::Ended {
        job,
        end: End::Rejected(blockers),
        told: false,
    }
}
