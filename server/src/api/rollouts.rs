//! Rollouts.

pub(super) mod abort;
pub(super) mod act;
pub(super) mod create;
pub(super) mod get;
pub(super) mod list;
pub(super) mod pause;
pub(super) mod plan;
pub(super) mod resume;
pub(super) mod start;

pub use act::ActError;
pub use plan::PlanError;

use axum::Json;
use axum::http::header::ETAG;
use axum::response::{IntoResponse, Response};
use nftfleet_domain::ids::RolloutId;
use nftfleet_web_api_spec::types;

use super::parameters::etag;
use crate::store::{Rollout, Stage};

/// There is no rollout of this identity.
#[derive(Debug, thiserror::Error)]
#[error("there is no rollout {0}")]
pub struct NoSuchRollout(pub RolloutId);

/// A rollout with its `ETag`.
fn answer(rollout: Rollout) -> Response {
    ([(ETAG, etag(rollout.generation))], Json(view(rollout))).into_response()
}

fn view(rollout: Rollout) -> types::Rollout {
    types::Rollout {
        id: rollout.id.0,
        name: rollout.name.into(),
        action: rollout.action.into(),
        state: rollout.state.into(),
        generation: rollout.generation.0,
        plan_hash: rollout.plan_hash,
        settings: (&rollout.settings).into(),
        stages: rollout.stages.into_iter().map(stage).collect(),
        waiting_on: rollout.waiting_on.iter().map(Into::into).collect(),
        created_at: rollout.created_at,
        started_at: rollout.started_at,
        ended_at: rollout.ended_at,
    }
}

fn stage(stage: Stage) -> types::Stage {
    types::Stage {
        name: stage.name.into(),
        state: stage.state.into(),
        tasks: stage.tasks,
    }
}
