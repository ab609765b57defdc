//! kube-proxy's iptables mode, as it finds itself on a node: the same chains, names, order and comments; and its nftables
//! mode, in [`nftables`].
//!
//! The rules are written from the same objects that the API simulator holds and loaded by the real `iptables-restore`,
//! so they carry packets, and a move of the data plane begins from what a real node has. Shape: Kubernetes 1.30 to
//! 1.36, pkg/proxy/iptables/proxier.go.
//!
//! [`KubeProxy`] is a kube-proxy that lives: it writes these rules whenever something changes, and can be stopped.
//! [`install_ipvs`] writes its IPVS mode.
//!
//! Not written: session affinity, load balancers and their source ranges, external IPs, traffic policy Local, health
//! check ports.

mod answers;
mod chain;
mod ipvs;
mod live;
mod neighbours;
pub mod nftables;
mod ports;
mod rules;

use serde_json::Value;

pub use live::{KubeProxy, Mode};
pub use nftables::{install_nftables, remove_nftables};

use crate::netns::Netns;
pub use ipvs::{has_ipvs_link, install_ipvs, virtual_service_list};
use ports::ServicePort;

/// Which kernel interface `iptables` speaks to on a node. Both can hold rules at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// `x_tables`: `iptables-legacy`.
    Legacy,
    /// `nf_tables`: `iptables-nft`; its tables are seen by `nft` as `ip nat`, `ip filter` and so on.
    Nft,
}

/// An address family: kube-proxy writes each one's rules apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4, `iptables`.
    V4,
    /// IPv6, `ip6tables`.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn contains(self, address: &str) -> bool {
        address.contains(':') == (self == Self::V6)
    }

    fn cluster_cidr(self) -> &'static str {
        match self {
            Self::V4 => crate::lab::CLUSTER_CIDR4,
            Self::V6 => crate::lab::CLUSTER_CIDR6,
        }
    }

    /// The mask of a single address.
    fn full(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// Writes kube-proxy's rules for these Services and `EndpointSlices` (other objects are ignored), or brings the
/// rules up to date if they are there: stale chains go, other owners' rules stay. Panics with what the program said when it refuses.
pub fn install(netns: &Netns, backend: Backend, objects: &[Value], families: &[Family]) {
    for family in families {
        let existing = save(netns, backend, *family);
        restore(netns, backend, *family, &rules(objects, *family, &existing));
    }
}

/// kube-proxy's rules for these objects as input for `iptables-restore --noflush`. `existing` is what
/// `iptables-save` printed before (`""` on a fresh node): jumps that are there are not repeated, and chains that nobody needs are deleted.
pub fn rules(objects: &[Value], family: Family, existing: &str) -> String {
    rules::write(&ServicePort::all(objects, family), family, existing)
}

/// kubelet's own chains, which tell nothing about the service proxy and must survive every move.
pub fn install_kubelet(netns: &Netns, backend: Backend, families: &[Family]) {
    for family in families {
        restore(netns, backend, *family, &neighbours::kubelet(*family));
    }
}

/// Rules of others that live next to kube-proxy's: Docker's, a CNI's host ports, and one of the site's own.
pub fn install_foreign(netns: &Netns, backend: Backend, families: &[Family]) {
    for family in families {
        restore(netns, backend, *family, &neighbours::foreign(*family));
    }
}

/// firewalld's table, with a zone that trusts everyone.
pub fn install_firewalld(netns: &Netns) {
    netns.pipe("nft", &["-f", "-"], neighbours::FIREWALLD);
}

/// All rules that this backend holds in the namespace, as `iptables-save` prints them, without counters.
pub fn save(netns: &Netns, backend: Backend, family: Family) -> String {
    netns.pipe(&program(backend, family, "save"), &[], "")
}

fn restore(netns: &Netns, backend: Backend, family: Family, input: &str) {
    // The lock is one file for all namespaces: parallel labs wait for each other.
    netns.pipe(
        &program(backend, family, "restore"),
        &["--noflush", "--wait", "30"],
        input,
    );
}

fn program(backend: Backend, family: Family, verb: &str) -> String {
    let tool = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    match backend {
        Backend::Legacy => format!("{tool}-legacy-{verb}"),
        Backend::Nft => format!("{tool}-nft-{verb}"),
    }
}
