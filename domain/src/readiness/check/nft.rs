//! A person must be able to read the table at night with the node's own `nft`.

use super::Finding;
use crate::inventory::{Fact, Report, Version};
use crate::readiness::Reason;

/// Readers up to 0.9.8 crash on rules of newer writers (kubernetes/kubernetes#122743); kube-proxy asks for 1.0.1.
pub const OLDEST_NFT: Version = Version::new(1, 0, 1);

/// Blocks an `nft` that would crash on our table.
pub fn check(report: &Report) -> Finding {
    match &report.nft {
        Fact::Known(version) if *version >= OLDEST_NFT => Finding::Clear,
        Fact::Known(version) => Finding::Blocker(Reason::new(
            "nft-too-old",
            format!("nft is {version}, and readers before {OLDEST_NFT} can crash on newer tables"),
            "upgrade the nftables package of the node",
        )),
        Fact::Missing(why) => Finding::CannotTell(Reason::new(
            "nft-unknown",
            format!("the version of nft could not be read: {why}"),
            "install the nftables package on the node, or look at the agent's log",
        )),
    }
}
