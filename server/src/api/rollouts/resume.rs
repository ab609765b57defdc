//! Go on with a paused rollout.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use nftfleet_domain::rollout::Request;
use nftfleet_web_api_spec::types;

use crate::api::body::Body;
use crate::api::parameters::{Segments, rollout_id};
use crate::api::problem::Refusal;
use crate::api::rollouts::act::{Action, act, checked_reason};
use crate::app::App;

pub(in crate::api) async fn resume(
    State(app): State<App>,
    Segments(text): Segments<String>,
    headers: HeaderMap,
    Body(wish): Body<types::ResumeRequest>,
) -> Result<Response, Refusal> {
    let action = Action {
        request: Request::Resume,
        reason: checked_reason(&wish.reason)?,
        plan_hash: None,
    };
    act(&app, rollout_id(&text)?, &headers, &action).await
}
