//! The gate at the end of a stage: may the next one open?

use jiff::{SignedDuration, Timestamp};

use super::snapshot::{Hold, Snapshot, StageSnapshot, StageState, TaskSnapshot};

/// What stands at the end of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The stage is done.
    Open,
    /// All its nodes have ended; its soak begins.
    Soak,
    /// Not yet, and why.
    Waiting(Vec<Hold>),
    /// No further node may be tried.
    Halt {
        /// How many ended otherwise than wanted.
        failures: u32,
    },
}

impl Gate {
    /// Judges `stage`. Failures count over the whole rollout: a bad canary counts in the last stage too.
    pub fn of(stage: &StageSnapshot, snapshot: &Snapshot, now: Timestamp) -> Self {
        let failed = snapshot.tasks.iter().filter(|t| t.state.is_failure()).count();
        let failures = u32::try_from(failed).unwrap_or(u32::MAX);
        if failures > snapshot.settings.max_failures {
            return Self::Halt { failures };
        }
        if members(stage, snapshot).any(|t| !t.state.is_ended()) {
            return Self::Waiting(vec![]);
        }
        let soak = SignedDuration::from_secs(i64::from(snapshot.settings.stage_soak_seconds));
        match stage.state {
            StageState::Soaking => {
                let until = stage.since.saturating_add(soak).unwrap_or(Timestamp::MAX);
                if now >= until {
                    Self::Open
                } else {
                    Self::Waiting(vec![Hold::StageSoak { until }])
                }
            }
            _ if soak.is_zero() => Self::Open,
            _ => Self::Soak,
        }
    }
}

/// The tasks of `stage`.
fn members<'a>(stage: &StageSnapshot, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a TaskSnapshot> {
    let ordinal = stage.ordinal;
    snapshot.tasks.iter().filter(move |t| t.stage == ordinal)
}
