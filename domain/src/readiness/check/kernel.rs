//! The kernel must be able to hold the table.

use super::Finding;
use crate::inventory::{Fact, Report, Version};
use crate::readiness::Reason;

/// The oldest kernel on which kube-proxy's nftables mode starts (its own check, Kubernetes 1.36); nftables' concatenated
/// keys and reject in prerouting, which we need too, are older (5.6.9, 5.9).
pub const OLDEST_KERNEL: Version = Version::new(5, 13, 0);

/// Blocks kernels older than [`OLDEST_KERNEL`].
pub fn check(report: &Report) -> Finding {
    match &report.kernel {
        Fact::Known(kernel) if kernel.version >= OLDEST_KERNEL => Finding::Clear,
        Fact::Known(kernel) => Finding::Blocker(Reason::new(
            "kernel-too-old",
            format!("the kernel is {}, at least {OLDEST_KERNEL} is needed", kernel.release),
            "upgrade the node's kernel or replace the node's image",
        )),
        Fact::Missing(why) => Finding::CannotTell(Reason::new(
            "kernel-unknown",
            format!("the kernel's release could not be read: {why}"),
            "look at the agent's log on the node",
        )),
    }
}
