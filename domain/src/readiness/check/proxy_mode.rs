//! The move must know where it comes from.

use super::Finding;
use crate::inventory::Report;
use crate::readiness::{ProxyMode, Reason};

/// Clear for the modes that a node can be moved from, and for nodes that are there already.
pub fn check(report: &Report) -> Finding {
    let unsupported = |what: &str, remedy: &str| {
        Finding::Blocker(Reason::new(
            "proxy-mode-unsupported",
            format!("the node's Service proxy is {what}"),
            remedy,
        ))
    };
    match ProxyMode::told_by(&report.proxy) {
        ProxyMode::IptablesLegacy | ProxyMode::IptablesNft | ProxyMode::Nftfleet => Finding::Clear,
        ProxyMode::Ipvs => unsupported(
            "kube-proxy in IPVS mode",
            "moves from IPVS are not built yet: wait for a release",
        ),
        ProxyMode::KubeProxyNftables => unsupported(
            "kube-proxy in nftables mode",
            "nothing to do: the node is on nftables already",
        ),
        ProxyMode::None => unsupported(
            "none that is known",
            "check that kube-proxy runs; with Cilium, Dataplane V2 or kube-router there is nothing to move",
        ),
        ProxyMode::Ambiguous(signs) => Finding::Blocker(Reason::new(
            "proxy-mode-ambiguous",
            format!("there are signs of more than one Service proxy: {signs}"),
            "remove what an earlier mode left behind, for example with `kube-proxy --cleanup`",
        )),
        ProxyMode::Unknown(why) => Finding::CannotTell(Reason::new(
            "proxy-mode-unknown",
            why,
            "look at the agent's log on the node; it needs the iptables packages of both backends",
        )),
    }
}
