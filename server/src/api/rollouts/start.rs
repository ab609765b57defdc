//! Start a draft, quoting the hash of its plan.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use nftfleet_domain::rollout::Request;
use nftfleet_web_api_spec::types;

use crate::api::body::Body;
use crate::api::parameters::{Segments, rollout_id};
use crate::api::problem::Refusal;
use crate::api::rollouts::act::{Action, act};
use crate::app::App;

pub(in crate::api) async fn start(
    State(app): State<App>,
    Segments(text): Segments<String>,
    headers: HeaderMap,
    Body(wish): Body<types::StartRequest>,
) -> Result<Response, Refusal> {
    let action = Action {
        request: Request::Start,
        reason: "",
        plan_hash: Some(&wish.plan_hash),
    };
    act(&app, rollout_id(&text)?, &headers, &action).await
}
