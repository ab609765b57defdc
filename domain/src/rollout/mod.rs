//! Rollouts: an immutable plan, a snapshot of where it stands, and the pure `tick` that decides what comes next.

pub mod gate;
pub mod plan;
pub mod snapshot;
pub mod tick;

pub use gate::Gate;
pub use plan::{
    Action, Fault, Member, Plan, PlanRequest, PlannedStage, ProbeTarget, Settings, StageRequest, StageSize,
};
pub use snapshot::{Hold, Request, RolloutState, Snapshot, StageSnapshot, StageState, TaskSnapshot, Underway};
pub use tick::{Command, Tick, tick};
