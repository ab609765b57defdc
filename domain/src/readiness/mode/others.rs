//! Service proxies of other projects, told by the links that they make.

use crate::inventory::ProxyEvidence;

/// A link that only one project makes.
struct Sign {
    link: &'static str,
    project: &'static str,
    /// Whether it answers for Services although kube-proxy runs too: then a move of kube-proxy's part alone would be half a
    /// move.
    beside_kube_proxy: bool,
}

/// The links. A network plugin's link is a sign if the plugin has a Service proxy of its own.
const SIGNS: [Sign; 7] = [
    Sign {
        link: "cilium_host",
        project: "Cilium",
        beside_kube_proxy: true,
    },
    Sign {
        link: "cilium_net",
        project: "Cilium",
        beside_kube_proxy: true,
    },
    // Made by its Service proxy alone, not by its router.
    Sign {
        link: "kube-dummy-if",
        project: "kube-router",
        beside_kube_proxy: true,
    },
    Sign {
        link: "ovn-k8s-mp0",
        project: "OVN-Kubernetes",
        beside_kube_proxy: true,
    },
    // Of its eBPF data plane.
    Sign {
        link: "bpfin.cali",
        project: "Calico's eBPF data plane",
        beside_kube_proxy: true,
    },
    Sign {
        link: "bpfout.cali",
        project: "Calico's eBPF data plane",
        beside_kube_proxy: true,
    },
    // It answers pods in OVS and leaves the node's own and outside connections to kube-proxy, in any mode, unless told to
    // do all.
    Sign {
        link: "antrea-gw0",
        project: "Antrea",
        beside_kube_proxy: false,
    },
];

/// The project whose Service proxy makes this link, if one is known to.
pub fn owner_of_link(link: &str) -> Option<&'static str> {
    SIGNS.iter().find(|sign| sign.link == link).map(|sign| sign.project)
}

/// The names of the projects that answer for Services, none if there is none.
pub(super) fn in_charge(evidence: &ProxyEvidence, kube_proxy_at_work: bool) -> Option<String> {
    let links = evidence.foreign_links.known()?;
    let mut projects: Vec<&str> = SIGNS
        .iter()
        .filter(|sign| sign.beside_kube_proxy || !kube_proxy_at_work)
        .filter(|sign| links.iter().any(|link| link == sign.link))
        .map(|sign| sign.project)
        .collect();
    projects.dedup();
    (!projects.is_empty()).then(|| projects.join(" and "))
}
