//! Where a node's move stands. It is written to the ledger before every step, so that a restart at any point goes on from
//! there; every step may be repeated.

use std::net::SocketAddr;

use jiff::Timestamp;
use nftfleet_domain::rollout::ProbeTarget;
use nftfleet_web_api_spec::types::{ProgressKind, ProgressReport, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::probe::Answered;

/// Who wants the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The server, who confirms or takes back.
    #[default]
    Server,
    /// A person on the node. The agent confirms by itself when the probe has passed for so long.
    Person {
        /// In seconds after the flip.
        hold_seconds: u32,
    },
}

/// The piece of work that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The server's task, or a number made here for a person's.
    pub task: Uuid,
    /// Which try of it.
    pub attempt: u32,
    /// Who wants it.
    #[serde(default)]
    pub by: By,
    /// The dead-man's switch, in seconds after the flip.
    pub confirm_within_seconds: u32,
    /// What the probe connects to.
    pub probe: Vec<ProbeTarget>,
}

impl Job {
    /// Whether this is the work of the assignment.
    pub fn is(&self, work: &Work) -> bool {
        self.by == By::Server && self.task == work.task_id && self.attempt == work.attempt
    }
}

impl From<&Work> for Job {
    fn from(work: &Work) -> Self {
        Self {
            task: work.task_id,
            attempt: work.attempt,
            by: By::Server,
            confirm_within_seconds: work.confirm_within_seconds,
            probe: work.probe.iter().cloned().map(Into::into).collect(),
        }
    }
}

/// A flip that waits for its confirmation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// What answered through the old rules, and must answer through ours.
    pub baseline: Vec<Answered>,
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
    /// Keeps a copy of the old rules beside the ledger.
    Snapshotting {
        /// The work.
        job: Job,
        /// What answered through the old rules.
        baseline: Vec<Answered>,
    },
    /// Loads the table dormant and reads it back.
    Loading {
        /// The work.
        job: Job,
        /// What answered through the old rules.
        baseline: Vec<Answered>,
    },
    /// Asks of the dormant table what would become of the probe's connections, and tries the endpoints that it names.
    Rehearsing {
        /// The work.
        job: Job,
        /// What answered through the old rules.
        baseline: Vec<Answered>,
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
    /// The probe passed and goes on; waits for the confirmation. The old rules stand by, and kube-proxy keeps them up to date.
    Soaking {
        /// The work.
        job: Job,
        /// The armed flip.
        armed: Armed,
    },
    /// Confirmed: kube-proxy is told to leave the node, and has not gone yet.
    Parking {
        /// The work.
        job: Job,
        /// What must answer.
        baseline: Vec<Answered>,
        /// When it is given up; none until it has begun.
        until: Option<Timestamp>,
    },
    /// kube-proxy has gone. Its rules still stand by for a while, and the probe goes on.
    StandingBy {
        /// The work.
        job: Job,
        /// What must answer.
        baseline: Vec<Answered>,
        /// When the old rules go.
        until: Timestamp,
    },
    /// Removes what is kube-proxy's.
    Confirming {
        /// The work.
        job: Job,
        /// What must answer.
        baseline: Vec<Answered>,
        /// Until when connections through IPVS are waited for; none until they are.
        #[serde(default)]
        until: Option<Timestamp>,
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
    /// kube-proxy is let in again; the table stays active until the old rules are seen to be in sync.
    Returning {
        /// The work.
        job: Job,
        /// Why it goes back.
        why: String,
    },
    /// Makes the table dormant. It may be so already.
    Reverting {
        /// The work.
        job: Job,
        /// What went wrong.
        why: String,
        /// Whether kube-proxy may have been sent away, and has to be let in again.
        #[serde(default)]
        let_in: bool,
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
            Self::Snapshotting { .. } => "snapshotting",
            Self::Loading { .. } => "loading",
            Self::Rehearsing { .. } => "rehearsing",
            Self::Flipping { .. } => "flipping",
            Self::Verifying { .. } => "verifying",
            Self::Soaking { .. } => "soaking",
            Self::Parking { .. } => "parking",
            Self::StandingBy { .. } => "standing_by",
            Self::Confirming { .. } => "confirming",
            Self::Moved { .. } => "moved",
            Self::Returning { .. } => "returning",
            Self::Reverting { .. } => "reverting",
            Self::Ended { .. } => "ended",
        }
    }

    /// The work, if there is or was any.
    pub fn job(&self) -> Option<&Job> {
        match self {
            Self::Idle => None,
            Self::Preflight { job }
            | Self::Snapshotting { job, .. }
            | Self::Loading { job, .. }
            | Self::Rehearsing { job, .. }
            | Self::Flipping { job, .. }
            | Self::Verifying { job, .. }
            | Self::Soaking { job, .. }
            | Self::Parking { job, .. }
            | Self::StandingBy { job, .. }
            | Self::Confirming { job, .. }
            | Self::Moved { job, .. }
            | Self::Returning { job, .. }
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

    /// Whether the table must be active whatever else happens: a node that was moved stays moved over restarts, and one that
    /// returns is moved until the old rules are in sync.
    pub fn is_moved(&self) -> bool {
        matches!(
            self,
            Self::Parking { .. }
                | Self::StandingBy { .. }
                | Self::Confirming { .. }
                | Self::Moved { .. }
                | Self::Returning { .. }
        )
    }

    /// Whether its step may be given up where it waits. The others write to the kernel, or to kube-proxy's rules.
    pub fn is_interruptible(&self) -> bool {
        matches!(
            self,
            Self::Preflight { .. }
                | Self::Verifying { .. }
                | Self::Soaking { .. }
                | Self::Parking { .. }
                | Self::StandingBy { .. }
        )
    }

    /// Why it goes or went back, was refused or needs a person; in words.
    pub fn why(&self) -> Option<String> {
        match self {
            Self::Returning { why, .. } | Self::Reverting { why, .. } => Some(why.clone()),
            Self::Moved { trouble, .. } => trouble.clone(),
            Self::Ended { end, .. } => Some(match end {
                End::Rejected(blockers) => blockers.join("; "),
                End::Reverted(why) | End::NeedsAttention(why) => why.clone(),
            }),
            _ => None,
        }
    }

    /// Whether nothing is under way.
    pub fn is_at_rest(&self) -> bool {
        matches!(self, Self::Idle | Self::Moved { .. } | Self::Ended { .. })
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
        let job = self.job().filter(|job| job.by == By::Server)?;
        let (kind, reasons) = match self {
            // The server has said the word for the first three itself, and learns of the last when it is over.
            Self::Idle
            | Self::Parking { .. }
            | Self::StandingBy { .. }
            | Self::Confirming { .. }
            | Self::Returning { .. } => return None,
            Self::Preflight { .. } => (ProgressKind::Preflight, vec![]),
            Self::Snapshotting { .. } | Self::Loading { .. } | Self::Rehearsing { .. } => {
                (ProgressKind::Applying, vec![])
            }
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

    /// Whether whoever wants the work must still hear of this end. A person asks by `status`.
    pub fn is_untold(&self) -> bool {
        matches!(self, Self::Moved { told: false, .. } | Self::Ended { told: false, .. })
            && self.job().is_some_and(|job| job.by == By::Server)
    }

    /// Addresses that must answer, if any.
    pub fn baseline(&self) -> &[Answered] {
        match self {
            Self::Snapshotting { baseline, .. }
            | Self::Loading { baseline, .. }
            | Self::Rehearsing { baseline, .. }
            | Self::Parking { baseline, .. }
            | Self::StandingBy { baseline, .. }
            | Self::Confirming { baseline, .. } => baseline,
            other => other.armed().map_or(&[], |armed| &armed.baseline),
        }
    }

    /// The addresses of the baseline.
    pub fn probed(&self) -> Vec<SocketAddr> {
        self.baseline().iter().map(|answered| answered.address).collect()
    }
}
