//! Which virtual services are kube-proxy's.
//!
//! kube-proxy marks nothing as its own, and itself deletes every virtual service that it does not know, but for those in
//! `--ipvs-exclude-cidrs`. We are told what the API knows, and take for kube-proxy's what it alone can have made. All else
//! is foreign and stays.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nftfleet_domain::service::{Family, Protocol, Vip};

use super::service::{Frontend, VirtualService};
use crate::dataplane::Desired;

/// What is known of the cluster's Services and of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Every VIP of the API's Services.
    pub vips: BTreeSet<Vip>,
    /// Every node port of the API's Services.
    pub node_ports: BTreeSet<(Protocol, u16)>,
    /// The node's own addresses, as [`crate::node_addresses::list`] gives them: kube-proxy opens node ports on all of them.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The address from which the node's own processes are to connect to Services in IPv4.
    pub source4: Option<Ipv4Addr>,
    /// The same in IPv6.
    pub source6: Option<Ipv6Addr>,
}

/// Virtual services by their owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// kube-proxy's.
    pub kube_proxys: Vec<VirtualService>,
    /// Everybody else's.
    pub foreign: Vec<VirtualService>,
}

impl Known {
    /// From what our table should hold. A node port is a VIP at one of the addresses on which node ports listen; `sources`
    /// are the node's addresses as the Node object names them, of which the first of each family is used.
    pub fn of(desired: &Desired, node_addresses: BTreeSet<IpAddr>, sources: &[IpAddr]) -> Self {
        let vips: BTreeSet<Vip> = desired.frontends.keys().copied().collect();
        let node_ports = vips.iter().filter(|vip| desired.nodeport_ips.contains(&vip.address));
        Self {
            node_ports: node_ports.map(|vip| (vip.protocol, vip.port)).collect(),
            vips,
            node_addresses,
            source4: sources.iter().find_map(|address| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            }),
            source6: sources.iter().find_map(|address| match address {
                IpAddr::V6(address) => Some(*address),
                IpAddr::V4(_) => None,
            }),
        }
    }

    /// From where the node's own processes are to connect in this family.
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.source4.map(IpAddr::V4),
            Family::V6 => self.source6.map(IpAddr::V6),
        }
    }

    /// Sorts virtual services by their owner. `on_interface` are the addresses of `kube-ipvs0`.
    ///
    /// kube-proxy's are those whose address is on `kube-ipvs0`; those at a VIP of the API's (kube-proxy makes just that one,
    /// and there can be no second); and those at an address of the node whose port is a node port of the API's. A firewall
    /// mark is never kube-proxy's.
    pub fn sort(&self, services: impl IntoIterator<Item = VirtualService>, on_interface: &BTreeSet<IpAddr>) -> Sorted {
        let is_kube_proxys = |service: &VirtualService| match service.frontend {
            Frontend::Mark { .. } => false,
            Frontend::Vip(vip) => {
                let is_node_port =
                    self.node_addresses.contains(&vip.address) && self.node_ports.contains(&(vip.protocol, vip.port));
                on_interface.contains(&vip.address) || self.vips.contains(&vip) || is_node_port
            }
        };
        let (kube_proxys, foreign) = services.into_iter().partition(is_kube_proxys);
        Sorted { kube_proxys, foreign }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn vip(address: &str, protocol: Protocol, port: u16) -> Vip {
        Vip {
            address: ip(address),
            protocol,
            port,
        }
    }

    fn service(frontend: Frontend) -> VirtualService {
        VirtualService {
            frontend,
            scheduler: "rr".to_owned(),
            flags: 0,
            timeout: 0,
        }
    }

    #[test]
    fn only_what_kube_proxy_can_have_made_is_its_own() {
        let known = Known {
            vips: [vip("203.0.113.1", Protocol::Tcp, 443)].into(),
            node_ports: [(Protocol::Tcp, 30080)].into(),
            node_addresses: [ip("192.0.2.1"), ip("172.17.0.1")].into(),
            ..Known::default()
        };
        let own = [
            vip("10.96.0.9", Protocol::Tcp, 80),
            vip("10.96.0.9", Protocol::Udp, 53),
            vip("203.0.113.1", Protocol::Tcp, 443),
            vip("192.0.2.1", Protocol::Tcp, 30080),
            vip("172.17.0.1", Protocol::Tcp, 30080),
        ];
        let foreign = [
            // Another port, or another protocol, of a VIP that is not on the interface.
            vip("203.0.113.1", Protocol::Tcp, 80),
            vip("203.0.113.1", Protocol::Udp, 443),
            vip("192.0.2.1", Protocol::Udp, 30080),
            vip("192.0.2.1", Protocol::Tcp, 30081),
            vip("198.51.100.1", Protocol::Tcp, 30080),
        ];
        let mark = Frontend::Mark {
            family: Family::V4,
            mark: 7,
        };
        let all = own.iter().chain(&foreign).map(|vip| Frontend::Vip(*vip)).chain([mark]);
        let sorted = known.sort(all.map(service), &[ip("10.96.0.9")].into());
        let frontends = |services: &[VirtualService]| services.iter().map(|s| s.frontend).collect::<Vec<_>>();
        assert_eq!(frontends(&sorted.kube_proxys), own.map(Frontend::Vip));
        let mut strangers = foreign.map(Frontend::Vip).to_vec();
        strangers.push(mark);
        assert_eq!(frontends(&sorted.foreign), strangers);
    }
}
