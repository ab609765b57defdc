//! Where a rollout stands, read in one transaction: all that [`super::tick()`] may look at.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::plan::Settings;
use crate::assignment::{Phase, TaskState};
use crate::ids::{Attempt, Generation, NodeName, RolloutId, TaskId};
use crate::readiness::{ProxyMode, Reason, Verdict};

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RolloutState {
    /// Planned, not started.
    Draft,
    /// Grants nodes their turn.
    Running,
    /// Grants none; nodes under way go on to their end.
    Paused,
    /// Aborted; waits for the nodes under way to end.
    Aborting,
    /// Every node is confirmed or was done already.
    Succeeded,
    /// Ended within the failure limit, with failures.
    SucceededWithFailures,
    /// Stopped, because more nodes failed than allowed.
    Failed,
    /// Stopped by a person.
    Aborted,
}

impl RolloutState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Draft,
        Self::Running,
        Self::Paused,
        Self::Aborting,
        Self::Succeeded,
        Self::SucceededWithFailures,
        Self::Failed,
        Self::Aborted,
    ];

    /// Whether nothing will change any more.
    pub fn is_ended(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::SucceededWithFailures | Self::Failed | Self::Aborted
        )
    }

    /// Whether a person's request is possible in this state. A request is only a row; the next tick acts on it.
    pub fn allows(self, request: &Request) -> bool {
        match request {
            Request::Start => self == Self::Draft,
            Request::Pause => self == Self::Running,
            Request::Resume => self == Self::Paused,
            // A second abort may be stricter than the first: `revert` after `finish`.
            Request::Abort(_) => matches!(self, Self::Draft | Self::Running | Self::Paused | Self::Aborting),
        }
    }
}

/// Where a stage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StageState {
    /// Waits for the stages before it.
    Pending,
    /// Its nodes get their turns.
    Running,
    /// All its nodes have ended; the next stage waits for the soak.
    Soaking,
    /// Done.
    Passed,
    /// More nodes failed than the rollout allows.
    Failed,
    /// Never opened, because the rollout ended before.
    Skipped,
}

impl StageState {
    /// Whether nothing will change any more.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Passed | Self::Failed | Self::Skipped)
    }
}

/// What a person asked for. Requests are input rows; the tick alone changes a rollout's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Request {
    /// Begin.
    Start,
    /// Grant no further node.
    Pause,
    /// Go on.
    Resume,
    /// End early; what happens to the nodes under way is said with it.
    Abort(Underway),
}

/// What an abort does to the nodes under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Underway {
    /// Let them end.
    Finish,
    /// Put them back on their old rules.
    Revert,
}

/// A rollout as read in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The rollout.
    pub id: RolloutId,
    /// Its generation; commands are applied only if it is still this one.
    pub generation: Generation,
    /// Its state.
    pub state: RolloutState,
    /// Its limits.
    pub settings: Settings,
    /// Requests not yet acted on, oldest first.
    pub requests: Vec<Request>,
    /// Its stages, in order.
    pub stages: Vec<StageSnapshot>,
    /// Its tasks, by stage, cluster and node.
    pub tasks: Vec<TaskSnapshot>,
}

/// A stage as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageSnapshot {
    /// Place in the order, from 0.
    pub ordinal: u32,
    /// Its state.
    pub state: StageState,
    /// When it came into this state.
    pub since: Timestamp,
}

/// A node's piece of work as read, with what is known of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSnapshot {
    /// The task.
    pub id: TaskId,
    /// Its generation.
    pub generation: Generation,
    /// Its stage's place in the order.
    pub stage: u32,
    /// Its node's name, for reasons.
    pub node: NodeName,
    /// Its state.
    pub state: TaskState,
    /// The attempts that were granted so far.
    pub attempts: Attempt,
    /// The node's readiness now.
    pub readiness: Verdict,
    /// The node's Service proxy now, if it ever reported.
    pub mode: Option<ProxyMode>,
    /// Whether another rollout has work under way on the node.
    pub busy_elsewhere: bool,
}

/// What a rollout waits for, and until when if that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", tag = "kind")]
pub enum Hold {
    /// Nobody has started it.
    NotStarted,
    /// Somebody paused it.
    Paused,
    /// A node is under way.
    NodeUnderWay {
        /// The node.
        node: NodeName,
        /// How far it came.
        phase: Phase,
        /// When it is given up.
        until: Timestamp,
    },
    /// A node's soak has not ended.
    NodeSoak {
        /// The node.
        node: NodeName,
        /// When it ends.
        until: Timestamp,
    },
    /// As many nodes are under way as may be at a time.
    Capacity {
        /// The limit.
        max_concurrent: u32,
    },
    /// A node's readiness is not known.
    NodeUnknown {
        /// The node.
        node: NodeName,
        /// Why.
        reasons: BTreeSet<Reason>,
    },
    /// Another rollout has work under way on the node.
    NodeBusy {
        /// The node.
        node: NodeName,
    },
    /// The stage's soak has not ended.
    StageSoak {
        /// When it ends.
        until: Timestamp,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line per state, a column per request: start, pause, resume, abort. `y` is allowed, `-` is refused.
    const ALLOWED: [(RolloutState, &str); 8] = [
        (RolloutState::Draft, "y--y"),
        (RolloutState::Running, "-y-y"),
        (RolloutState::Paused, "--yy"),
        (RolloutState::Aborting, "---y"),
        (RolloutState::Succeeded, "----"),
        (RolloutState::SucceededWithFailures, "----"),
        (RolloutState::Failed, "----"),
        (RolloutState::Aborted, "----"),
    ];

    #[test]
    fn every_request_in_every_state_is_allowed_as_the_table_says() {
        let requests = [
            Request::Start,
            Request::Pause,
            Request::Resume,
            Request::Abort(Underway::Revert),
        ];
        let shown = RolloutState::ALL.map(|state| {
            let row = requests.map(|request| if state.allows(&request) { 'y' } else { '-' });
            (state, row.iter().collect::<String>())
        });
        assert_eq!(shown, ALLOWED.map(|(state, row)| (state, row.to_owned())));
    }
}
