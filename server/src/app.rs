//! What every handler and task works with.

use std::sync::Arc;
use std::time::Duration;

use nftfleet_domain::readiness::Policy;
use tokio::sync::watch;

use crate::clock::{Clock, Ids};
use crate::secret::SecretHash;
use crate::store::{Ready, Store};
use crate::tasks::{Nudges, Waiters};
use crate::telemetry::Metrics;

/// What every handler and task works with. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The data.
    pub store: Store,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// New identities and secrets.
    pub ids: Arc<dyn Ids>,
    /// By what readiness is judged.
    pub policy: Arc<Policy>,
    /// The operators' token; none if their calls need none.
    pub operator_token: Option<SecretHash>,
    /// How often rollouts are looked at when nothing happens.
    pub tick_every: Duration,
    /// Rollouts to look at now.
    pub nudges: Arc<Nudges>,
    /// Agents that wait for a change of their assignment.
    pub waiters: Arc<Waiters>,
    /// Counts and durations.
    pub metrics: Arc<Metrics>,
    /// Whether the store can be used, and why not.
    pub ready: watch::Receiver<Ready>,
    /// True from when the service is asked to stop.
    pub stopping: watch::Receiver<bool>,
}

impl App {
    /// Returns when the service is asked to stop.
    pub async fn stopped(&self) {
        let mut stopping = self.stopping.clone();
        // An error means that the sender is gone: the service has stopped.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }
}
