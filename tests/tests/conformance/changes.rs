//! Services that hide, that become something else, and that make no sense.

use nftfleet_domain::service::{Protocol, Vip};
use nftfleet_tests::manifests::{AddressType, Readiness, endpoint_slice, service};
use serde_json::json;

use crate::ask::{answered_by, asks, refused, unanswered, vip, vips};
use crate::case::cases;
use crate::objects::{NAMESPACE, PORT, WEB, named, slices, web, web_on_nodes, with_members};
use crate::rig::Rig;

cases! {
    Hidden: a_headless_service_has_no_address, ["PT:1407"];
    Hidden: an_external_name_has_no_address, ["PT:1435"];
    TypeChanges: every_type_after_every_other, ["PT:1318", "PT:1458", "S:1500", "S:1540", "loadbalancer.go:642"];
    TypeChanges: external_name_becomes_cluster_ip_and_back, ["S:1423", "S:1462", "PT:1435"];
    TypeChanges: a_service_gets_another_cluster_ip, ["PT:1458"];
    TypeChanges: another_node_port_and_another_protocol_take_over, ["PT:1458"];
    TypeChanges: many_changes_in_one_commit, ["PT:1318"];
    BadIps: leading_zeros_are_read_as_decimal, ["PT:4791"];
    BadIps: what_makes_no_sense_is_named_and_the_rest_is_served, ["PT:4791"];
    BadIps: a_slice_with_addresses_of_the_other_family_is_named, [];
}

fn a_headless_service_has_no_address() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    let before = rig.proxy().table();
    let headless = service(NAMESPACE, "headless")
        .cluster_ips(["None"])
        .port("tcp", "TCP", 80, PORT);
    rig.program(headless.object(), &members);
    assert_eq!(rig.proxy().table(), before);
}

fn an_external_name_has_no_address() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    let before = rig.proxy().table();
    let external = service(NAMESPACE, "mail")
        .port("tcp", "TCP", 80, PORT)
        .external_name("mail.example");
    rig.program(external.object(), &members);
    assert_eq!(rig.proxy().table(), before);
}

fn every_type_after_every_other() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.endpoints("web", &members);
    let balancer = vips(["198.51.100.10:80", "[fd00:198::10]:80"]);
    let objects = [
        web().object(),
        web_on_nodes().object(),
        web_on_nodes().ingress("198.51.100.10").ingress("fd00:198::10").object(),
        // A balancer without node ports.
        web()
            .ingress("198.51.100.10")
            .ingress("fd00:198::10")
            .spec("allocateLoadBalancerNodePorts", false)
            .object(),
    ];
    let node_ports = [false, true, true, false];
    let has_balancer = [false, false, true, true];
    for at in [0, 1, 2, 3, 2, 1, 0, 2, 0, 3, 1, 3, 0] {
        rig.apply(objects[at].clone());
        rig.commit();
        let client = rig.node().client.clone();
        answered_by(&asks([&client], &vips(WEB)), ["backend-1"]);
        if node_ports[at] {
            answered_by(&asks([&client], &rig.on_node(30080)), ["backend-1"]);
        } else {
            refused(&asks([&client], &rig.on_node(30080)));
        }
        if has_balancer[at] {
            answered_by(&asks([&client], &balancer), ["backend-1"]);
        } else {
            unanswered(&asks([&client], &balancer));
        }
    }
}

fn external_name_becomes_cluster_ip_and_back() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.endpoints("web", &members);
    for _ in 0..2 {
        rig.apply(web_on_nodes().external_name("web.example").object());
        rig.commit();
        unanswered(&asks([&rig.node().client, &rig.node().pod], &vips(WEB)));
        refused(&asks([&rig.node().client], &rig.on_node(30080)));
        rig.apply(web_on_nodes().object());
        rig.commit();
        answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
        answered_by(&asks(rig.everybody(), &rig.on_node(30080)), ["backend-1"]);
    }
}

fn a_service_gets_another_cluster_ip() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    // Only through another object of the same name; the deletion may never be seen.
    let mut moved = named("web", ["10.96.20.5", "fd00:10:96::2005"]).object();
    moved["metadata"]["uid"] = json!("4d1e9a3a-0000-4000-8000-000000000001");
    rig.apply(moved);
    rig.commit();
    unanswered(&asks([&rig.node().client, &rig.node().pod], &vips(WEB)));
    let other = vips(["10.96.20.5:80", "[fd00:10:96::2005]:80"]);
    answered_by(&asks(rig.everybody(), &other), ["backend-1"]);
}

fn another_node_port_and_another_protocol_take_over() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.endpoints("web", &members);
    let with = |name: &str, protocol: &str, node_port: u16| {
        service(NAMESPACE, "web")
            .cluster_ips(["10.96.20.1", "fd00:10:96::2001"])
            .port(name, protocol, 80, PORT)
            .node_port(node_port)
            .object()
    };
    let mut before = Vec::new();
    for (name, protocol, node_port) in [
        ("tcp", "TCP", 30080),
        ("tcp", "TCP", 30081),
        ("udp", "UDP", 30081),
        ("udp", "UDP", 30080),
        ("tcp", "TCP", 30080),
    ] {
        rig.apply(with(name, protocol, node_port));
        rig.commit();
        let protocol = protocol.parse().expect("a protocol");
        let mut now = WEB.map(|at| vip(at, protocol)).to_vec();
        now.extend(rig.node_ports(node_port, protocol));
        answered_by(&asks(rig.everybody(), &now), ["backend-1"]);
        before.retain(|vip| !now.contains(vip));
        if !before.is_empty() {
            refused(&asks([&rig.node().client], &before));
        }
        before = now;
    }
}

fn many_changes_in_one_commit() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1", "backend-2"]);
    rig.program(web().object(), &members);
    rig.program(named("gone", ["10.96.20.8", "fd00:10:96::2008"]).object(), &members);
    // Two Services change places, one goes, one comes; all at once.
    let other = rig.members(["backend-3"]);
    rig.apply_all(slices("other", &other));
    rig.apply(web().cluster_ips(["10.96.20.2", "fd00:10:96::2002"]).object());
    rig.apply(named("other", ["10.96.20.1", "fd00:10:96::2001"]).object());
    rig.delete("Service", NAMESPACE, "gone");
    rig.delete("EndpointSlice", NAMESPACE, "gone-4");
    rig.delete("EndpointSlice", NAMESPACE, "gone-6");
    rig.commit();
    let second = vips(["10.96.20.2:80", "[fd00:10:96::2002]:80"]);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-3"]);
    answered_by(&asks(rig.everybody(), &second), ["backend-1", "backend-2"]);
    unanswered(&asks(
        [&rig.node().client],
        &vips(["10.96.20.8:80", "[fd00:10:96::2008]:80"]),
    ));
    // To and fro within one commit is no change at all.
    let before = rig.proxy().table();
    rig.apply(web().object());
    rig.apply(web().cluster_ips(["10.96.20.2", "fd00:10:96::2002"]).object());
    assert_eq!(rig.commit(), 0);
    assert_eq!(rig.proxy().table(), before);
}

fn leading_zeros_are_read_as_decimal() {
    let mut rig = Rig::new();
    let service = service(NAMESPACE, "web")
        .cluster_ips(["010.096.020.001"])
        .port("tcp", "TCP", 80, PORT)
        .node_port(30080)
        .port("udp", "UDP", 80, PORT)
        .ingress("198.051.100.010")
        .external_ips(["198.051.100.011"])
        .source_ranges(["172.030.001.002/32"]);
    rig.apply(service.object());
    let slice = endpoint_slice(NAMESPACE, "web", "4", AddressType::IPv4)
        .port("tcp", "TCP", PORT)
        .port("udp", "UDP", PORT)
        .endpoint("010.128.200.001", "node-9", Readiness::READY);
    rig.apply(slice.object());
    rig.commit();
    let client = rig.node().client.clone();
    let targets = vips([WEB[0], "198.51.100.10:80", "198.51.100.11:80"]);
    answered_by(&asks([&client], &targets), ["backend-1"]);
    let balancer = vips(["198.51.100.10:80"]);
    unanswered(&asks([&rig.node().pod], &balancer));
    // The same in plain writing is no change.
    let plain = service_in_plain();
    rig.apply(plain);
    assert_eq!(rig.commit(), 0);
}

/// The Service above, as it should have been written.
fn service_in_plain() -> serde_json::Value {
    service(NAMESPACE, "web")
        .cluster_ips(["10.96.20.1"])
        .port("tcp", "TCP", 80, PORT)
        .node_port(30080)
        .port("udp", "UDP", 80, PORT)
        .ingress("198.51.100.10")
        .external_ips(["198.51.100.11"])
        .source_ranges(["172.30.1.2/32"])
        .object()
}

fn what_makes_no_sense_is_named_and_the_rest_is_served() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    // Each of these is wrong in one place; whatever is done with the rest of it, others are served.
    let wrong = [
        named("a", ["10.96.20.300", "fd00:10:96::200a"]).object(),
        named("b", ["10.96.20.11", "fd00:10:96::2oob"]).object(),
        named("c", ["10.96.20.12", "fd00:10:96::200c"])
            .port("x", "GRE", 90, PORT)
            .object(),
        named("d", ["10.96.20.13", "fd00:10:96::200d"])
            .external_ips(["198.51.100"])
            .object(),
        named("e", ["10.96.20.14", "fd00:10:96::200e"])
            .ingress("fd00::g")
            .object(),
        named("f", ["10.96.20.15", "fd00:10:96::200f"])
            .ingress("198.51.100.30")
            .source_ranges(["172.30.1.0/33"])
            .object(),
    ];
    for object in wrong {
        let name = object["metadata"]["name"].clone();
        let complaints = rig.apply_doubtful(object);
        assert!(!complaints.is_empty(), "{name} makes no sense");
    }
    let mut slice = slices("web", &members)[0].clone();
    slice["metadata"]["name"] = json!("web-wrong");
    slice["endpoints"][0]["addresses"] = json!(["10.128.200"]);
    assert!(!rig.apply_doubtful(slice).is_empty());
    rig.commit();
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
    // A limit that cannot be read must not open the door.
    let limited = [vip("198.51.100.30:80", Protocol::Tcp)];
    unanswered(&asks(rig.everybody(), &limited));
    // And what was wrong is put right.
    rig.apply(named("a", ["10.96.20.10", "fd00:10:96::200a"]).object());
    rig.endpoints("a", &members);
    let right: Vec<Vip> = vips(["10.96.20.10:80", "[fd00:10:96::200a]:80"]);
    answered_by(&asks(rig.everybody(), &right), ["backend-1"]);
}

fn a_slice_with_addresses_of_the_other_family_is_named() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    let wrong = endpoint_slice(NAMESPACE, "web", "wrong", AddressType::IPv6)
        .port("tcp", "TCP", PORT)
        .endpoint("10.128.200.2", "node-9", Readiness::READY);
    assert!(!rig.apply_doubtful(wrong.object()).is_empty());
    // Names of hosts are of no family at all, and no mistake.
    let mut names = with_members(
        endpoint_slice(NAMESPACE, "web", "names", AddressType::IPv4).port("tcp", "TCP", PORT),
        AddressType::IPv4,
        &members,
    )
    .object();
    names["addressType"] = json!("FQDN");
    names["endpoints"][0]["addresses"] = json!(["pod.example"]);
    rig.apply(names);
    rig.commit();
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
}
