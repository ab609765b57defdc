//! Who calls.

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use jiff::SignedDuration;
use nftfleet_domain::ids::NodeId;

use super::problem::Refusal;
use crate::app::App;
use crate::secret::SecretHash;
use crate::store::StoreError;

/// How often a node that speaks is written down. Well under the two minutes of silence that make it unknown.
const HEARD_EVERY: SignedDuration = SignedDuration::from_secs(10);

/// Why a caller is not let in.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// There is no bearer token.
    #[error("send Authorization: Bearer with a token")]
    Missing,
    /// The token is not known.
    #[error("the token is not known; an agent whose credential was replaced must enrol again")]
    Unknown,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The node that an agent speaks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speaker(pub(super) NodeId);

/// Lets operators in. Only hashes are compared, so the time that it takes tells nothing of the token.
pub(super) fn operator(app: &App, headers: &HeaderMap) -> Result<(), AuthError> {
    match app.operator_token {
        None => Ok(()),
        Some(token) if token == bearer(headers)? => Ok(()),
        Some(_) => Err(AuthError::Unknown),
    }
}

/// Lets an agent in, and remembers that its node spoke.
pub(super) async fn agent(app: &App, headers: &HeaderMap) -> Result<Speaker, AuthError> {
    let found = app.store.credential(bearer(headers)?).await?;
    let credential = found.ok_or(AuthError::Unknown)?;
    let now = app.clock.now();
    if now.duration_since(credential.last_seen_at) >= HEARD_EVERY {
        app.store.heard_of(credential.node, now, HEARD_EVERY).await?;
    }
    Ok(Speaker(credential.node))
}

fn bearer(headers: &HeaderMap) -> Result<SecretHash, AuthError> {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, token) = value.and_then(|v| v.split_once(' ')).ok_or(AuthError::Missing)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        Ok(SecretHash::of(token.trim()))
    } else {
        Err(AuthError::Missing)
    }
}

impl FromRequestParts<App> for Speaker {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Refusal> {
        let speaker = parts.extensions.get::<Self>().copied();
        Ok(speaker.ok_or(AuthError::Missing)?)
    }
}
