//! The JSON bodies. Unknown fields are refused; names are camelCase; times are RFC 3339 in UTC.

mod agent;
mod cluster;
mod node;
mod report;
mod rollout;

pub use agent::{
    Assignment, Enrolled, Enrolment, ProgressKind, ProgressReport, ReportAccepted, ReportSubmission, Wanted, Work,
};
pub use cluster::{Cluster, ClusterPage, EnrolmentToken, NewCluster, NewEnrolmentToken};
pub use node::{Agent, AgentPage, Node, NodePage, ProxyMode, Readiness, ReadinessReason, Verdict};
pub use report::{Fact, IptablesEvidence, KernelRelease, OsRelease, ProxyEvidence, Report, TableState, Version};
pub use rollout::{
    AbortRequest, AbortUnderway, Hold, NewRollout, PauseRequest, PlannedNode, PlannedStage, Probe, ResumeRequest,
    Rollout, RolloutAction, RolloutPage, RolloutPlan, RolloutSettings, RolloutState, Stage, StageSize, StageSpec,
    StageState, StartRequest, Task, TaskEvent, TaskPage,
};
