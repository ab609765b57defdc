//! What runs in the background: on a period and on a nudge, both by the same road.
//!
//! Several servers may share the database. Each task on a timer holds a lease, so that one server does the work; if two
//! did it at once, the generations in the store would let one of them win.

mod lease;
mod listen;
mod migrate;
mod nudges;
pub mod rollout_tick;
mod sweep;
mod waiters;

pub use nudges::Nudges;
pub use waiters::{Waiter, Waiters};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::app::App;
use crate::store::Ready;

/// Starts every task. They end when the service stops.
pub(crate) fn spawn(app: &App, ready: watch::Sender<Ready>) -> Vec<JoinHandle<()>> {
    vec![
        tokio::spawn(migrate::run(app.clone(), ready)),
        tokio::spawn(listen::run(app.clone())),
        tokio::spawn(rollout_tick::run(app.clone())),
        tokio::spawn(sweep::run(app.clone())),
    ]
}

/// Returns when the store can be used; false if the service stops before.
async fn store_is_ready(app: &App) -> bool {
    let mut ready = app.ready.clone();
    tokio::select! {
        ready = ready.wait_for(|ready| *ready == Ready::Yes) => ready.is_ok(),
        () = app.stopped() => false,
    }
}
