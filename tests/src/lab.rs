//! A cluster's network in namespaces: nodes, pods, clients from outside and a control host, joined by a bridge.
//!
//! ```text
//!   client-K 172.30.K.2 ---- node-K 192.168.50.K ---- pod-K 10.128.K.10      (one of each per node)
//!                                  |
//!      control 192.168.50.250 -- fabric (a bridge) -- backend-J 10.128.200.J
//! ```
//!
//! A backend is a pod of some other node, seen without that node. It knows the nodes and the pods, but has no route
//! to the clients: an answer to a client comes back only if the node masqueraded the question, as in a real cluster.
//! Nobody has the address of a Service: only a data plane on the node makes it reachable.

mod address;
mod pod;
mod wiring;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

pub use address::{
    CLUSTER_CIDR4, CLUSTER_CIDR6, CONTROL4, CONTROL6, FABRIC_CIDR4, FABRIC_CIDR6, SERVICE_CIDR4, SERVICE_CIDR6,
};

pub use pod::SecondPod;

use crate::backends::Backend;
use crate::netns::{Netns, Prefix};

/// What a lab is to have.
#[derive(Clone, Debug)]
pub struct LabSpec {
    /// How many nodes, 1 to 99, each with a client and a local pod.
    pub nodes: usize,
    /// How many backends, 1 to 99.
    pub backends: usize,
    /// The numbers of the nodes (from 1) on which the kernel has no IPv6 at all, nor have their client and pod.
    pub without_ipv6: BTreeSet<usize>,
}

impl LabSpec {
    /// Nodes and backends with both address families.
    pub fn dual_stack(nodes: usize, backends: usize) -> Self {
        Self {
            nodes,
            backends,
            without_ipv6: BTreeSet::new(),
        }
    }
}

/// A running lab. Its namespaces go when it is dropped and nothing runs in them any more.
#[derive(Debug)]
pub struct Lab {
    /// The namespace of the bridge; nothing else lives there.
    pub fabric: Netns,
    /// The host of the Kubernetes API simulator and of the nftfleet server, at [`CONTROL4`] and [`CONTROL6`].
    pub control: Netns,
    /// The nodes in order; `nodes[0]` is `node-1`.
    pub nodes: Vec<LabNode>,
    /// The backends in order; `backends[0]` is `backend-1`.
    pub backends: Vec<LabBackend>,
}

/// One node with its own client and its own pod.
#[derive(Clone, Debug)]
pub struct LabNode {
    /// Its number, from 1.
    pub number: usize,
    /// Its Kubernetes name: `node-1`.
    pub name: String,
    /// The node itself: it forwards, and a data plane is programmed here.
    pub netns: Netns,
    /// A client outside the cluster, which reaches everything through this node alone.
    pub client: Netns,
    /// A pod that runs on this node.
    pub pod: Netns,
    /// The node's address on the fabric, 192.168.50.K.
    pub address4: Ipv4Addr,
    /// The client's address, 172.30.K.2.
    pub client4: Ipv4Addr,
    /// The pod's address, 10.128.K.10.
    pub pod4: Ipv4Addr,
    /// The IPv6 addresses, unless the node has no IPv6.
    pub ipv6: Option<NodeIpv6>,
}

/// The IPv6 addresses of a node and of what hangs on it.
#[derive(Clone, Copy, Debug)]
pub struct NodeIpv6 {
    /// The node's address on the fabric, `fd00:50::K`.
    pub address: Ipv6Addr,
    /// The client's address, `fd00:30:K::2`.
    pub client: Ipv6Addr,
    /// The pod's address, `fd00:128:K::10`.
    pub pod: Ipv6Addr,
}

/// One backend: a pod on a node which is not in the lab.
#[derive(Clone, Debug)]
pub struct LabBackend {
    /// Its name and the line by which it is known: `backend-1`.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// 10.128.200.J.
    pub address4: Ipv4Addr,
    /// `fd00:128:200::J`.
    pub address6: Ipv6Addr,
}

impl Lab {
    /// Makes the namespaces and wires them. Panics with what `ip` said when a step is refused.
    pub fn new(spec: &LabSpec) -> Self {
        assert!(
            (1..=99).contains(&spec.nodes),
            "a lab has 1 to 99 nodes, not {}",
            spec.nodes
        );
        assert!(
            (1..=99).contains(&spec.backends),
            "a lab has 1 to 99 backends, not {}",
            spec.backends
        );

        let per_node = (1..=spec.nodes).flat_map(|k| ["node", "client", "pod"].map(|role| format!("{role}-{k}")));
        let per_backend = (1..=spec.backends).map(|j| format!("backend-{j}"));
        let roles: Vec<String> = ["fabric", "control"]
            .map(str::to_owned)
            .into_iter()
            .chain(per_node)
            .chain(per_backend)
            .collect();
        let mut made = Netns::create_all(&Prefix::unique(), &roles).into_iter();
        let mut next = || made.next().expect("one namespace per role");

        let (fabric, control) = (next(), next());
        let nodes = (1..=spec.nodes)
            .map(|k| LabNode {
                number: k,
                name: format!("node-{k}"),
                netns: next(),
                client: next(),
                pod: next(),
                address4: address::node4(k),
                client4: address::client4(k),
                pod4: address::pod4(k),
                ipv6: (!spec.without_ipv6.contains(&k)).then(|| NodeIpv6 {
                    address: address::node6(k),
                    client: address::client6(k),
                    pod: address::pod6(k),
                }),
            })
            .collect();
        let backends = (1..=spec.backends)
            .map(|j| LabBackend {
                name: format!("backend-{j}"),
                netns: next(),
                address4: address::backend4(j),
                address6: address::backend6(j),
            })
            .collect();

        let lab = Self {
            fabric,
            control,
            nodes,
            backends,
        };
        wiring::wire(&lab);
        lab
    }

    /// The node with this number, from 1.
    pub fn node(&self, number: usize) -> &LabNode {
        &self.nodes[number - 1]
    }

    /// The backend with this number, from 1.
    pub fn backend(&self, number: usize) -> &LabBackend {
        &self.backends[number - 1]
    }

    /// Starts a server in every backend, in order; each says its own name. They stop when they are dropped.
    pub fn serve_backends(&self, tcp_ports: &[u16], udp_ports: &[u16]) -> Vec<Backend> {
        let serve = |backend: &LabBackend| Backend::start(&backend.netns, &backend.name, tcp_ports, udp_ports);
        self.backends.iter().map(serve).collect()
    }
}
