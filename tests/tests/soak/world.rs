//! The network of the soak: one node with a client and a pod, and servers that all live all the time, endpoints or not.

use std::net::IpAddr;

use nftfleet_domain::service::Family;
use nftfleet_tests::backends::Backend;
use nftfleet_tests::lab::{Lab, LabNode, LabSpec};
use nftfleet_tests::netns::Netns;

/// The machines that servers run on. The first is the node's own pod.
pub const MACHINES: usize = 6;

/// The servers of a machine, each on a port of its own.
pub const PORTS: usize = 5;

/// All servers.
pub const SERVERS: usize = MACHINES * PORTS;

/// The first port on which a machine serves; the others follow.
const FIRST_PORT: u16 = 8080;

/// A server, which answers over TCP and UDP on one port of one machine, in both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// Its machine, from 0.
    pub machine: usize,
    /// Which of the machine's servers it is, from 0.
    pub port: usize,
}

impl Server {
    /// The server with this number, from 0.
    pub const fn numbered(number: usize) -> Self {
        Self {
            machine: number / PORTS,
            port: number % PORTS,
        }
    }

    /// Its number.
    pub const fn number(self) -> usize {
        self.machine * PORTS + self.port
    }

    /// What it says of itself.
    pub fn identity(self) -> String {
        format!("server-{}", self.number())
    }

    /// Who says this; none if nobody should.
    pub fn known_by(identity: &str) -> Option<Self> {
        let number = identity.strip_prefix("server-")?.parse().ok()?;
        (number < SERVERS).then(|| Self::numbered(number))
    }

    /// Whether it runs on the node.
    pub const fn is_local(self) -> bool {
        self.machine == 0
    }
}

/// The number of the port.
pub fn port_number(port: usize) -> u16 {
    FIRST_PORT + u16::try_from(port).expect("a few ports")
}

/// A set of servers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Servers(u64);

impl Servers {
    /// Nobody.
    pub const NONE: Self = Self(0);

    /// Whether it is one of them.
    pub const fn contains(self, server: Server) -> bool {
        self.0 & (1 << server.number()) != 0
    }

    /// One more.
    pub const fn insert(&mut self, server: Server) {
        self.0 |= 1 << server.number();
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Server> for Servers {
    fn from_iter<T: IntoIterator<Item = Server>>(servers: T) -> Self {
        let mut set = Self::NONE;
        for server in servers {
            set.insert(server);
        }
        set
    }
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers = (0..SERVERS).filter(|number| self.contains(Server::numbered(*number)));
        f.debug_set().entries(numbers).finish()
    }
}

/// Who asks. What a traffic policy means depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asker {
    /// A client outside the cluster.
    Outside,
    /// A pod of the node.
    Pod,
    /// The node itself.
    Node,
}

impl Asker {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Outside, Self::Pod, Self::Node];
}

/// The lab and its servers.
pub struct World {
    pub lab: Lab,
    _servers: Vec<Backend>,
}

impl World {
    /// A world in which everybody says who he is.
    pub fn new() -> Self {
        Self::with(Server::identity)
    }

    /// A world in which servers say what they are told to say.
    pub fn with(says: impl Fn(Server) -> String) -> Self {
        let lab = Lab::new(&LabSpec::dual_stack(1, MACHINES - 1));
        let serve = |number| {
            let server = Server::numbered(number);
            let ports = [port_number(server.port)];
            Backend::start(machine(&lab, server.machine), &says(server), &ports, &ports)
        };
        let servers = (0..SERVERS).map(serve).collect();
        let node = &lab.node(1).netns;
        // Connections by the thousand: those that have ended, or that nobody answered while there was no Service, need not be
        // remembered for minutes. A later one with the same source port would follow them.
        for timeout in [
            "udp_timeout",
            "udp_timeout_stream",
            "tcp_timeout_syn_sent",
            "tcp_timeout_close",
        ] {
            node.sysctl(&format!("netfilter/nf_conntrack_{timeout}"), "2");
        }
        Self { lab, _servers: servers }
    }

    /// The node.
    pub fn node(&self) -> &LabNode {
        self.lab.node(1)
    }

    /// Where this one lives.
    pub fn asker(&self, asker: Asker) -> &Netns {
        let node = self.node();
        match asker {
            Asker::Outside => &node.client,
            Asker::Pod => &node.pod,
            Asker::Node => &node.netns,
        }
    }

    /// The node's address.
    pub fn node_address(&self, family: Family) -> IpAddr {
        let node = self.node();
        match family {
            Family::V4 => node.address4.into(),
            Family::V6 => node.ipv6.expect("a node with IPv6").address.into(),
        }
    }

    /// A machine's address.
    pub fn machine_address(&self, machine: usize, family: Family) -> IpAddr {
        let node = self.node();
        match (machine, family) {
            (0, Family::V4) => node.pod4.into(),
            (0, Family::V6) => node.ipv6.expect("a node with IPv6").pod.into(),
            (_, Family::V4) => self.lab.backend(machine).address4.into(),
            (_, Family::V6) => self.lab.backend(machine).address6.into(),
        }
    }
}

fn machine(lab: &Lab, machine: usize) -> &Netns {
    if machine == 0 {
        &lab.node(1).pod
    } else {
        &lab.backend(machine).netns
    }
}
