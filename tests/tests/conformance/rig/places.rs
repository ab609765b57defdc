//! Who and what there is in the lab, and where it can be asked.

use std::net::IpAddr;

use nftfleet_domain::service::{Protocol, Vip};
use nftfleet_tests::backends::Backend;
use nftfleet_tests::lab::LabNode;
use nftfleet_tests::netns::Netns;
use nftfleet_tests::sctp::SctpServer;

use super::Rig;
use crate::ask::{Ask, vips};
use crate::objects::{BALANCER, Member, SITE};

impl Rig {
    /// A pod by the name of its server, `pod-K` or `backend-J`; ready, on its node.
    pub fn member(&self, identity: &str) -> Member {
        Member::new(&self.addresses(identity), &node_of(identity))
    }

    /// Some of them.
    pub fn members<const N: usize>(&self, identities: [&str; N]) -> Vec<Member> {
        identities.map(|identity| self.member(identity)).into()
    }

    pub fn node(&self) -> &LabNode {
        self.lab.node(1)
    }

    /// Who can ask: a client outside, a pod, and the node itself, whose packets take the output hook.
    pub fn everybody(&self) -> [&Netns; 3] {
        let node = self.node();
        [&node.client, &node.pod, &node.netns]
    }

    /// The addresses of `pod-K`, `backend-J`, `node-K` or `client-K`, IPv4 first.
    pub fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let (role, number) = name.split_once('-').unwrap_or_else(|| panic!("{name} has no number"));
        let number: usize = number.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
        if role == "backend" {
            let backend = self.lab.backend(number);
            return vec![backend.address4.into(), backend.address6.into()];
        }
        let node = self.lab.node(number);
        let (v4, v6) = match role {
            "pod" => (node.pod4, node.ipv6.map(|ipv6| ipv6.pod)),
            "node" => (node.address4, node.ipv6.map(|ipv6| ipv6.address)),
            "client" => (node.client4, node.ipv6.map(|ipv6| ipv6.client)),
            _ => panic!("nobody is called {name}"),
        };
        [IpAddr::from(v4)].into_iter().chain(v6.map(IpAddr::from)).collect()
    }

    /// The one of these addresses that is of the target's family.
    pub fn address_for(&self, name: &str, to: Vip) -> IpAddr {
        let addresses = self.addresses(name);
        let found = addresses
            .into_iter()
            .find(|address| address.is_ipv4() == to.address.is_ipv4());
        found.unwrap_or_else(|| panic!("{name} has no address of the family of {to}"))
    }

    /// From where a server is asked when the first node masquerades: the address of the device that leads there.
    pub fn masqueraded(&self, identity: &str, to: Vip) -> IpAddr {
        match (identity, to.address.is_ipv4()) {
            ("pod-1", true) => [10, 128, 1, 1].into(),
            ("pod-1", false) => "fd00:128:1::1".parse().expect("an address"),
            _ => self.address_for("node-1", to),
        }
    }

    /// Asks once: who answered, and from which address it was asked.
    pub fn seen(&self, ask: &Ask) -> (String, IpAddr) {
        for server in self.servers.values() {
            server.forget_peers();
        }
        let identity = ask.answer();
        let peers = self.servers[&identity].peers();
        let mut peers = peers.into_iter();
        match (peers.next(), peers.next()) {
            (Some(peer), None) => (identity, peer),
            peers => panic!("{identity} was asked once, but from {peers:?}"),
        }
    }

    /// Starts an SCTP server beside the others of a pod or backend.
    pub fn serve_sctp(&self, identity: &str, port: u16) -> SctpServer {
        let (role, number) = identity.split_once('-').expect("a name with a number");
        let number = number.parse().expect("a number");
        let netns = match role {
            "pod" => &self.lab.node(number).pod,
            _ => &self.lab.backend(number).netns,
        };
        SctpServer::start(netns, identity, port)
    }

    /// The first node's own addresses with this port, over one protocol.
    pub fn node_ports(&self, port: u16, protocol: Protocol) -> Vec<Vip> {
        let addresses = self.addresses("node-1").into_iter();
        addresses
            .map(|address| Vip {
                address,
                protocol,
                port,
            })
            .collect()
    }

    /// The same over TCP and UDP.
    pub fn on_node(&self, port: u16) -> Vec<Vip> {
        [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .flat_map(|protocol| self.node_ports(port, protocol))
            .collect()
    }

    /// Every way in from outside to [`crate::objects::exposed`].
    pub fn outside(&self) -> Vec<Vip> {
        let mut targets = self.on_node(30080);
        targets.extend(vips(BALANCER.into_iter().chain(SITE)));
        targets
    }

    /// Somebody behind the nodes who has these addresses, and says `outside` over TCP: what no data plane takes ends there.
    pub fn outsider(&self, addresses: &[&str], port: u16) -> Backend {
        let control = &self.lab.control;
        let length = |address: &str| if address.contains(':') { 128 } else { 32 };
        let mut lines: Vec<String> = addresses
            .iter()
            .map(|address| format!("addr add {address}/{} dev lo", length(address)))
            .collect();
        // The clients', to whom the control host has no way of itself.
        lines.push("route add 172.30.1.0/24 via 192.168.50.1".to_owned());
        lines.push("route add fd00:30:1::/64 via fd00:50::1".to_owned());
        control.batch(&lines.join("\n"));
        Backend::start(control, "outside", &[port], &[])
    }
}

/// One of the first node's addresses that it would not choose towards a server: only a masquerade makes its own of it.
pub fn odd_address(to: Vip) -> IpAddr {
    if to.address.is_ipv4() {
        [172, 30, 1, 1].into()
    } else {
        "fd00:30:1::1".parse().expect("an address")
    }
}

/// Where a server runs: a pod on its node, a backend on a node that is not in the lab.
fn node_of(identity: &str) -> String {
    match identity.strip_prefix("pod-").or_else(|| identity.strip_prefix("node-")) {
        Some(number) => format!("node-{number}"),
        None => "node-9".to_owned(),
    }
}
