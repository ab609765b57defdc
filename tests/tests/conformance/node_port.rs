//! Services on the nodes' own addresses.

use std::net::IpAddr;
use std::time::Duration;

use nftfleet_agent::kube::NodePortAddresses;
use nftfleet_domain::service::{Protocol, Vip};
use nftfleet_tests::backends::Backend;
use nftfleet_tests::manifests::service;
use nftfleet_tests::wait;

use crate::ask::{answered_by, asks, refused, vip, vips};
use crate::case::cases;
use crate::objects::{NAMESPACE, PORT, WEB, web_on_nodes};
use crate::rig::{Rig, Setup, node_object};

cases! {
    NodePort: every_endpoint_answers_on_the_nodes_primary_addresses, ["PT:888", "S:1287", "networking.go:360", "networking.go:381"];
    NodePort: other_addresses_of_the_node_are_its_own, ["PT:888", "util TestGetNodeIPs", "app Test_platformApplyDefaults"];
    NodePort: addresses_in_given_networks_serve_and_no_others, ["PT:888", "util TestGetNodeIPs"];
    NodePort: all_networks_are_all_addresses_of_the_node, ["PT:888"];
    NodePort: every_node_serves_it, ["networking.go:360"];
    NodePort: a_node_port_is_none_of_the_cluster_ips, [];
    NodePort: a_node_port_that_goes_is_the_nodes_own_again, ["S:1696"];
    NodePort: many_node_ports_lead_apart, [];
    NodePortLocalhost: loopback_belongs_to_the_node, ["util TestContainsIPv4Loopback"];
}

/// A second address of the node on the fabric, of each family.
const SECOND: [&str; 2] = ["192.168.50.101", "fd00:50::101"];

fn add_second_address(rig: &Rig) {
    let [v4, v6] = SECOND;
    rig.node()
        .netns
        .batch(&format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad"));
    // The kernel makes an IPv6 address's own route in the background.
    wait::until_blocking(
        "the second address to be the node's own",
        Duration::from_secs(10),
        || {
            let route = rig.node().netns.pipe("ip", &["-6", "route", "get", v6], "");
            route.starts_with("local").then_some(())
        },
    );
}

/// Over TCP: a server on all addresses of a machine with many answers a datagram from the wrong one.
fn tcp(address: IpAddr) -> Vip {
    Vip {
        address,
        protocol: Protocol::Tcp,
        port: 30080,
    }
}

fn parsed(addresses: [&str; 2]) -> [Vip; 2] {
    addresses.map(|address| tcp(address.parse().expect("an address")))
}

/// The addresses of the node's devices to its client and its pod.
fn inner() -> Vec<Vip> {
    let pairs = [["172.30.1.1", "fd00:30:1::1"], ["10.128.1.1", "fd00:128:1::1"]];
    pairs.into_iter().flat_map(parsed).collect()
}

/// Something of the host's on the very port: what is none of the Service's, it answers.
fn host_process(rig: &Rig) -> Backend {
    Backend::start(&rig.node().netns, "host", &[30080], &[])
}

fn every_endpoint_answers_on_the_nodes_primary_addresses() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1", "backend-2", "pod-1"]);
    rig.program(web_on_nodes().object(), &members);
    // A process of the host's on the port is not asked.
    let _host = host_process(&rig);
    answered_by(
        &asks(rig.everybody(), &rig.on_node(30080)),
        ["backend-1", "backend-2", "pod-1"],
    );
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1", "backend-2", "pod-1"]);
}

fn other_addresses_of_the_node_are_its_own() {
    let mut rig = Rig::new();
    add_second_address(&rig);
    rig.proxy().read_addresses();
    // The Node knows it too, but the first one is the primary.
    let mut node = node_object(rig.node());
    let addresses = node["status"]["addresses"].as_array_mut().expect("addresses");
    for (at, address) in (2..).zip(SECOND) {
        addresses.insert(at, serde_json::json!({"address": address, "type": "InternalIP"}));
    }
    rig.apply(node);
    let members = rig.members(["backend-1"]);
    rig.program(web_on_nodes().object(), &members);
    let _host = host_process(&rig);
    let mut targets = inner();
    targets.extend(parsed(SECOND));
    answered_by(&asks(rig.everybody(), &targets), ["host"]);
    answered_by(
        &asks(rig.everybody(), &rig.node_ports(30080, Protocol::Tcp)),
        ["backend-1"],
    );
}

fn of_networks<const N: usize>(networks: [&str; N]) -> Rig {
    let networks = networks.map(|network| network.parse().expect("a network"));
    Rig::with(&Setup {
        nodeport_addresses: NodePortAddresses::Networks(networks.into()),
        ..Setup::default()
    })
}

fn addresses_in_given_networks_serve_and_no_others() {
    let mut rig = of_networks(["192.168.50.0/24", "fd00:50::/64", "10.128.1.1/32"]);
    add_second_address(&rig);
    rig.proxy().read_addresses();
    let members = rig.members(["backend-1"]);
    rig.program(web_on_nodes().object(), &members);
    let _host = host_process(&rig);
    let mut served = parsed(SECOND).to_vec();
    served.extend(rig.node_ports(30080, Protocol::Tcp));
    served.push(tcp([10, 128, 1, 1].into()));
    answered_by(&asks(rig.everybody(), &served), ["backend-1"]);
    let own: Vec<Vip> = inner().into_iter().filter(|vip| !served.contains(vip)).collect();
    assert_eq!(own.len(), 3);
    answered_by(&asks(rig.everybody(), &own), ["host"]);
}

fn all_networks_are_all_addresses_of_the_node() {
    let mut rig = of_networks(["0.0.0.0/0", "::/0"]);
    add_second_address(&rig);
    rig.proxy().read_addresses();
    let members = rig.members(["backend-1"]);
    rig.program(web_on_nodes().object(), &members);
    let _host = host_process(&rig);
    let mut served = inner();
    served.extend(parsed(SECOND));
    served.extend(rig.node_ports(30080, Protocol::Tcp));
    answered_by(&asks(rig.everybody(), &served), ["backend-1"]);
    let loopback = parsed(["127.0.0.1", "::1"]);
    answered_by(&asks([&rig.node().netns], &loopback), ["host"]);
}

fn every_node_serves_it() {
    let mut rig = Rig::with(&Setup {
        nodes: 2,
        ..Setup::default()
    });
    let members = rig.members(["pod-1", "backend-1"]);
    rig.program(web_on_nodes().object(), &members);
    for number in [1, 2] {
        let node = rig.lab.node(number);
        let to: Vec<Vip> = rig
            .addresses(&node.name)
            .into_iter()
            .flat_map(|address| {
                [Protocol::Tcp, Protocol::Udp].map(|protocol| Vip {
                    address,
                    protocol,
                    port: 30080,
                })
            })
            .collect();
        answered_by(
            &asks([&node.client, &node.pod, &node.netns], &to),
            ["pod-1", "backend-1"],
        );
    }
    // From one node to the other's port.
    let other: Vec<Vip> = rig.addresses("node-2").into_iter().map(tcp).collect();
    let node = rig.node();
    answered_by(&asks([&node.pod, &node.netns], &other), ["pod-1", "backend-1"]);
}

fn a_node_port_is_none_of_the_cluster_ips() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web_on_nodes().object(), &members);
    refused(&asks(
        rig.everybody(),
        &vips(["10.96.20.1:30080", "[fd00:10:96::2001]:30080"]),
    ));
    // And the Service's port is none of the node's: its kernel says so.
    refused(&asks([&rig.node().client], &rig.on_node(80)));
}

fn a_node_port_that_goes_is_the_nodes_own_again() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web_on_nodes().object(), &members);
    let _host = host_process(&rig);
    let tcp = rig.node_ports(30080, Protocol::Tcp);
    answered_by(&asks(rig.everybody(), &tcp), ["backend-1"]);
    rig.delete("Service", NAMESPACE, "web");
    rig.commit();
    answered_by(&asks(rig.everybody(), &tcp), ["host"]);
    // Another Service gets the number.
    let members = rig.members(["backend-2"]);
    let next = service(NAMESPACE, "next")
        .cluster_ips(["10.96.20.2", "fd00:10:96::2002"])
        .port("tcp", "TCP", 80, PORT)
        .node_port(30080);
    rig.program(next.object(), &members);
    answered_by(&asks(rig.everybody(), &tcp), ["backend-2"]);
}

fn many_node_ports_lead_apart() {
    let mut rig = Rig::new();
    for (number, node_port) in (1_u16..).zip(30_001..=30_003) {
        let name = format!("web-{number}");
        let service = service(NAMESPACE, &name)
            .cluster_ips([
                format!("10.96.20.{number}").as_str(),
                format!("fd00:10:96::200{number}").as_str(),
            ])
            .port("tcp", "TCP", 80, PORT)
            .node_port(node_port);
        let member = rig.member(&format!("backend-{number}"));
        rig.program(service.object(), &[member]);
    }
    for (number, node_port) in (1..).zip(30_001..=30_003) {
        let targets = rig.node_ports(node_port, Protocol::Tcp);
        answered_by(&asks(rig.everybody(), &targets), [format!("backend-{number}").as_str()]);
    }
}

fn loopback_belongs_to_the_node() {
    // Asked for, and not done even so.
    for mut rig in [Rig::new(), of_networks(["127.0.0.0/8", "::1/128", "192.168.50.0/24"])] {
        let members = rig.members(["backend-1"]);
        rig.program(web_on_nodes().object(), &members);
        let node = rig.node().netns.clone();
        let loopback = ["127.0.0.1:30080", "[::1]:30080"].map(|at| vip(at, Protocol::Tcp));
        refused(&asks([&node], &loopback));
        let host = host_process(&rig);
        answered_by(&asks([&node], &loopback), ["host"]);
        drop(host);
        answered_by(&asks([&node], &[tcp(rig.addresses("node-1")[0])]), ["backend-1"]);
    }
}
