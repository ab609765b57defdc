//! What agents and the server say to each other.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::report::Report;
use super::rollout::{Probe, RolloutAction};

/// An agent asks for a credential. Enrolling again gives a new credential; the old one stops working.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Enrolment {
    /// The cluster's enrolment token.
    pub token: String,
    /// The node's name as Kubernetes knows it.
    pub node: String,
    /// The agent's version.
    pub agent_version: String,
}

/// An agent's credential: `Authorization: Bearer <credential>`. Shown once, stored hashed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Enrolled {
    /// The node's identity.
    pub node_id: Uuid,
    /// The cluster's name.
    pub cluster: String,
    /// The secret.
    pub credential: String,
}

/// A report with its sequence number.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReportSubmission {
    /// Rises with every report of this node; an older one is not stored.
    #[schema(minimum = 1)]
    pub sequence: i64,
    /// The facts.
    pub report: Report,
}

/// What became of a report.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReportAccepted {
    /// The newest sequence number that the server has. Continue above it.
    pub sequence: i64,
    /// When to send the next report at the latest, in seconds.
    pub next_report_seconds: u32,
}

/// All that the server wants of a node now: a level, never an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Assignment {
    /// Rises whenever `work` changes. Quote it to wait for the next change.
    pub generation: i64,
    /// The work; absent when there is none. An agent whose unconfirmed work is gone from here goes back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub work: Option<Work>,
}

/// One node's piece of work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Work {
    /// The task.
    pub task_id: Uuid,
    /// Its rollout.
    pub rollout_id: Uuid,
    /// Which try this is.
    pub attempt: u32,
    /// What is done.
    pub action: RolloutAction,
    /// How far to go.
    pub wanted: Wanted,
    /// The dead-man's switch, in seconds after the flip.
    pub confirm_within_seconds: u32,
    /// What the probe connects to.
    pub probe: Vec<Probe>,
}

/// How far an agent is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Wanted {
    /// Flip, probe, keep probing, wait for the confirmation.
    Move,
    /// Confirmed: remove what is kube-proxy's.
    Confirm,
    /// Go back to the old rules.
    Revert,
}

/// How far an agent came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProgressReport {
    /// The task.
    pub task_id: Uuid,
    /// The attempt.
    pub attempt: u32,
    /// Where it is now.
    pub progress: ProgressKind,
    /// Why, for `REJECTED` (one entry per blocker), `REVERTED` and `NEEDS_ATTENTION`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub reasons: Vec<String>,
}

/// Where an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ProgressKind {
    /// Checks before anything is touched.
    Preflight,
    /// Loads the table dormant and reads it back.
    Applying,
    /// The table is active, the probe runs.
    Verifying,
    /// The probe passed and goes on.
    Soaking,
    /// On the way back.
    Reverting,
    /// Refused before anything was touched.
    Rejected,
    /// Back on the old rules.
    Reverted,
    /// The old rules are gone, the table is active, the probe passes.
    Confirmed,
    /// A step failed and needs a person.
    NeedsAttention,
}
