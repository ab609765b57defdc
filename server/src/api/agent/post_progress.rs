//! An agent says how far its node came.

use axum::Json;
use axum::extract::State;
use nftfleet_domain::assignment::{Heard, Progress, ProgressRefused};
use nftfleet_domain::ids::{Attempt, NodeId, TaskId};
use nftfleet_web_api_spec::{convert, types};

use super::view;
use crate::api::auth::Speaker;
use crate::api::body::{Body, BodyError};
use crate::api::problem::Refusal;
use crate::app::App;
use crate::store::{Applied, StoreError};

/// How often a task may change between reading and moving it before we give up. Only the tick and this agent change it.
const MOST_TRIES: u32 = 10;

/// Why a report of progress was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PostProgressError {
    /// The node has no such task.
    #[error("this node has no task {0}")]
    NoSuchTask(TaskId),
    /// It is of another attempt than the granted one.
    #[error("{0}")]
    OtherAttempt(#[source] ProgressRefused),
    /// The task can't make this step.
    #[error("{0}")]
    Illegal(#[source] ProgressRefused),
    /// The task changed each time between reading and moving it.
    #[error("the task changed {MOST_TRIES} times while its progress was stored")]
    Busy,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(in crate::api) async fn post_progress(
    State(app): State<App>,
    Speaker(node): Speaker,
    Body(report): Body<types::ProgressReport>,
) -> Result<Json<types::Assignment>, Refusal> {
    let progress = convert::progress_of(report.progress, &report.reasons)
        .map_err(|bad| BodyError::field("reasons", bad.to_string()))?;
    hear(&app, node, TaskId(report.task_id), Attempt(report.attempt), &progress).await?;
    Ok(Json(view(app.store.assigned(node).await?)))
}

async fn hear(
    app: &App,
    node: NodeId,
    task: TaskId,
    attempt: Attempt,
    progress: &Progress,
) -> Result<(), PostProgressError> {
    for _ in 0..MOST_TRIES {
        let found = app.store.task_of(node, task).await?;
        let found = found.ok_or(PostProgressError::NoSuchTask(task))?;
        let now = app.clock.now();
        let heard = found
            .state
            .hear(attempt, progress, now)
            .map_err(|refused| match refused {
                ProgressRefused::WrongAttempt { .. } => PostProgressError::OtherAttempt(refused),
                ProgressRefused::Illegal { .. } => PostProgressError::Illegal(refused),
            })?;
        let Heard::Moved(state) = heard else {
            return Ok(());
        };
        if app.store.move_task(&found, &state, now).await? == Applied::Yes {
            tracing::info!(%task, state = state.name(), "a task moved");
            app.nudges.add([found.rollout]);
            return Ok(());
        }
    }
    Err(PostProgressError::Busy)
}
