//! Begin no further node; those under way go on to their end.

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

pub(in crate::api) async fn pause(
    State(app): State<App>,
    Segments(text): Segments<String>,
    headers: HeaderMap,
    Body(wish): Body<types::PauseRequest>,
) -> Result<Response, Refusal> {
    let action = Action {
        request: Request::Pause,
        reason: checked_reason(&wish.reason)?,
        plan_hash: None,
    };
    act(&app, rollout_id(&text)?, &headers, &action).await
}
