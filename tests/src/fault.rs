//! Faults that a lab can put into a node.

use std::net::Ipv4Addr;

use crate::kube_proxy::Backend;
use crate::netns::Netns;

/// The masquerade bit that clashes with [`drop_marked`], for the agent's `NFTFLEET_MASQUERADE_BIT`.
pub const CLASHING_BIT: &str = "15";

/// Makes a node drop its own packets with mark 0x8000, as kubelet before Kubernetes 1.29 does: a rule in its chain
/// KUBE-FIREWALL. An agent that is told to masquerade by that very bit ([`CLASHING_BIT`]) breaks the node's own connections
/// to Services once its table is active, and its probe finds out. Through kube-proxy's rules, and for connections that the
/// node only forwards, nothing changes. kubelet's chains must be installed in this backend.
pub fn drop_marked(node: &Netns, backend: Backend) {
    drop_marked_to(node, backend, None);
}

/// The same for connections to this address alone.
pub fn drop_marked_to(node: &Netns, backend: Backend, address: Option<Ipv4Addr>) {
    let program = match backend {
        Backend::Legacy => "iptables-legacy",
        Backend::Nft => "iptables-nft",
    };
    let comment = "kubernetes firewall for dropping marked packets";
    let rule = [
        "-A",
        "KUBE-FIREWALL",
        "-m",
        "comment",
        "--comment",
        comment,
        "-m",
        "mark",
        "--mark",
        "0x8000/0x8000",
        "-j",
        "DROP",
    ];
    let address = address.map(|address| address.to_string());
    let to = address.iter().flat_map(|to| ["-m", "conntrack", "--ctorigdst", to]);
    let rule: Vec<&str> = rule[..2]
        .iter()
        .copied()
        .chain(to)
        .chain(rule[2..].iter().copied())
        .collect();
    node.pipe(program, &rule, "");
}
