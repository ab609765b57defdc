//! List a rollout's nodes with their state and timeline, by stage, cluster and node.

use axum::Json;
use axum::extract::State;
use nftfleet_domain::assignment::TaskState;
use nftfleet_web_api_spec::types;

use crate::api::page::Page;
use crate::api::parameters::{Parameters, Segments, rollout_id};
use crate::api::problem::Refusal;
use crate::api::rollouts::NoSuchRollout;
use crate::app::App;
use crate::store::ListedTask;

pub(in crate::api) async fn list(
    State(app): State<App>,
    Segments(text): Segments<String>,
    parameters: Parameters,
) -> Result<Json<types::TaskPage>, Refusal> {
    let rollout = rollout_id(&text)?;
    let page = Page::<u32>::of(&parameters)?;
    let mut tasks = app.store.tasks(rollout, page.after, page.one_more()).await?;
    // A rollout has tasks, so only an empty page needs another look.
    if tasks.is_empty() && app.store.rollout_head(rollout).await?.is_none() {
        return Err(NoSuchRollout(rollout).into());
    }
    let next_page_token = page.cut(&mut tasks, |task| task.position);
    Ok(Json(types::TaskPage {
        items: tasks.into_iter().map(view).collect(),
        next_page_token,
    }))
}

fn view(task: ListedTask) -> types::Task {
    let event = |(at, state): (_, TaskState)| types::TaskEvent {
        at,
        state: state.name().to_owned(),
    };
    types::Task {
        id: task.id.0,
        stage: task.stage.into(),
        cluster: task.cluster.into(),
        node: task.node.into(),
        state: task.state.name().to_owned(),
        attempt: task.attempts.0,
        reasons: reasons(&task.state),
        timeline: task.timeline.into_iter().map(event).collect(),
    }
}

fn reasons(state: &TaskState) -> Vec<String> {
    match state {
        TaskState::Rejected { blockers } => blockers.clone(),
        TaskState::Reverted { why, .. } | TaskState::NeedsAttention { why, .. } => vec![why.clone()],
        TaskState::TimedOut { phase, .. } => vec![format!("no end within the deadline; it had come to {phase:?}")],
        TaskState::Pending
        | TaskState::UnderWay { .. }
        | TaskState::Confirmed { .. }
        | TaskState::AlreadyDone
        | TaskState::Skipped => vec![],
    }
}
