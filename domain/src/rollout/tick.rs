//! Decides what a rollout does next. Touches nothing: the same snapshot and time give the same answer.

use jiff::{SignedDuration, Timestamp};

use super::gate::Gate;
use super::snapshot::{Hold, Request, RolloutState, Snapshot, StageSnapshot, StageState, TaskSnapshot, Underway};
use crate::assignment::{Phase, TaskState};
use crate::ids::{Attempt, TaskId};
use crate::readiness::{ProxyMode, Verdict};

/// One change that the store is to make. All of a tick's commands are applied in one transaction, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The rollout moves to this state.
    Rollout(RolloutState),
    /// A stage, by its place in the order, moves to this state.
    Stage(u32, StageState),
    /// A task moves to this state.
    Task(TaskId, TaskState),
    /// All requests that the snapshot showed are acted on.
    RequestsDone,
}

/// What a rollout does next, and what it waits for after that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tick {
    /// The changes, in order.
    pub commands: Vec<Command>,
    /// Why nothing more happens now; empty for a rollout that has ended.
    pub waiting_on: Vec<Hold>,
}

/// Decides what the rollout does next.
pub fn tick(snapshot: &Snapshot, now: Timestamp) -> Tick {
    let mut next = snapshot.clone();
    let mut commands = Vec::new();
    let mut waiting_on = Vec::new();
    act_on_requests(&mut next, &mut commands, now);
    if next.state != RolloutState::Draft {
        steer_tasks_under_way(&mut next, &mut commands, &mut waiting_on, now);
    }
    match next.state {
        RolloutState::Draft => waiting_on.push(Hold::NotStarted),
        RolloutState::Running => advance_stages(&mut next, &mut commands, &mut waiting_on, now),
        RolloutState::Paused => {
            waiting_on.push(Hold::Paused);
            // A node that failed while the rollout was paused still ends it; nothing else moves.
            if let Some(stage) = current_stage(&next)
                && let Gate::Halt { .. } = Gate::of(&stage, &next, now)
            {
                halt(&mut next, &mut commands, stage.ordinal);
            }
        }
        RolloutState::Aborting
        | RolloutState::Failed
        | RolloutState::Aborted
        | RolloutState::Succeeded
        | RolloutState::SucceededWithFailures => {}
    }
    if next.state == RolloutState::Aborting && !next.tasks.iter().any(|t| t.state.is_under_way()) {
        set_rollout(&mut next, &mut commands, RolloutState::Aborted);
    }
    if next.state.is_ended() {
        waiting_on.retain(|hold| matches!(hold, Hold::NodeUnderWay { .. } | Hold::NodeSoak { .. }));
    }
    Tick { commands, waiting_on }
}

fn set_rollout(next: &mut Snapshot, commands: &mut Vec<Command>, state: RolloutState) {
    next.state = state;
    commands.push(Command::Rollout(state));
}

fn set_stage(next: &mut Snapshot, commands: &mut Vec<Command>, ordinal: u32, state: StageState) {
    for stage in next.stages.iter_mut().filter(|s| s.ordinal == ordinal) {
        stage.state = state;
    }
    commands.push(Command::Stage(ordinal, state));
}

fn set_task(task: &mut TaskSnapshot, commands: &mut Vec<Command>, state: TaskState) {
    task.state = state;
    commands.push(Command::Task(task.id, task.state.clone()));
}

fn current_stage(next: &Snapshot) -> Option<StageSnapshot> {
    next.stages.iter().find(|s| !s.state.is_ended()).cloned()
}

/// Requests that the state does not allow any more (two people pressed at once) are passed over: they are done too.
fn act_on_requests(next: &mut Snapshot, commands: &mut Vec<Command>, now: Timestamp) {
    if next.requests.is_empty() {
        return;
    }
    for request in std::mem::take(&mut next.requests) {
        if !next.state.allows(&request) {
            continue;
        }
        match request {
            Request::Start | Request::Resume => set_rollout(next, commands, RolloutState::Running),
            Request::Pause => set_rollout(next, commands, RolloutState::Paused),
            Request::Abort(underway) => {
                set_rollout(next, commands, RolloutState::Aborting);
                skip_what_is_pending(next, commands);
                if underway == Underway::Revert {
                    for task in &mut next.tasks {
                        if let Ok(reverting) = task.state.steer(Phase::Reverting, now) {
                            set_task(task, commands, reverting);
                        }
                    }
                }
            }
        }
    }
    commands.push(Command::RequestsDone);
}

fn skip_what_is_pending(next: &mut Snapshot, commands: &mut Vec<Command>) {
    for task in next.tasks.iter_mut().filter(|t| t.state == TaskState::Pending) {
        set_task(task, commands, TaskState::Skipped);
    }
    let open: Vec<u32> = next
        .stages
        .iter()
        .filter(|s| !s.state.is_ended())
        .map(|s| s.ordinal)
        .collect();
    for ordinal in open {
        set_stage(next, commands, ordinal, StageState::Skipped);
    }
}

/// Time-outs and confirmations: they go on while a rollout is paused, failed or aborting, since a node in the middle of its
/// move must reach an end whatever became of the rollout.
fn steer_tasks_under_way(next: &mut Snapshot, commands: &mut Vec<Command>, waiting_on: &mut Vec<Hold>, now: Timestamp) {
    let soak = SignedDuration::from_secs(i64::from(next.settings.node_soak_seconds));
    for task in &mut next.tasks {
        let TaskState::UnderWay {
            attempt,
            phase,
            since,
            deadline,
        } = task.state
        else {
            continue;
        };
        if now > deadline {
            set_task(task, commands, TaskState::TimedOut { attempt, phase });
            continue;
        }
        let node = task.node.clone();
        if phase == Phase::Soaking {
            let until = since.saturating_add(soak).unwrap_or(Timestamp::MAX);
            if now < until {
                waiting_on.push(Hold::NodeSoak { node, until });
                continue;
            }
            if let Ok(confirming) = task.state.steer(Phase::Confirming, now) {
                set_task(task, commands, confirming);
            }
        }
        if let TaskState::UnderWay { phase, .. } = task.state {
            waiting_on.push(Hold::NodeUnderWay {
                node,
                phase,
                until: deadline,
            });
        }
    }
}

fn advance_stages(next: &mut Snapshot, commands: &mut Vec<Command>, waiting_on: &mut Vec<Hold>, now: Timestamp) {
    loop {
        let Some(stage) = current_stage(next) else {
            let failures = next.tasks.iter().any(|t| t.state.is_failure());
            let end = if failures {
                RolloutState::SucceededWithFailures
            } else {
                RolloutState::Succeeded
            };
            set_rollout(next, commands, end);
            return;
        };
        if stage.state == StageState::Pending {
            set_stage(next, commands, stage.ordinal, StageState::Running);
        }
        // Grants may end tasks at once (rejected, already done), so the gate is judged after them.
        if !matches!(Gate::of(&stage, next, now), Gate::Halt { .. }) {
            grant(next, commands, waiting_on, &stage, now);
        }
        match Gate::of(&stage, next, now) {
            Gate::Open => set_stage(next, commands, stage.ordinal, StageState::Passed),
            Gate::Soak => {
                set_stage(next, commands, stage.ordinal, StageState::Soaking);
                let soak = SignedDuration::from_secs(i64::from(next.settings.stage_soak_seconds));
                waiting_on.push(Hold::StageSoak {
                    until: now.saturating_add(soak).unwrap_or(Timestamp::MAX),
                });
                return;
            }
            Gate::Waiting(holds) => {
                waiting_on.extend(holds);
                return;
            }
            Gate::Halt { .. } => {
                halt(next, commands, stage.ordinal);
                return;
            }
        }
    }
}

fn halt(next: &mut Snapshot, commands: &mut Vec<Command>, ordinal: u32) {
    set_stage(next, commands, ordinal, StageState::Failed);
    skip_what_is_pending(next, commands);
    set_rollout(next, commands, RolloutState::Failed);
}

/// Grants pending nodes of `stage` their turn, as many as there is room for. A node that must wait never blocks the others.
fn grant(
    next: &mut Snapshot,
    commands: &mut Vec<Command>,
    waiting_on: &mut Vec<Hold>,
    stage: &StageSnapshot,
    now: Timestamp,
) {
    let under_way = next.tasks.iter().filter(|t| t.state.is_under_way()).count();
    let cap = usize::try_from(next.settings.max_concurrent).unwrap_or(usize::MAX);
    let mut free = cap.saturating_sub(under_way);
    let allowed = next.settings.max_failures;
    let deadline = now
        .saturating_add(SignedDuration::from_secs(i64::from(
            next.settings.node_deadline_seconds,
        )))
        .unwrap_or(Timestamp::MAX);
    let mut capacity_held = false;
    // Counted along, since a fleet has many nodes and this looks at each of them.
    let mut failures = next.tasks.iter().filter(|t| t.state.is_failure()).count();
    let pending = |task: &&mut TaskSnapshot| task.stage == stage.ordinal && task.state == TaskState::Pending;
    for task in next.tasks.iter_mut().filter(pending) {
        if u32::try_from(failures).unwrap_or(u32::MAX) > allowed {
            return;
        }
        if task.mode == Some(ProxyMode::Nftfleet) && task.readiness == Verdict::Ready && !task.busy_elsewhere {
            set_task(task, commands, TaskState::AlreadyDone);
            continue;
        }
        match &task.readiness {
            Verdict::Blocked(reasons) => {
                let blockers = reasons.iter().map(|r| format!("{}: {}", r.code, r.message)).collect();
                set_task(task, commands, TaskState::Rejected { blockers });
                failures += 1;
            }
            Verdict::Unknown(reasons) => {
                waiting_on.push(Hold::NodeUnknown {
                    node: task.node.clone(),
                    reasons: reasons.clone(),
                });
            }
            Verdict::Ready if task.busy_elsewhere => waiting_on.push(Hold::NodeBusy {
                node: task.node.clone(),
            }),
            Verdict::Ready if free == 0 => capacity_held = true,
            Verdict::Ready => {
                let attempt = Attempt(task.attempts.0 + 1);
                if let Ok(offered) = task.state.grant(attempt, now, deadline) {
                    task.attempts = attempt;
                    free -= 1;
                    waiting_on.push(Hold::NodeUnderWay {
                        node: task.node.clone(),
                        phase: Phase::Offered,
                        until: deadline,
                    });
                    set_task(task, commands, offered);
                }
            }
        }
    }
    if capacity_held {
        waiting_on.push(Hold::Capacity {
            max_concurrent: next.settings.max_concurrent,
        });
    }
}

#[cfg(test)]
mod tests;
