//! Where a node's move stands. It is written to the ledger before every step, so that a restart at any point goes on from
//! there; every step may be repeated.

use std::net::SocketAddr;

use jiff::Timestamp;
use nftfleet_domain::rollout::ProbeTarget;
use nftfleet_web_api_spec::types::{ProgressKind, ProgressReport, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The piece of work that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The server's task.
    pub task: Uuid,
    /// Which try of it.
    pub attempt: u32,
    /// The dead-man's switch, in seconds after the flip.
    pub confirm_within_seconds: u32,
    /// What the probe connects to.
    pub probe: Vec<ProbeTarget>,
}

impl Job {
    /// Whether this is the work of the assignment.
    pub fn is(&self, work: &Work) -> bool {
        self.task == work.task_id && self.attempt == work.attempt
    }
}

impl From<&Work> for Job {
    fn from(work: &Work) -> Self {
        Self {
            task: work.task_id,
            attempt: work.attempt,
            confirm_within_seconds: work.confirm_within_seconds,
            probe: work.probe.iter().cloned().map(Into::into).collect(),
        }
    }
}

/// A flip that waits for its confirmation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// Addresses that answered through the old rules, and must answer through ours.
    pub baseline: Vec<SocketAddr>,
    /// When the node goes back by itself.
    pub deadline: Timestamp,
}

/// How a move ended without success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Nothing was touched; these stood in the way.
    Rejected(Vec<String>),
    /// The old rules answer again.
    Reverted(String),
    /// A step failed for good.
    NeedsAttention(String),
}

/// Where the move stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "position")]
pub enum Position {
    /// Nothing was ever asked, or what was asked is over and told.
    #[default]
    Idle,
    /// Looks whether the node can be moved. Nothing is touched.
    Preflight {
        /// The work.
        job: Job,
    },
    /// Loads the table dormant and reads it back.
    Loading {
        /// The work.
        job: Job,
        /// Addresses that answered through the old rules.
        baseline: Vec<SocketAddr>,
    },
    /// Makes the table active. It may be so already.
    Flipping {
        /// The work.
        job: Job,
        /// The armed flip.
        armed: Armed,
    },
    /// The table is active; the probe has not passed yet.
    Verifying {
        /// The work.
        job: Job,
        /// The armed flip.
        armed: Armed,
    },
    /// The probe passed and goes on; waits for the server's confirmation. The old rules stand by.
    Soaking {
        /// The work.
        job: Job,
        /// The armed flip.
        armed: Armed,
    },
    /// Confirmed: removes what is kube-proxy's. There is no way back from here by itself.
    Confirming {
        /// The work.
        job: Job,
        /// Addresses that must answer.
        baseline: Vec<SocketAddr>,
    },
    /// The node is on our table for good.
    Moved {
        /// The work.
        job: Job,
        /// What is not as it should be although the node is moved, and needs a person.
        trouble: Option<String>,
        /// Whether the server has heard it.
        told: bool,
    },
    /// Makes the table dormant. It may be so already.
    Reverting {
        /// The work.
        job: Job,
        /// What went wrong.
        why: String,
    },
    /// Over, without success.
    Ended {
        /// The work.
        job: Job,
        /// How.
        end: End,
        /// Whether the server has heard it.
        told: bool,
    },
}

impl Position {
    /// The position's name, as in the ledger.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Preflight { .. } => "preflight",
            Self::Loading { .. } => "loading",
            Self::Flipping { .. } => "flipping",
            Self::Verifying { .. } => "verifying",
            Self::Soaking { .. } => "soaking",
            Self::Confirming { .. } => "confirming",
            Self::Moved { .. } => "moved",
            Self::Reverting { .. } => "reverting",
            Self::Ended { .. } => "ended",
        }
    }

    /// The work, if there is or was any.
    pub fn job(&self) -> Option<&Job> {
        match self {
            Self::Idle => None,
            Self::Preflight { job }
            | Self::Loading { job, .. }
            | Self::Flipping { job, .. }
            | Self::Verifying { job, .. }
            | Self::Soaking { job, .. }
            | Self::Confirming { job, .. }
            | Self::Moved { job, .. }
            | Self::Reverting { job, .. }
            | Self::Ended { job, .. } => Some(job),
        }
    }

    /// The flip that waits for its confirmation, if there is one.
    pub fn armed(&self) -> Option<&Armed> {
        match self {
            Self::Flipping { armed, .. } | Self::Verifying { armed, .. } | Self::Soaking { armed, .. } => Some(armed),
            _ => None,
        }
    }

    /// Whether the table must be active whatever else happens: a node that was moved stays moved over restarts.
    pub fn is_moved(&self) -> bool {
        matches!(self, Self::Confirming { .. } | Self::Moved { .. })
    }

    /// What to tell the server of this position; none when it knows or need not know.
    pub fn progress(&self) -> Option<ProgressReport> {
        match self {
            Self::Moved { told: true, .. } | Self::Ended { told: true, .. } => None,
            _ => self.progress_untold(),
        }
    }

    /// What to tell the server of this position if it did not know.
    pub fn progress_untold(&self) -> Option<ProgressReport> {
        let (kind, reasons) = match self {
            Self::Idle | Self::Confirming { .. } => return None,
            Self::Preflight { .. } => (ProgressKind::Preflight, vec![]),
            Self::Loading { .. } => (ProgressKind::Applying, vec![]),
            Self::Flipping { .. } | Self::Verifying { .. } => (ProgressKind::Verifying, vec![]),
            Self::Soaking { .. } => (ProgressKind::Soaking, vec![]),
            Self::Moved { trouble: None, .. } => (ProgressKind::Confirmed, vec![]),
            Self::Reverting { .. } => (ProgressKind::Reverting, vec![]),
            Self::Ended {
                end: End::Rejected(blockers),
                ..
            } => (ProgressKind::Rejected, blockers.clone()),
            Self::Ended {
                end: End::Reverted(why),
                ..
            } => (ProgressKind::Reverted, vec![why.clone()]),
            Self::Moved { trouble: Some(why), .. }
            | Self::Ended {
                end: End::NeedsAttention(why),
                ..
            } => (ProgressKind::NeedsAttention, vec![why.clone()]),
        };
        let job = self.job()?;
        Some(ProgressReport {
            task_id: job.task,
            attempt: job.attempt,
            progress: kind,
            reasons,
        })
    }

    /// The same, once the server has heard it.
    #[must_use]
    pub fn after_telling(self) -> Self {
        match self {
            Self::Moved { job, trouble, .. } => Self::Moved {
                job,
                trouble,
                told: true,
            },
            Self::Ended { job, end, .. } => Self::Ended { job, end, told: true },
            other => other,
        }
    }
}
