//! A node that has not spoken may have changed since.

use jiff::Timestamp;

use super::Finding;
use crate::readiness::{Policy, Reason};

/// Cannot tell when the node was silent for longer than the policy allows.
pub fn check(last_seen_at: Timestamp, policy: &Policy, now: Timestamp) -> Finding {
    if now.duration_since(last_seen_at) <= policy.max_silence {
        Finding::Clear
    } else {
        Finding::CannotTell(Reason::new(
            "silent",
            format!("the agent was last heard of at {last_seen_at}"),
            "check that the agent runs on the node and reaches the server",
        ))
    }
}
