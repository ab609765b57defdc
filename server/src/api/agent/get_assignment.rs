//! What the server wants of the node; waits for a change if asked to. Also the agent's heartbeat.

use std::pin::pin;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use nftfleet_domain::ids::NodeId;
use nftfleet_web_api_spec::types;
use tokio::time::Instant;

use super::view;
use crate::api::auth::Speaker;
use crate::api::parameters::Parameters;
use crate::api::problem::Refusal;
use crate::app::App;
use crate::store::{Assigned, StoreError};

/// How often a request that waits looks for itself while Postgres can't tell of changes.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub(in crate::api) async fn get_assignment(
    State(app): State<App>,
    Speaker(node): Speaker,
    parameters: Parameters,
) -> Result<Json<types::Assignment>, Refusal> {
    let seconds = parameters.number("waitSeconds", 0..=60)?.unwrap_or(0);
    let known = parameters.number("generation", 0..=i64::MAX)?;
    let assigned = match known {
        Some(known) if seconds > 0 => {
            let how_long = Duration::from_secs(seconds.unsigned_abs());
            wait(&app, node, known, how_long).await?
        }
        _ => app.store.assigned(node).await?,
    };
    Ok(Json(view(assigned)))
}

/// Returns when the generation is not `known`, the time is over or the service stops.
async fn wait(app: &App, node: NodeId, known: i64, how_long: Duration) -> Result<Assigned, StoreError> {
    let until = Instant::now() + how_long;
    let waiter = app.waiters.register(node);
    let _counted = Counted::new(app);
    loop {
        // Before reading: a change after this line wakes us, one before it is read.
        let mut changed = pin!(waiter.changed());
        changed.as_mut().enable();
        let assigned = app.store.assigned(node).await?;
        if assigned.generation.0 != known || Instant::now() >= until || *app.stopping.borrow() {
            return Ok(assigned);
        }
        let look_at = if app.waiters.is_listening() {
            until
        } else {
            until.min(Instant::now() + LOOK_EVERY)
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep_until(look_at) => {}
            () = app.stopped() => {}
        }
    }
}

/// Counts a request as waiting, until it is dropped.
struct Counted<'a>(&'a App);

impl<'a> Counted<'a> {
    fn new(app: &'a App) -> Self {
        app.metrics.agents_waiting.inc();
        Self(app)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.metrics.agents_waiting.dec();
    }
}
