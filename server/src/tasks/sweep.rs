//! Deletes enrolment tokens that have expired. They stopped working when they did; this only keeps the table small.

use std::time::Duration;

use super::lease::Lease;
use super::store_is_ready;
use crate::app::App;
use crate::store::StoreError;
use crate::telemetry::chain;

const EVERY: Duration = Duration::from_mins(10);

/// Sweeps until the service stops.
pub(super) async fn run(app: App) {
    if !store_is_ready(&app).await {
        return;
    }
    let lease = Lease::new(&app, "sweep");
    let mut timer = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = app.stopped() => return,
            _ = timer.tick() => {}
        }
        match sweep(&app, &lease).await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "deleted enrolment tokens that have expired"),
            Err(error) => tracing::warn!("can't delete expired enrolment tokens: {}", chain(&error)),
        }
    }
}

async fn sweep(app: &App, lease: &Lease) -> Result<u64, StoreError> {
    if lease.hold(app, EVERY).await? {
        app.store.delete_expired_tokens(app.clock.now()).await
    } else {
        Ok(0)
    }
}
