//! Plan a rollout and keep it as a draft.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use nftfleet_domain::ids::RolloutId;
use nftfleet_web_api_spec::types;

use crate::api::body::Body;
use crate::api::problem::Refusal;
use crate::api::rollouts::{NoSuchRollout, answer, plan};
use crate::app::App;

pub(in crate::api) async fn create(
    State(app): State<App>,
    Body(wish): Body<types::NewRollout>,
) -> Result<Response, Refusal> {
    let plan = plan::resolve(&app, &wish).await?;
    let id = RolloutId(app.ids.id());
    app.store
        .create_rollout(id, &plan, || app.ids.id(), app.clock.now())
        .await?;
    let rollout = app.store.rollout(id).await?.ok_or(NoSuchRollout(id))?;
    Ok((StatusCode::CREATED, answer(rollout)).into_response())
}
