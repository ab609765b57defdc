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
        ProxyMode::IptablesLegacy
        | ProxyMode::IptablesNft
        | ProxyMode::IptablesBoth
        | ProxyMode::Ipvs
        | ProxyMode::KubeProxyNftables
        | ProxyMode::Nftfleet => Finding::Clear,
        ProxyMode::Other(name) => unsupported(
            &name,
            "leave the node as it is: only kube-proxy's Services can be taken over; if that project is gone from the node, \
             delete its links (`ip link delete`) or reboot",
        ),
        ProxyMode::None => unsupported(
            "none that is known",
            "check that kube-proxy runs and has Services to serve",
        ),
        ProxyMode::Ambiguous(signs) => Finding::Blocker(Reason::new(
            "proxy-mode-ambiguous",
            format!("more than one Service proxy is at work, and kube-proxy does not say which is its: {signs}"),
            "let kube-proxy answer at its metrics address (the agent's --kube-proxy-metrics), or remove what an earlier mode left \
             behind, for example with `kube-proxy --cleanup`",
        )),
        ProxyMode::Unknown(why) => Finding::CannotTell(Reason::new(
            "proxy-mode-unknown",
            why,
            "look at the agent's and kube-proxy's logs on the node; the agent needs the iptables packages of both backends, and \
             kube-proxy may be changing its mode",
        )),
    }
}
