//! What agents call.

pub(super) mod enrol;
pub(super) mod get_assignment;
pub(super) mod post_progress;
pub(super) mod put_report;

use nftfleet_domain::assignment::{Phase, TaskState};
use nftfleet_web_api_spec::types;

use crate::store::{Assigned, UnderWay};

fn view(assigned: Assigned) -> types::Assignment {
    types::Assignment {
        generation: assigned.generation.0,
        work: assigned.work.and_then(work),
    }
}

/// None unless the task is under way.
fn work(under_way: UnderWay) -> Option<types::Work> {
    let TaskState::UnderWay { attempt, phase, .. } = under_way.state else {
        return None;
    };
    Some(types::Work {
        task_id: under_way.task.0,
        rollout_id: under_way.rollout.0,
        attempt: attempt.0,
        action: under_way.action.into(),
        wanted: wanted(phase),
        confirm_within_seconds: under_way.settings.confirm_within_seconds,
        probe: under_way.settings.probe.into_iter().map(Into::into).collect(),
    })
}

fn wanted(phase: Phase) -> types::Wanted {
    match phase {
        Phase::Offered | Phase::Preflight | Phase::Applying | Phase::Verifying | Phase::Soaking => types::Wanted::Move,
        Phase::Confirming => types::Wanted::Confirm,
        Phase::Reverting => types::Wanted::Revert,
    }
}
