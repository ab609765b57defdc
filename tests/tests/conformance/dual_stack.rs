//! Two families side by side, and a node whose addresses change.

use std::net::IpAddr;

use nftfleet_agent::kube::{LocalTraffic, NodePortAddresses};
use nftfleet_domain::service::{Protocol, Vip};
use nftfleet_tests::lab::{SERVICE_CIDR4, SERVICE_CIDR6};
use nftfleet_tests::manifests::{node_with, service, service_cidr};
use nftfleet_tests::wait;

use crate::ask::{LIMIT, answered_by, asks, refused, unanswered, vips};
use crate::case::cases;
use crate::objects::{Member, NAMESPACE, PORT, WEB, named, web, web_on_nodes};
use crate::rig::{Rig, Setup, node_object};

cases! {
    DualStack: each_family_has_its_own_endpoints, ["dual_stack.go:257", "dual_stack.go:303", "util TestMapIPsByIPFamily"];
    DualStack: a_service_of_one_family_takes_no_endpoints_of_the_other, ["dual_stack.go:303"];
    DualStack: a_service_gets_and_loses_its_second_family, ["dual_stack.go:257"];
    DualStack: ways_in_of_both_families, ["dual_stack.go:352", "dual_stack.go:628", "util TestMapIPsByIPFamily"];
    DualStack: a_node_without_ipv6_serves_ipv4, [];
    DualStack: ipv6_comes_first, ["dual_stack.go:352"];
    NodeAddress: node_ports_follow_the_nodes_address_at_once, ["TestNodeManagerOnNodeChange"];
    NodeAddress: an_address_of_a_chosen_network_comes_and_goes, [];
    NodeAddress: masquerading_follows_the_address, [];
    NodeAddress: a_node_whose_object_is_deleted_serves_on, ["TestNodeManagerOnNodeDelete"];
}

/// A member with the IPv4 address of one server and the IPv6 address of another.
fn halves(rig: &Rig, v4: &str, v6: &str) -> Member {
    let addresses: [IpAddr; 2] = [rig.addresses(v4)[0], rig.addresses(v6)[1]];
    Member::new(&addresses, "node-9")
}

fn each_family_has_its_own_endpoints() {
    let mut rig = Rig::new();
    let members = [halves(&rig, "backend-1", "backend-2")];
    rig.program(web_on_nodes().object(), &members);
    let (v4, v6) = (vips([WEB[0]]), vips([WEB[1]]));
    answered_by(&asks(rig.everybody(), &v4), ["backend-1"]);
    answered_by(&asks(rig.everybody(), &v6), ["backend-2"]);
    // A different number of them, in each.
    let one_more = Member::new(&rig.addresses("backend-3")[..1], "node-9");
    rig.endpoints("web", &[members[0].clone(), one_more]);
    answered_by(&asks(rig.everybody(), &v4), ["backend-1", "backend-3"]);
    answered_by(&asks(rig.everybody(), &v6), ["backend-2"]);
    // None at all, in one.
    rig.endpoints("web", &[Member::new(&rig.addresses("backend-3")[..1], "node-9")]);
    answered_by(&asks(rig.everybody(), &v4), ["backend-3"]);
    refused(&asks(rig.everybody(), &v6));
    let [node4, node6]: [Vec<Vip>; 2] = [true, false].map(|v4| {
        let mut on_node = rig.on_node(30080);
        on_node.retain(|vip| vip.address.is_ipv4() == v4);
        on_node
    });
    answered_by(&asks(rig.everybody(), &node4), ["backend-3"]);
    refused(&asks(rig.everybody(), &node6));
}

fn a_service_of_one_family_takes_no_endpoints_of_the_other() {
    let mut rig = Rig::new();
    for (name, cluster_ip, at) in [
        ("only-4", "10.96.20.4", "10.96.20.4:80"),
        ("only-6", "fd00:10:96::2006", "[fd00:10:96::2006]:80"),
    ] {
        let single = service(NAMESPACE, name)
            .cluster_ips([cluster_ip])
            .port("tcp", "TCP", 80, PORT)
            .node_port(30080)
            .port("udp", "UDP", 80, PORT)
            .node_port(30080);
        let members = rig.members(["backend-1"]);
        rig.program(single.object(), &members);
        answered_by(&asks(rig.everybody(), &vips([at])), ["backend-1"]);
        let v4 = name == "only-4";
        let (own, other): (Vec<Vip>, Vec<Vip>) = rig
            .on_node(30080)
            .into_iter()
            .partition(|vip| vip.address.is_ipv4() == v4);
        answered_by(&asks(rig.everybody(), &own), ["backend-1"]);
        // The node port is of the Service's family alone.
        refused(&asks([&rig.node().client], &other));
        rig.delete("Service", NAMESPACE, name);
        rig.commit();
    }
}

fn a_service_gets_and_loses_its_second_family() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    let single = |address: &'static str| {
        service(NAMESPACE, "web")
            .cluster_ips([address])
            .port("tcp", "TCP", 80, PORT)
            .port("udp", "UDP", 80, PORT)
            .object()
    };
    rig.program(single("10.96.20.1"), &members);
    for _ in 0..2 {
        answered_by(&asks(rig.everybody(), &vips([WEB[0]])), ["backend-1"]);
        unanswered(&asks([&rig.node().client, &rig.node().pod], &vips([WEB[1]])));
        rig.apply(web().object());
        rig.commit();
        answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
        rig.apply(single("10.96.20.1"));
        rig.commit();
    }
}

fn ways_in_of_both_families() {
    let mut rig = Rig::new();
    let members = [halves(&rig, "backend-1", "backend-2")];
    // Mixed, as the API has them: each in its family.
    let mixed = web_on_nodes()
        .ingress("fd00:198::10")
        .ingress("198.51.100.10")
        .external_ips(["fd00:198::11", "198.51.100.11"]);
    rig.program(mixed.object(), &members);
    let (on_node4, on_node6): (Vec<Vip>, Vec<Vip>) =
        rig.on_node(30080).into_iter().partition(|vip| vip.address.is_ipv4());
    let mut v4 = vips(["198.51.100.10:80", "198.51.100.11:80"]);
    v4.extend(on_node4);
    let mut v6 = vips(["[fd00:198::10]:80", "[fd00:198::11]:80"]);
    v6.extend(on_node6);
    answered_by(&asks(rig.everybody(), &v4), ["backend-1"]);
    answered_by(&asks(rig.everybody(), &v6), ["backend-2"]);
}

fn a_node_without_ipv6_serves_ipv4() {
    let mut rig = Rig::with(&Setup {
        ipv6: false,
        ..Setup::default()
    });
    // The cluster is of both families, this node is not.
    let members = [
        halves(&rig, "backend-1", "backend-2"),
        halves(&rig, "backend-3", "backend-3"),
    ];
    let exposed = web_on_nodes()
        .ingress("198.51.100.10")
        .ingress("fd00:198::10")
        .affinity(60);
    rig.program(exposed.object(), &members);
    rig.program(web_on_nodes().object(), &members);
    let mut targets = vips([WEB[0]]);
    targets.extend(rig.on_node(30080));
    answered_by(&asks(rig.everybody(), &targets), ["backend-1", "backend-3"]);
    assert_eq!(rig.restart(), 0);
    rig.endpoints("web", &[]);
    refused(&asks(rig.everybody(), &targets));
}

fn ipv6_comes_first() {
    let mut rig = Rig::new();
    rig.apply(service_cidr("kubernetes", &[SERVICE_CIDR6, SERVICE_CIDR4]));
    let members = [halves(&rig, "backend-1", "backend-2")];
    rig.program(named("web", ["fd00:10:96::2001", "10.96.20.1"]).object(), &members);
    answered_by(&asks(rig.everybody(), &vips([WEB[0]])), ["backend-1"]);
    answered_by(&asks(rig.everybody(), &vips([WEB[1]])), ["backend-2"]);
    unanswered(&asks(
        [&rig.node().client],
        &vips(["10.96.20.9:80", "[fd00:10:96::2009]:80"]),
    ));
}

fn at(addresses: [&str; 2]) -> Vec<Vip> {
    let tcp = |address: &str| Vip {
        address: address.parse().expect("an address"),
        protocol: Protocol::Tcp,
        port: 30080,
    };
    addresses.map(tcp).into()
}

/// The node's addresses in the lab, and those that it gets.
const OLD: [&str; 2] = ["192.168.50.1", "fd00:50::1"];
const NEW: [&str; 2] = ["192.168.50.101", "fd00:50::101"];

/// `node-1`, known under these addresses.
fn node_at(addresses: [&str; 2]) -> serde_json::Value {
    let [v4, v6] = addresses;
    node_with("node-1").address(v4).address(v6).object()
}

fn node_ports_follow_the_nodes_address_at_once() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web_on_nodes().object(), &members);
    rig.node().netns.batch(&format!(
        "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad",
        NEW[0], NEW[1]
    ));
    rig.proxy().read_addresses();
    rig.commit();
    let [old, new] = [at(OLD), at(NEW)];
    for _ in 0..2 {
        answered_by(&asks(rig.everybody(), &old), ["backend-1"]);
        refused(&asks([&rig.node().client], &new));
        rig.apply(node_at(NEW));
        rig.commit();
        answered_by(&asks(rig.everybody(), &new), ["backend-1"]);
        refused(&asks([&rig.node().client], &old));
        rig.apply(node_at(OLD));
        rig.commit();
    }
}

fn an_address_of_a_chosen_network_comes_and_goes() {
    let networks = ["192.168.50.0/24", "fd00:50::/64"].map(|network| network.parse().expect("a network"));
    let mut rig = Rig::with(&Setup {
        nodeport_addresses: NodePortAddresses::Networks(networks.into()),
        ..Setup::default()
    });
    let members = rig.members(["backend-1"]);
    rig.program(web_on_nodes().object(), &members);
    let [old, new] = [at(OLD), at(NEW)];
    let node = rig.node().netns.clone();
    for _ in 0..2 {
        node.batch(&format!(
            "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad",
            NEW[0], NEW[1]
        ));
        // The kernel takes an IPv6 address in the background.
        wait::until_blocking("the node's new address", LIMIT, || {
            let route = node.pipe("ip", &["route", "get", NEW[1]], "");
            route.contains("local").then_some(())
        });
        // Until the agent has heard of it, the address is the node's own.
        refused(&asks([&rig.node().client], &new));
        rig.proxy().read_addresses();
        rig.commit();
        answered_by(&asks(rig.everybody(), &new), ["backend-1"]);
        node.batch(&format!(
            "addr del {}/24 dev eth0\naddr del {}/64 dev eth0",
            NEW[0], NEW[1]
        ));
        rig.proxy().read_addresses();
        rig.commit();
        answered_by(&asks(rig.everybody(), &old), ["backend-1"]);
        let table = rig.proxy().table();
        assert!(
            !NEW.iter().any(|address| table.contains(&format!(" {address} "))),
            "{table}"
        );
    }
}

fn a_node_whose_object_is_deleted_serves_on() {
    for local_traffic in [Setup::default().local_traffic, LocalTraffic::NodeCidr] {
        let mut rig = Rig::with(&Setup {
            local_traffic,
            ..Setup::default()
        });
        let members = rig.members(["backend-1"]);
        rig.program(web_on_nodes().object(), &members);
        let mut targets = vips(WEB);
        targets.extend(rig.on_node(30080));
        // By mistake, as a rule: its kubelet makes it anew, and its pods never noticed.
        rig.delete("Node", "", "node-1");
        rig.commit();
        answered_by(&asks(rig.everybody(), &targets), ["backend-1"]);
        rig.apply(node_object(rig.node()));
        rig.commit();
        answered_by(&asks(rig.everybody(), &targets), ["backend-1"]);
    }
}

fn masquerading_follows_the_address() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    let client = rig.node().client.clone();
    // The device's address is another one from now on; the networks stay.
    let node = rig.node().netns.clone();
    node.sysctl("ipv4/conf/eth0/promote_secondaries", "1");
    node.batch("addr add 192.168.50.101/24 dev eth0\naddr del 192.168.50.1/24 dev eth0");
    rig.proxy().read_addresses();
    rig.commit();
    for ask in asks([&client], &vips([WEB[0]])) {
        assert_eq!(rig.seen(&ask).1, IpAddr::from([192, 168, 50, 101]));
    }
}
