//! What may happen in the middle of a move.

/// Every step of a move that has a way back, in order.
pub const STEPS: [&str; 10] = [
    "preflight",
    "snapshotting",
    "loading",
    "rehearsing",
    "flipping",
    "verifying",
    "soaking",
    "parking",
    "standing_by",
    "confirming",
];

/// The steps back of a node that was moved.
const STEPS_BACK: [&str; 1] = ["returning"];

/// A situation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Situation {
    /// Nothing goes wrong.
    Complete,
    /// A person asks to go back while the agent is at this step.
    RollbackAt(&'static str),
    /// A person asks to go back while no agent runs: it was killed at this step.
    RollbackAloneAt(&'static str),
    /// A person asks to go back long after the move.
    RollbackWhenMoved,
    /// The same, at once: without waiting for kube-proxy.
    RollbackAtOnce,
    /// The agent is killed by SIGKILL before this step, or after its effects and before the ledger knows of them, and started
    /// again.
    KilledAt(&'static str, &'static str),
    /// The same on the way back of a node that was moved.
    KilledOnTheWayBack(&'static str, &'static str),
    /// The agent is killed by SIGKILL after the flip and nobody starts it again.
    KilledForGood,
    /// The agent has a server that does not answer.
    ServerGone,
    /// The Kubernetes API is away from the soak on, and comes back.
    ApiGone,
    /// There is no room for the ledger or the copy of the old rules.
    DiskFull,
    /// There is none from the soak on, and then there is again.
    DiskFullInTheSoak,
    /// Our table does not let the probe through.
    ProbeFailing,
    /// Somebody deletes our table in the soak.
    TableDeleted,
    /// Somebody flushes our table in the soak.
    TableFlushed,
    /// kube-proxy does not leave the node.
    KubeProxyStays,
}

impl Situation {
    /// Every situation.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Complete];
        all.extend(STEPS.map(Self::RollbackAt));
        all.extend(["loading", "verifying", "soaking"].map(Self::RollbackAloneAt));
        all.extend([Self::RollbackWhenMoved, Self::RollbackAtOnce]);
        for point in ["before", "after"] {
            all.extend(STEPS.map(|step| Self::KilledAt(step, point)));
            all.extend(STEPS_BACK.map(|step| Self::KilledOnTheWayBack(step, point)));
        }
        all.extend([
            Self::KilledForGood,
            Self::ServerGone,
            Self::ApiGone,
            Self::DiskFull,
            Self::DiskFullInTheSoak,
            Self::ProbeFailing,
            Self::TableDeleted,
            Self::TableFlushed,
            Self::KubeProxyStays,
        ]);
        all
    }

    /// Its name in words.
    pub fn name(self) -> String {
        match self {
            Self::Complete => "complete".to_owned(),
            Self::RollbackAt(step) => format!("rollback at {step}"),
            Self::RollbackAloneAt(step) => format!("rollback without an agent at {step}"),
            Self::RollbackWhenMoved => "rollback when moved".to_owned(),
            Self::RollbackAtOnce => "rollback --now when moved".to_owned(),
            Self::KilledAt(step, point) => format!("SIGKILL {point} {step}"),
            Self::KilledOnTheWayBack(step, point) => format!("SIGKILL {point} {step}, way back"),
            Self::KilledForGood => "SIGKILL after the flip, for good".to_owned(),
            Self::ServerGone => "server gone".to_owned(),
            Self::ApiGone => "API gone in the soak".to_owned(),
            Self::DiskFull => "disk full".to_owned(),
            Self::DiskFullInTheSoak => "disk full in the soak".to_owned(),
            Self::ProbeFailing => "probe failing".to_owned(),
            Self::TableDeleted => "table deleted in the soak".to_owned(),
            Self::TableFlushed => "table flushed in the soak".to_owned(),
            Self::KubeProxyStays => "kube-proxy does not leave".to_owned(),
        }
    }
}
