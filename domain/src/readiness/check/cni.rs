//! Some network plugins must change together with the Service proxy.

use super::Finding;
use crate::inventory::{Fact, Report};
use crate::readiness::Reason;

/// Blocks Calico: its own data plane and the Service proxy must both be nftables (Calico 3.29 and later), which is a move
/// of the whole cluster at once and not of single nodes.
pub fn check(report: &Report) -> Finding {
    match &report.cni {
        Fact::Known(plugins) if plugins.iter().any(|p| p == "calico") => Finding::Blocker(Reason::new(
            "cni-lock-step",
            "Calico's data plane and the Service proxy must change together, cluster by cluster".to_owned(),
            "moves of whole clusters in lock-step are not built yet: wait for a release",
        )),
        Fact::Known(_) => Finding::Clear,
        Fact::Missing(why) => Finding::CannotTell(Reason::new(
            "cni-unknown",
            format!("the network plugin could not be told: {why}"),
            "mount /etc/cni/net.d of the node into the agent's pod",
        )),
    }
}
