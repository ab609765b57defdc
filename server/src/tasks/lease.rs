//! Which server runs a task on its timer.

use jiff::SignedDuration;
use uuid::Uuid;

use crate::app::App;
use crate::store::StoreError;

/// How long a server that died keeps the others from taking over.
const HOW_LONG: SignedDuration = SignedDuration::from_secs(10);

/// This server's claim to a task.
pub(super) struct Lease {
    task: &'static str,
    holder: Uuid,
}

impl Lease {
    pub(super) fn new(app: &App, task: &'static str) -> Self {
        Self {
            task,
            holder: app.ids.id(),
        }
    }

    /// Takes or renews the lease; false if another server has it. It lasts for two periods of the task at least.
    pub(super) async fn hold(&self, app: &App, period: std::time::Duration) -> Result<bool, StoreError> {
        let periods = SignedDuration::try_from(period * 2).unwrap_or(HOW_LONG);
        let how_long = HOW_LONG.max(periods);
        app.store
            .hold_lease(self.task, self.holder, app.clock.now(), how_long)
            .await
    }
}
