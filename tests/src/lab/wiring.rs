//! Cables, addresses and routes, as scripts for `ip -batch`: one per namespace.
//!
//! Everyone's device to the fabric is `eth0`; a node has `client0` and `pod0` besides.

use std::fmt::Write as _;

use super::address::{self, BACKENDS4, BACKENDS6, CONTROL4, CONTROL6, FABRIC_CIDR4, FABRIC_CIDR6};
use super::{Lab, LabBackend, LabNode};
use crate::netns::Netns;

pub(super) fn wire(lab: &Lab) {
    cable(lab);
    for node in &lab.nodes {
        if node.ipv6.is_none() {
            for netns in [&node.netns, &node.client, &node.pod] {
                netns.sysctl("ipv6/conf/all/disable_ipv6", "1");
                netns.sysctl("ipv6/conf/default/disable_ipv6", "1");
            }
        }
    }
    control(lab);
    for node in &lab.nodes {
        self::node(lab, node);
        leaf(&node.client, node.client4, node.ipv6.map(|ipv6| ipv6.client));
        leaf(&node.pod, node.pod4, node.ipv6.map(|ipv6| ipv6.pod));
    }
    for backend in &lab.backends {
        self::backend(lab, backend);
    }
}

/// The bridge and all virtual cables.
fn cable(lab: &Lab) {
    // Without snooping: the bridge would hold back neighbour solicitations until it has heard a querier.
    let mut script = String::from("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n");
    script += "link set br0 up\n";
    let plug = |script: &mut String, port: &str, netns: &Netns| {
        put(
            script,
            format!("link add {port} type veth peer name eth0 netns {}", netns.name()),
        );
        put(script, format!("link set {port} master br0 up"));
    };
    plug(&mut script, "control", &lab.control);
    for node in &lab.nodes {
        plug(&mut script, &node.name, &node.netns);
    }
    for backend in &lab.backends {
        plug(&mut script, &backend.name, &backend.netns);
    }
    lab.fabric.batch(&script);

    for node in &lab.nodes {
        let mut script = String::new();
        put(
            &mut script,
            format!("link add client0 type veth peer name eth0 netns {}", node.client.name()),
        );
        put(
            &mut script,
            format!("link add pod0 type veth peer name eth0 netns {}", node.pod.name()),
        );
        node.netns.batch(&script);
    }
}

fn control(lab: &Lab) {
    let mut script = format!("addr add {CONTROL4}/24 dev eth0\n");
    put(&mut script, format!("addr add {CONTROL6}/64 dev eth0 nodad"));
    script += "link set eth0 up\n";
    put(&mut script, format!("route add {BACKENDS4} dev eth0"));
    put(&mut script, format!("route add {BACKENDS6} dev eth0"));
    routes_to_pods(&mut script, lab, None, true);
    lab.control.batch(&script);
}

fn node(lab: &Lab, node: &LabNode) {
    let k = node.number;
    node.netns.sysctl("ipv4/ip_forward", "1");
    let mut script = format!("addr add {}/24 dev eth0\n", node.address4);
    put(&mut script, format!("addr add 172.30.{k}.1/24 dev client0"));
    put(&mut script, format!("addr add 10.128.{k}.1/24 dev pod0"));
    if let Some(ipv6) = node.ipv6 {
        node.netns.sysctl("ipv6/conf/all/forwarding", "1");
        put(&mut script, format!("addr add {}/64 dev eth0 nodad", ipv6.address));
        put(&mut script, format!("addr add fd00:30:{k}::1/64 dev client0 nodad"));
        put(&mut script, format!("addr add fd00:128:{k}::1/64 dev pod0 nodad"));
    }
    script += "link set eth0 up\nlink set client0 up\nlink set pod0 up\n";
    put(&mut script, format!("route add {BACKENDS4} dev eth0"));
    // The address of a Service must have a route before the output hook can rewrite it.
    put(&mut script, format!("route add default via {CONTROL4}"));
    if node.ipv6.is_some() {
        put(&mut script, format!("route add {BACKENDS6} dev eth0"));
        put(&mut script, format!("route add default via {CONTROL6}"));
    }
    routes_to_pods(&mut script, lab, Some(k), node.ipv6.is_some());
    node.netns.batch(&script);
}

/// A client or a pod: one address, and its node for all the rest.
fn leaf(netns: &Netns, address4: std::net::Ipv4Addr, address6: Option<std::net::Ipv6Addr>) {
    let [a, b, c, _] = address4.octets();
    let mut script = format!("addr add {address4}/24 dev eth0\n");
    if let Some(address6) = address6 {
        put(&mut script, format!("addr add {address6}/64 dev eth0 nodad"));
    }
    script += "link set eth0 up\n";
    put(&mut script, format!("route add default via {a}.{b}.{c}.1"));
    if let Some(address6) = address6 {
        let [a, b, c, ..] = address6.segments();
        put(&mut script, format!("route add default via {a:x}:{b:x}:{c:x}::1"));
    }
    netns.batch(&script);
}

/// A backend: on the fabric with its pod address, and deliberately without a default route.
fn backend(lab: &Lab, backend: &LabBackend) {
    let mut script = format!("addr add {}/24 dev eth0\n", backend.address4);
    put(&mut script, format!("addr add {}/64 dev eth0 nodad", backend.address6));
    script += "link set eth0 up\n";
    put(&mut script, format!("route add {FABRIC_CIDR4} dev eth0"));
    put(&mut script, format!("route add {FABRIC_CIDR6} dev eth0"));
    routes_to_pods(&mut script, lab, None, true);
    backend.netns.batch(&script);
}

/// The pods of every node but `own`, through their node.
fn routes_to_pods(script: &mut String, lab: &Lab, own: Option<usize>, ipv6: bool) {
    for node in lab.nodes.iter().filter(|node| Some(node.number) != own) {
        let k = node.number;
        put(
            script,
            format!("route add 10.128.{k}.0/24 via {} dev eth0", address::node4(k)),
        );
        if ipv6 && node.ipv6.is_some() {
            put(
                script,
                format!("route add fd00:128:{k}::/64 via {} dev eth0", address::node6(k)),
            );
        }
    }
}

pub(super) fn put(script: &mut String, line: impl std::fmt::Display) {
    writeln!(script, "{line}").expect("a String takes every line");
}
