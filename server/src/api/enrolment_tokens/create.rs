//! Make a token with which the cluster's agents enrol.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use nftfleet_domain::ids::ClusterName;
use nftfleet_web_api_spec::types;

use crate::api::body::{Body, BodyError};
use crate::api::parameters::Segments;
use crate::api::problem::Refusal;
use crate::app::App;
use crate::secret::{self, SecretHash};

/// One hour: long enough to roll out the agents, short enough to forget.
const DEFAULT_SECONDS: u32 = 3600;

pub(in crate::api) async fn create(
    State(app): State<App>,
    Segments(text): Segments<String>,
    Body(wish): Body<types::NewEnrolmentToken>,
) -> Result<(StatusCode, Json<types::EnrolmentToken>), Refusal> {
    let cluster: ClusterName = text.parse().map_err(|_| Refusal::no_such_cluster(&text))?;
    let seconds = wish.expires_in_seconds.unwrap_or(DEFAULT_SECONDS);
    if !(60..=2_592_000).contains(&seconds) {
        let message = format!("{seconds} is not 60-2592000");
        return Err(BodyError::field("expiresInSeconds", message).into());
    }
    let now = app.clock.now();
    let lifetime = SignedDuration::from_secs(seconds.into());
    let expires_at = now.saturating_add(lifetime).unwrap_or(Timestamp::MAX);
    let token = secret::to_text(&app.ids.secret());
    let hash = SecretHash::of(&token);
    if app
        .store
        .create_enrolment_token(&cluster, hash, now, expires_at)
        .await?
    {
        Ok((StatusCode::CREATED, Json(types::EnrolmentToken { token, expires_at })))
    } else {
        Err(Refusal::no_such_cluster(&text))
    }
}
