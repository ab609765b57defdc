//! What people do to a rollout. Each action is only a row that the next tick acts on; the tick then runs at once, so that
//! the answer shows what became of it.

use axum::http::HeaderMap;
use axum::response::Response;
use nftfleet_domain::ids::{Generation, RolloutId};
use nftfleet_domain::rollout::{Request, RolloutState};

use super::{NoSuchRollout, answer};
use crate::api::body::BodyError;
use crate::api::parameters::if_match_allows;
use crate::api::problem::Refusal;
use crate::app::App;
use crate::store::{Applied, StoreError};
use crate::tasks::rollout_tick;

/// How often a rollout may change between reading it and asking for something before we give up.
const MOST_TRIES: u32 = 10;

/// Why a rollout was not asked for something.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// There is no such rollout.
    #[error(transparent)]
    NoSuchRollout(#[from] NoSuchRollout),
    /// It has changed since it was looked at.
    #[error("the rollout is at generation {now}, which If-Match does not name")]
    Stale {
        /// Its generation.
        now: Generation,
    },
    /// The hash is of another plan.
    #[error("the rollout's plan has the hash {now}; look at the plan again before starting it")]
    OtherPlan {
        /// The hash of its plan.
        now: String,
    },
    /// Its state does not allow it.
    #[error("a rollout that is {now:?} can't {wanted}")]
    IllegalState {
        /// Its state.
        now: RolloutState,
        /// What was asked for.
        wanted: &'static str,
    },
    /// It changed each time between reading it and asking.
    #[error("the rollout changed {MOST_TRIES} times while it was asked for something")]
    Busy,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is asked for, and on which conditions.
pub(super) struct Action<'a> {
    pub(super) request: Request,
    pub(super) reason: &'a str,
    /// The hash that the plan must have, if it matters.
    pub(super) plan_hash: Option<&'a str>,
}

pub(super) async fn act(
    app: &App,
    id: RolloutId,
    headers: &HeaderMap,
    action: &Action<'_>,
) -> Result<Response, Refusal> {
    ask(app, id, headers, action).await?;
    rollout_tick::run_once(app, id).await?;
    let rollout = app.store.rollout(id).await?.ok_or(NoSuchRollout(id))?;
    Ok(answer(rollout))
}

async fn ask(app: &App, id: RolloutId, headers: &HeaderMap, action: &Action<'_>) -> Result<(), ActError> {
    for _ in 0..MOST_TRIES {
        let head = app.store.rollout_head(id).await?.ok_or(NoSuchRollout(id))?;
        if !if_match_allows(headers, head.generation) {
            return Err(ActError::Stale { now: head.generation });
        }
        if action.plan_hash.is_some_and(|hash| hash != head.plan_hash) {
            return Err(ActError::OtherPlan { now: head.plan_hash });
        }
        if !head.state.allows(&action.request) {
            return Err(ActError::IllegalState {
                now: head.state,
                wanted: wanted(action.request),
            });
        }
        let now = app.clock.now();
        let added = app
            .store
            .add_request(id, head.generation, action.request, action.reason, now);
        if added.await? == Applied::Yes {
            return Ok(());
        }
    }
    Err(ActError::Busy)
}

fn wanted(request: Request) -> &'static str {
    match request {
        Request::Start => "start",
        Request::Pause => "pause",
        Request::Resume => "resume",
        Request::Abort(_) => "be aborted",
    }
}

/// A reason for the record.
pub(super) fn checked_reason(reason: &str) -> Result<&str, BodyError> {
    let characters = reason.chars().count();
    if (1..=1000).contains(&characters) && !reason.trim().is_empty() {
        Ok(reason)
    } else {
        let message = format!("has {characters} characters; 1-1000 are needed, not all blank");
        Err(BodyError::field("reason", message))
    }
}
