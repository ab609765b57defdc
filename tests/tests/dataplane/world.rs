//! A lab with one node, servers behind it, and the data plane of that node.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nftfleet_agent::dataplane::desired::{Frontend, List, PodMatch, Pods};
use nftfleet_agent::dataplane::{Dataplane, Desired, Layout, LayoutSettings, Netlink};
use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};
use nftfleet_tests::backends::Backend;
use nftfleet_tests::lab::{CLUSTER_CIDR4, CLUSTER_CIDR6, Lab, LabNode, LabSpec};
use nftfleet_tests::netns::Netns;
use nftfleet_tests::traffic::{tcp_identity, udp_identity};

/// Far above what any answer takes, and above the first repetition of a lost SYN.
pub const LIMIT: Duration = Duration::from_secs(3);

/// The first port on which a backend listens; its further servers follow.
pub const FIRST_PORT: u16 = 8080;

/// The port of every Service that a test does not number itself.
pub const SERVICE_PORT: u16 = 80;

/// Both protocols that the lab can send.
pub const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A node with a client and a pod, and servers that each know their own number.
pub struct World {
    pub lab: Lab,
    /// `servers[n]` says `server-n` over TCP and UDP, and is the endpoint with the number n.
    pub servers: Vec<Backend>,
}

impl World {
    /// A world with this many servers. Up to three have machines of their own; more share those, port by port.
    pub fn new(servers: u16) -> Self {
        let lab = Lab::new(&LabSpec::dual_stack(1, usize::from(servers.min(3))));
        let machines = lab.backends.len();
        let start = |number: u16| {
            let machine = &lab.backends[usize::from(number) % machines].netns;
            let ports = [port_of(number)];
            Backend::start(machine, &identity(number), &ports, &ports)
        };
        let servers = (0..servers).map(start).collect();
        Self { lab, servers }
    }

    pub fn node(&self) -> &LabNode {
        self.lab.node(1)
    }

    /// Who can ask: a client outside, a pod, and the node itself, whose packets take the output hook.
    pub fn askers(&self) -> [&Netns; 3] {
        let node = self.node();
        [&node.client, &node.pod, &node.netns]
    }

    /// The node's own IPv4 and IPv6 address.
    pub fn node_addresses(&self) -> [IpAddr; 2] {
        let node = self.node();
        [
            node.address4.into(),
            node.ipv6.expect("a node with IPv6").address.into(),
        ]
    }

    /// The pod's IPv4 and IPv6 address.
    pub fn pod_addresses(&self) -> [IpAddr; 2] {
        let node = self.node();
        [node.pod4.into(), node.ipv6.expect("a node with IPv6").pod.into()]
    }

    /// A server's address and port in one family.
    pub fn endpoint(&self, family: Family, number: u16) -> Endpoint {
        let machine = &self.lab.backends[usize::from(number) % self.lab.backends.len()];
        let address = match family {
            Family::V4 => machine.address4.into(),
            Family::V6 => machine.address6.into(),
        };
        Endpoint {
            address,
            port: port_of(number),
        }
    }

    /// A conversation with the node's kernel.
    pub fn netlink(&self) -> Netlink {
        netlink(&self.node().netns)
    }

    /// A data plane of the node that knows nothing yet.
    pub fn dataplane(&self) -> Dataplane<Netlink> {
        Dataplane::new(self.netlink(), SETTINGS)
    }

    /// What `nft` prints for these arguments on the node, which it must do without a complaint.
    pub fn nft(&self, arguments: &[&str]) -> String {
        self.node().netns.pipe("nft", arguments, "")
    }

    /// Feeds `nft` on the node, as a stranger would.
    pub fn nft_load(&self, script: &str) {
        self.node().netns.pipe("nft", &["-f", "-"], script);
    }

    /// The Service of [`four_vips`] in both families and protocols, with these servers as endpoints.
    pub fn four_services(&self, servers: &[u16]) -> Desired {
        let endpoints = |vip: Vip| {
            let family = Family::of(vip.address);
            servers
                .iter()
                .map(move |server| self.endpoint(family, *server))
                .collect::<Vec<_>>()
        };
        desired(four_vips().map(|vip| (vip, endpoints(vip))))
    }
}

pub fn port_of(server: u16) -> u16 {
    FIRST_PORT + server
}

pub fn identity(server: u16) -> String {
    format!("server-{server}")
}

/// Opens a conversation with a namespace's kernel. It stays with that namespace, whatever thread uses it.
pub fn netlink(netns: &Netns) -> Netlink {
    netns.run(|| Netlink::open().expect("a netlink socket"))
}

/// kube-proxy's default bit.
pub const SETTINGS: LayoutSettings = LayoutSettings {
    masquerade_bit: 14,
    masquerade_all: false,
};

/// The lab's pods.
pub fn pods() -> Pods {
    pods_in(CLUSTER_CIDR4, CLUSTER_CIDR6)
}

/// Pods in these networks.
pub fn pods_in(cidr4: &str, cidr6: &str) -> Pods {
    let of = |cidr: &str| Some(PodMatch::Source(cidr.parse().expect("a network")));
    Pods {
        v4: of(cidr4),
        v6: of(cidr6),
    }
}

/// The table without groups for session affinity.
pub fn layout() -> Layout {
    Layout::new(SETTINGS, &pods(), &BTreeSet::new())
}

/// The VIP at this address and port.
pub fn vip(at: &str, protocol: Protocol) -> Vip {
    let at: SocketAddr = at.parse().expect("an address with a port");
    Vip {
        address: at.ip(),
        protocol,
        port: at.port(),
    }
}

/// The `ClusterIP`s of the Service that most tests use.
pub const SERVICE: [&str; 2] = ["10.96.20.1:80", "[fd00:10:96::2001]:80"];

/// One Service in both families and protocols: IPv4 TCP, IPv4 UDP, IPv6 TCP, IPv6 UDP.
pub fn four_vips() -> [Vip; 4] {
    let [v4, v6] = SERVICE;
    let [tcp, udp] = PROTOCOLS;
    [vip(v4, tcp), vip(v4, udp), vip(v6, tcp), vip(v6, udp)]
}

/// Services, and their addresses as `ClusterIP`s.
pub fn desired(services: impl IntoIterator<Item = (Vip, Vec<Endpoint>)>) -> Desired {
    let mut desired = Desired {
        pods: pods(),
        ..Desired::default()
    };
    for (vip, endpoints) in services {
        serve(&mut desired, vip, endpoints);
    }
    desired
}

/// One more Service.
pub fn serve(desired: &mut Desired, vip: Vip, endpoints: impl IntoIterator<Item = Endpoint>) {
    let endpoints: BTreeSet<Endpoint> = endpoints.into_iter().collect();
    let list = List {
        endpoints: endpoints.into_iter().collect(),
        affinity: None,
    };
    let frontend = Frontend {
        name: "shop/test:http".into(),
        route: None,
        all: Some(list).filter(|list| !list.endpoints.is_empty()),
        local: None,
        sources: None,
        serving: [].into(),
    };
    desired.frontends.insert(vip, frontend);
    desired.cluster_ips.insert(vip.address, "shop/test".into());
}

pub fn target(vip: Vip) -> SocketAddr {
    SocketAddr::new(vip.address, vip.port)
}

/// Asks once: who answers there?
pub fn ask(from: &Netns, vip: Vip) -> io::Result<String> {
    ask_within(from, vip, LIMIT)
}

pub fn ask_within(from: &Netns, vip: Vip, limit: Duration) -> io::Result<String> {
    match vip.protocol {
        Protocol::Tcp => tcp_identity(from, target(vip), limit),
        Protocol::Udp => udp_identity(from, target(vip), limit),
        Protocol::Sctp => panic!("the lab does not speak SCTP"),
    }
}

/// Asks once, and must hear somebody.
pub fn answer(from: &Netns, vip: Vip) -> String {
    ask(from, vip).unwrap_or_else(|error| panic!("{vip} from {}: {error}", from.name()))
}
