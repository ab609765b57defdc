//! A report from before the node's last move tells of another node than the one that is there now.

use super::Finding;
use crate::readiness::{Reason, Reported};

/// Cannot tell when work on the node ended after its newest report.
pub fn check(reported: &Reported) -> Finding {
    match reported.moved_at {
        Some(moved_at) if moved_at >= reported.reported_at => Finding::CannotTell(Reason::new(
            "report-outdated",
            format!(
                "work on the node ended at {moved_at}, after its newest report of {}",
                reported.reported_at
            ),
            "nothing to do: the agent reports by itself",
        )),
        _ => Finding::Clear,
    }
}
