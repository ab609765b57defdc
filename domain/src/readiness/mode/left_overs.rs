//! What kube-proxy has left behind on a node beside the mode that it works in.

use super::{Kind, ProxyMode};
use crate::inventory::{IptablesEvidence, ProxyEvidence};

/// Things of kube-proxy's that are not those of the mode at work, each in words. None where the mode can't be told, and none
/// where our table answers: there the old rules stand by.
pub fn left_overs(evidence: &ProxyEvidence) -> Vec<String> {
    let mode = ProxyMode::told_by(evidence);
    let kind = mode.kind();
    if kind.is_none() && mode != ProxyMode::None {
        return vec![];
    }
    let mut found = Vec::new();
    for (name, backend) in [
        ("iptables-legacy", &evidence.iptables_legacy),
        ("iptables-nft", &evidence.iptables_nft),
    ] {
        let Some(rules) = backend.known().filter(|rules| rules.is_present()) else {
            continue;
        };
        let is_of_the_mode = match kind {
            Some(Kind::Iptables) => rules.is_at_work(),
            Some(Kind::Ipvs) => is_of_ipvs(rules),
            _ => false,
        };
        if !is_of_the_mode {
            let of = if is_of_ipvs(rules) { "IPVS" } else { "iptables" };
            found.push(format!("rules of its {of} mode in {name}"));
        }
    }
    if kind != Some(Kind::Ipvs) && evidence.ipvs_link.known() == Some(&true) {
        found.push("the link kube-ipvs0".to_owned());
    }
    // In its nftables mode kube-proxy has a table for each family that the node can, with Services in it or without.
    if let Some(tables) = evidence.kube_proxy_tables.known()
        && kind != Some(Kind::Nftables)
        && !tables.is_empty()
    {
        found.push(format!("the nftables tables {}", tables.join(" and ")));
    }
    found
}

/// Whether these are the rules that kube-proxy's IPVS mode writes: none leads to a Service's chain.
fn is_of_ipvs(rules: &IptablesEvidence) -> bool {
    rules.ipset_rules > 0 && rules.service_chains == 0
}
