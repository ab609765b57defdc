//! An agent's progress, both ways.

use nftfleet_domain::assignment::{AgentPhase, Progress};

use crate::types::ProgressKind;

/// A report of progress whose reasons do not go with its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reasons must name why for REJECTED, REVERTED and NEEDS_ATTENTION, and be empty otherwise")]
pub struct BadProgress;

/// Reads progress from the wire.
///
/// # Errors
/// Reasons that are missing where they are needed, or given where there is nothing to explain.
pub fn progress_of(kind: ProgressKind, reasons: &[String]) -> Result<Progress, BadProgress> {
    let explains = matches!(
        kind,
        ProgressKind::Rejected | ProgressKind::Reverted | ProgressKind::NeedsAttention
    );
    if explains == reasons.is_empty() {
        return Err(BadProgress);
    }
    let in_phase = |phase| Progress::In { phase };
    Ok(match kind {
        ProgressKind::Preflight => in_phase(AgentPhase::Preflight),
        ProgressKind::Applying => in_phase(AgentPhase::Applying),
        ProgressKind::Verifying => in_phase(AgentPhase::Verifying),
        ProgressKind::Soaking => in_phase(AgentPhase::Soaking),
        ProgressKind::Reverting => in_phase(AgentPhase::Reverting),
        ProgressKind::Rejected => Progress::Rejected {
            blockers: reasons.to_vec(),
        },
        ProgressKind::Reverted => Progress::Reverted {
            why: reasons.join("; "),
        },
        ProgressKind::Confirmed => Progress::Confirmed,
        ProgressKind::NeedsAttention => Progress::NeedsAttention {
            why: reasons.join("; "),
        },
    })
}

/// Writes progress for the wire.
pub fn progress_to(progress: &Progress) -> (ProgressKind, Vec<String>) {
    match progress {
        Progress::In { phase } => {
            let kind = match phase {
                AgentPhase::Preflight => ProgressKind::Preflight,
                AgentPhase::Applying => ProgressKind::Applying,
                AgentPhase::Verifying => ProgressKind::Verifying,
                AgentPhase::Soaking => ProgressKind::Soaking,
                AgentPhase::Reverting => ProgressKind::Reverting,
            };
            (kind, vec![])
        }
        Progress::Rejected { blockers } => (ProgressKind::Rejected, blockers.clone()),
        Progress::Reverted { why } => (ProgressKind::Reverted, vec![why.clone()]),
        Progress::Confirmed => (ProgressKind::Confirmed, vec![]),
        Progress::NeedsAttention { why } => (ProgressKind::NeedsAttention, vec![why.clone()]),
    }
}
