//! The Services and `EndpointSlices` of the cases, as the API would print them.

use std::net::IpAddr;

use nftfleet_tests::manifests::{
    AddressType, EndpointSliceBuilder, Readiness, ServiceBuilder, endpoint_slice, service,
};
use serde_json::Value;

/// The namespace of all Services.
pub const NAMESPACE: &str = "shop";

/// The port on which every server listens.
pub const PORT: u16 = 8080;

/// Where shop/web answers inside the cluster.
pub const WEB: [&str; 2] = ["10.96.20.1:80", "[fd00:10:96::2001]:80"];

/// The Service shop/web: both families, TCP and UDP 80 to 8080.
pub fn web() -> ServiceBuilder {
    named("web", ["10.96.20.1", "fd00:10:96::2001"])
}

/// Another Service of the same kind.
pub fn named(name: &str, cluster_ips: [&str; 2]) -> ServiceBuilder {
    service(NAMESPACE, name)
        .cluster_ips(cluster_ips)
        .port("tcp", "TCP", 80, PORT)
        .port("udp", "UDP", 80, PORT)
}

/// shop/web with the node port 30080 for both protocols.
pub fn web_on_nodes() -> ServiceBuilder {
    service(NAMESPACE, "web")
        .cluster_ips(["10.96.20.1", "fd00:10:96::2001"])
        .port("tcp", "TCP", 80, PORT)
        .node_port(30080)
        .port("udp", "UDP", 80, PORT)
        .node_port(30080)
}

/// shop/web with every way in; see [`crate::rig::Rig::outside`].
pub fn exposed() -> ServiceBuilder {
    web_on_nodes()
        .ingress("198.51.100.10")
        .ingress("fd00:198::10")
        .external_ips(["198.51.100.11", "fd00:198::11"])
}

/// The balancer's addresses of [`exposed`], and the site's.
pub const BALANCER: [&str; 2] = ["198.51.100.10:80", "[fd00:198::10]:80"];
pub const SITE: [&str; 2] = ["198.51.100.11:80", "[fd00:198::11]:80"];

/// A pod behind a Service.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// The name of its node.
    pub node: String,
    pub readiness: Readiness,
    /// The zones that it is meant for.
    pub zones: Vec<&'static str>,
    /// The nodes that it is meant for.
    pub nodes: Vec<&'static str>,
}

impl Member {
    pub fn new(addresses: &[IpAddr], node: &str) -> Self {
        Self {
            addresses: addresses.to_vec(),
            node: node.to_owned(),
            readiness: Readiness::READY,
            zones: Vec::new(),
            nodes: Vec::new(),
        }
    }

    /// In another state of its life.
    pub fn is(mut self, readiness: Readiness) -> Self {
        self.readiness = readiness;
        self
    }

    /// Meant for clients in these zones.
    pub fn for_zones(mut self, zones: &[&'static str]) -> Self {
        self.zones = zones.to_vec();
        self
    }

    /// Meant for clients on these nodes.
    pub fn for_nodes(mut self, nodes: &[&'static str]) -> Self {
        self.nodes = nodes.to_vec();
        self
    }

    fn address(&self, kind: AddressType) -> Option<String> {
        let mut addresses = self.addresses.iter();
        let address = addresses.find(|address| address.is_ipv4() == (kind == AddressType::IPv4))?;
        Some(address.to_string())
    }
}

/// The Service's slices, one per family, with its two ports.
pub fn slices(service: &str, members: &[Member]) -> [Value; 2] {
    [("4", AddressType::IPv4), ("6", AddressType::IPv6)].map(|(suffix, kind)| {
        let slice = endpoint_slice(NAMESPACE, service, suffix, kind)
            .port("tcp", "TCP", PORT)
            .port("udp", "UDP", PORT);
        with_members(slice, kind, members).object()
    })
}

/// Adds those of the members that have an address of this kind.
pub fn with_members(slice: EndpointSliceBuilder, kind: AddressType, members: &[Member]) -> EndpointSliceBuilder {
    members.iter().fold(slice, |slice, member| {
        let Some(address) = member.address(kind) else {
            return slice;
        };
        let slice = slice.endpoint(&address, &member.node, member.readiness);
        let slice = match member.zones.as_slice() {
            [] => slice,
            zones => slice.for_zones(zones),
        };
        match member.nodes.as_slice() {
            [] => slice,
            nodes => slice.for_nodes(nodes),
        }
    })
}
