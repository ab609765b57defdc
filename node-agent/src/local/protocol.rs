//! What is asked and answered: one line of JSON each way, then the conversation is over.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nftfleet_domain::inventory::TableState;
use nftfleet_domain::rollout::ProbeTarget;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest question, in bytes.
pub const LONGEST: u64 = 64 * 1024;

/// Where the agent of a state folder listens. Only its owner may connect.
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("agent.sock")
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// Where the node is.
    Status,
    /// To move it.
    Switch {
        /// A number for this move, which nobody has used before.
        task: Uuid,
        /// For how many seconds the probe must pass before the old rules go.
        hold_seconds: u32,
        /// What the probe connects to, beside its own sample.
        probe: Vec<ProbeTarget>,
    },
    /// To go back.
    Rollback {
        /// At once, without waiting until kube-proxy's rules are seen to be in sync.
        now: bool,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Where the node is.
    Status(Status),
    /// It will be done.
    Accepted,
    /// It will not.
    Refused {
        /// Why.
        why: String,
    },
}

/// Where the node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The name of the position in the ledger.
    pub position: String,
    /// How it ended, if it has ended without success: `rejected`, `reverted` or `needs-attention`.
    pub end: Option<String>,
    /// Why, or what a person has to look at.
    pub reasons: Vec<String>,
    /// What the present step waits for.
    pub waiting_for: Option<String>,
    /// When the node goes back by itself, if it is flipped and not confirmed.
    pub goes_back_at: Option<Timestamp>,
    /// Our table; none if the kernel could not tell.
    pub table: Option<TableState>,
    /// Whether nothing is under way.
    pub at_rest: bool,
    /// Whether the node is on our table.
    pub moved: bool,
}
