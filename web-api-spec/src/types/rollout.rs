//! Rollouts: what is wanted, the plan, and where it stands.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::node::{Readiness, ReadinessReason};

/// A rollout to plan.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewRollout {
    /// A name for people: 1-63 characters of a-z, 0-9, '-' and '.'; it need not be unique.
    #[schema(example = "spring-move")]
    pub name: String,
    /// What is done to each node.
    pub action: RolloutAction,
    /// Names of the clusters whose nodes are meant.
    pub clusters: Vec<String>,
    /// If given, only the nodes of these names.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nodes: Option<Vec<String>>,
    /// The stages, in order. Together they must take every node.
    pub stages: Vec<StageSpec>,
    /// The limits; what is absent has its default.
    #[serde(default)]
    pub settings: RolloutSettings,
}

/// What a rollout does to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RolloutAction {
    /// The agent becomes the node's Service proxy.
    MoveToNftfleet,
}

/// A stage to plan.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StageSpec {
    /// Its name, unique in the rollout.
    #[schema(example = "canary")]
    pub name: String,
    /// How many nodes it takes of those that earlier stages left.
    pub size: StageSize,
}

/// A stage's size.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum StageSize {
    /// So many nodes, at least 1.
    Count(u32),
    /// So many percent of all the rollout's nodes, 1-100, rounded up.
    Percent(u32),
    /// Exactly the nodes of these names.
    Nodes(Vec<String>),
    /// All that are left.
    Rest,
}

/// A rollout's limits.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RolloutSettings {
    /// How many nodes may be under way at a time, 1-10000. 1 if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_concurrent: Option<u32>,
    /// How many nodes may fail before the rollout stops. 0 if absent: it stops at the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_failures: Option<u32>,
    /// How long a node's probes must keep passing before it is confirmed, in seconds. 30 if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node_soak_seconds: Option<u32>,
    /// How long a stage waits after its last node, in seconds, 0-2592000. 0 if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stage_soak_seconds: Option<u32>,
    /// An agent that is not confirmed so many seconds after its flip goes back by itself, 10-86400, at least 5 more than the
    /// soak. 120 if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub confirm_within_seconds: Option<u32>,
    /// When the server gives up on a node under way, in seconds; more than `confirmWithinSeconds`, at most 604800. 600 if
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node_deadline_seconds: Option<u32>,
    /// What the probe connects to, 1-100 targets. `default/kubernetes` port 443 if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub probe: Option<Vec<Probe>>,
}

/// A TCP port of a Service, whose every ClusterIP the probe connects to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// The Service's namespace.
    #[schema(example = "default")]
    pub namespace: String,
    /// The Service's name.
    #[schema(example = "kubernetes")]
    pub name: String,
    /// The Service's port, 1-65535.
    #[schema(example = 443)]
    pub port: u16,
}

/// What a rollout would do, without doing anything.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RolloutPlan {
    /// SHA-256 of the plan; `start` must quote it.
    pub plan_hash: String,
    /// The stages with their nodes.
    pub stages: Vec<PlannedStage>,
}

/// A stage of a plan.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlannedStage {
    /// Its name.
    pub name: String,
    /// Its nodes, by cluster and name.
    pub nodes: Vec<PlannedNode>,
}

/// A node of a plan.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlannedNode {
    /// Its cluster's name.
    pub cluster: String,
    /// Its name.
    pub node: String,
    /// Its readiness at the time of planning.
    pub readiness: Readiness,
}

/// A rollout and where it stands.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollout {
    /// Its identity.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// What it does to each node.
    pub action: RolloutAction,
    /// Its state.
    pub state: RolloutState,
    /// How often it changed; also its `ETag`.
    pub generation: i64,
    /// SHA-256 of its plan; `start` must quote it.
    pub plan_hash: String,
    /// Its limits, with every default filled in.
    pub settings: RolloutSettings,
    /// Its stages, in order.
    pub stages: Vec<Stage>,
    /// What it waits for; empty when it has ended.
    pub waiting_on: Vec<Hold>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was started.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended_at: Option<Timestamp>,
}

/// A page of rollouts, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RolloutPage {
    /// The rollouts.
    pub items: Vec<Rollout>,
    /// Give it as `pageToken` to get the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_page_token: Option<String>,
}

/// A rollout's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RolloutState {
    /// Planned, not started.
    Draft,
    /// Grants nodes their turn.
    Running,
    /// Grants none; nodes under way go on.
    Paused,
    /// Aborted; waits for the nodes under way.
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

/// A stage and where it stands.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: StageState,
    /// How many of its nodes are in each task state, by the state's name.
    pub tasks: std::collections::BTreeMap<String, u64>,
}

/// A stage's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StageState {
    /// Waits for the stages before it.
    Pending,
    /// Its nodes get their turns.
    Running,
    /// All its nodes have ended; the next stage waits.
    Soaking,
    /// Done.
    Passed,
    /// Too many nodes failed.
    Failed,
    /// Never opened.
    Skipped,
}

/// What a rollout waits for.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hold {
    /// `NOT_STARTED`, `PAUSED`, `NODE_UNDER_WAY`, `NODE_SOAK`, `CAPACITY`, `NODE_UNKNOWN`, `NODE_BUSY` or `STAGE_SOAK`.
    #[schema(example = "NODE_SOAK")]
    pub kind: String,
    /// The node, if it waits for one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    /// When the wait ends at the latest, if that is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<Timestamp>,
    /// In words.
    pub message: String,
    /// For `NODE_UNKNOWN`: why the node's readiness can't be told.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub reasons: Vec<ReadinessReason>,
}

/// Starts a rollout.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartRequest {
    /// The hash of the plan that was looked at.
    pub plan_hash: String,
}

/// Pauses a rollout: nodes under way go on to their end, no further one begins.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PauseRequest {
    /// Why, 1-1000 characters, for the record.
    pub reason: String,
}

/// Goes on with a paused rollout.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResumeRequest {
    /// Why, 1-1000 characters, for the record.
    pub reason: String,
}

/// Ends a rollout early.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AbortRequest {
    /// Why, 1-1000 characters, for the record.
    pub reason: String,
    /// What happens to the nodes under way.
    pub underway: AbortUnderway,
}

/// What an abort does to the nodes under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AbortUnderway {
    /// Let them end.
    Finish,
    /// Put them back on their old rules.
    Revert,
}

/// One node's piece of work in a rollout.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Task {
    /// Its identity.
    pub id: Uuid,
    /// Name of its stage.
    pub stage: String,
    /// Its node's cluster.
    pub cluster: String,
    /// Its node's name.
    pub node: String,
    /// `PENDING`, `OFFERED`, `PREFLIGHT`, `APPLYING`, `VERIFYING`, `SOAKING`, `CONFIRMING`, `REVERTING`, `CONFIRMED`,
    /// `ALREADY_DONE`, `REVERTED`, `REJECTED`, `TIMED_OUT`, `NEEDS_ATTENTION` or `SKIPPED`.
    #[schema(example = "CONFIRMED")]
    pub state: String,
    /// Which try this is, from 1; 0 before the first.
    pub attempt: u32,
    /// Why, for states that have a reason; one entry per blocker for `REJECTED`.
    pub reasons: Vec<String>,
    /// Every state it has been in, oldest first.
    pub timeline: Vec<TaskEvent>,
}

/// A change of a task's state.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskEvent {
    /// When, by the server's clock.
    pub at: Timestamp,
    /// The new state.
    pub state: String,
}

/// A page of tasks, by stage, cluster and node.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskPage {
    /// The tasks.
    pub items: Vec<Task>,
    /// Give it as `pageToken` to get the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_page_token: Option<String>,
}
