//! Read a rollout and what it waits for.

use axum::extract::State;
use axum::response::Response;

use crate::api::parameters::{Segments, rollout_id};
use crate::api::problem::Refusal;
use crate::api::rollouts::{NoSuchRollout, answer};
use crate::app::App;

pub(in crate::api) async fn get(State(app): State<App>, Segments(text): Segments<String>) -> Result<Response, Refusal> {
    let id = rollout_id(&text)?;
    let rollout = app.store.rollout(id).await?.ok_or(NoSuchRollout(id))?;
    Ok(answer(rollout))
}
