//! What kube-proxy left behind beside the mode that it works in.

use super::Finding;
use crate::inventory::Report;
use crate::readiness::{Reason, left_overs};

/// A warning if there is something. It is not in the way of a move: our table decides before it, and what is kube-proxy's goes
/// once the move is confirmed.
pub fn check(report: &Report) -> Finding {
    let found = left_overs(&report.proxy);
    if found.is_empty() {
        return Finding::Clear;
    }
    Finding::Warning(Reason::new(
        "proxy-left-overs",
        format!("an earlier mode of kube-proxy's left behind: {}", found.join("; ")),
        "nothing to do: a confirmed move removes what is kube-proxy's",
    ))
}
