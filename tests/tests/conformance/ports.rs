//! Services with many ports, named target ports, and several protocols on one port.

use nftfleet_domain::service::Protocol;
use nftfleet_tests::manifests::{AddressType, Readiness, endpoint_slice, service};
use serde_json::json;

use crate::ask::{Ask, answered_by, asks, refused, vip, vips};
use crate::case::cases;
use crate::objects::{NAMESPACE, PORT, WEB, web};
use crate::rig::Rig;

cases! {
    Ports: each_port_has_endpoints_of_its_own, ["S:803", "PT:533 TargetPort != Port"];
    Ports: a_named_target_port_is_another_number_in_every_slice, ["S:4116", "endpointslice.go:458"];
    Ports: a_slice_port_without_a_number_is_ignored, [];
    Ports: ports_come_and_go, ["S:906"];
    Ports: thousands_of_ports_of_one_service, [];
    SamePort: tcp_and_udp_of_one_port_are_two_services, ["PT:533 TCP/UDP/SCTP same port", "S:3579"];
    SamePort: tcp_and_udp_of_one_node_port_are_two_services, ["S:1350"];
    SamePort: tcp_and_udp_of_one_load_balancer_are_two_services, ["S:3701"];
}

/// A server's place: a backend and the port on it.
struct Place {
    name: &'static str,
    backend: usize,
    port: u16,
}

/// Starts the servers, and gives a slice in each family for each: the port of this name is at the server's own number.
fn slices_of(rig: &mut Rig, port_name: &str, protocol: &str, places: &[Place]) {
    for place in places {
        let backend = rig.lab.backend(place.backend).clone();
        if !rig.servers.contains_key(place.name) {
            rig.serve(&backend.netns, place.name, place.port);
        }
        for (kind, address) in [
            (AddressType::IPv4, backend.address4.to_string()),
            (AddressType::IPv6, backend.address6.to_string()),
        ] {
            let suffix = format!("{port_name}-{}-{kind:?}", place.name);
            let slice = endpoint_slice(NAMESPACE, "web", &suffix, kind)
                .port(port_name, protocol, place.port)
                .endpoint(&address, "node-9", Readiness::READY);
            rig.apply(slice.object());
        }
    }
}

fn each_port_has_endpoints_of_its_own() {
    let mut rig = Rig::new();
    let two_ports = service(NAMESPACE, "web")
        .cluster_ips(["10.96.20.1", "fd00:10:96::2001"])
        .port("http", "TCP", 80, 9001)
        .port("admin", "TCP", 81, 9002);
    rig.apply(two_ports.object());
    let place = |name, backend, port| Place { name, backend, port };
    slices_of(&mut rig, "http", "TCP", &[place("http", 1, 9001)]);
    slices_of(
        &mut rig,
        "admin",
        "TCP",
        &[place("admin", 1, 9002), place("admin-2", 2, 9002)],
    );
    rig.commit();
    let tcp = |at: [&str; 2]| at.map(|at| vip(at, Protocol::Tcp));
    answered_by(&asks(rig.everybody(), &tcp(WEB)), ["http"]);
    let admin = tcp(["10.96.20.1:81", "[fd00:10:96::2001]:81"]);
    answered_by(&asks(rig.everybody(), &admin), ["admin", "admin-2"]);
}

fn a_named_target_port_is_another_number_in_every_slice() {
    let mut rig = Rig::new();
    let named = service(NAMESPACE, "web")
        .cluster_ips(["10.96.20.1", "fd00:10:96::2001"])
        .port("http", "TCP", 80, "web");
    rig.apply(named.object());
    let place = |name, backend, port| Place { name, backend, port };
    let places = [place("old", 1, 9001), place("new", 2, 9002), place("newest", 1, 9003)];
    slices_of(&mut rig, "http", "TCP", &places);
    // Of a port that the Service does not have.
    slices_of(&mut rig, "metrics", "TCP", &[place("metrics", 3, 9004)]);
    rig.commit();
    let targets = WEB.map(|at| vip(at, Protocol::Tcp));
    answered_by(&asks(rig.everybody(), &targets), ["old", "new", "newest"]);
}

fn a_slice_port_without_a_number_is_ignored() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    for (suffix, number) in [("none", json!(null)), ("zero", json!(0))] {
        let slice = endpoint_slice(NAMESPACE, "web", suffix, AddressType::IPv4)
            .port_entry(json!({"name": "tcp", "port": number, "protocol": "TCP"}))
            .port("udp", "UDP", PORT)
            .endpoint("10.128.200.2", "node-9", Readiness::READY);
        rig.apply(slice.object());
    }
    rig.commit();
    answered_by(&asks(rig.everybody(), &[vip(WEB[0], Protocol::Tcp)]), ["backend-1"]);
    // The slice's other port counts.
    let udp = [vip(WEB[0], Protocol::Udp)];
    answered_by(&asks(rig.everybody(), &udp), ["backend-1", "backend-2"]);
}

fn ports_come_and_go() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    let second = vips(["10.96.20.1:8443", "[fd00:10:96::2001]:8443"]);
    let other = ["10.96.20.1:81", "[fd00:10:96::2001]:81"].map(|at| vip(at, Protocol::Tcp));
    refused(&asks([&rig.node().client], &other));

    rig.apply(web().port("admin", "TCP", 81, 9002).object());
    let place = Place {
        name: "admin",
        backend: 2,
        port: 9002,
    };
    slices_of(&mut rig, "admin", "TCP", &[place]);
    rig.commit();
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
    answered_by(&asks(rig.everybody(), &other), ["admin"]);

    // The first two ports get another number, the third one goes.
    let moved = service(NAMESPACE, "web")
        .cluster_ips(["10.96.20.1", "fd00:10:96::2001"])
        .port("tcp", "TCP", 8443, PORT)
        .port("udp", "UDP", 8443, PORT);
    rig.apply(moved.object());
    rig.commit();
    answered_by(&asks(rig.everybody(), &second), ["backend-1"]);
    let client = &rig.node().client;
    refused(&asks([client], &vips(WEB)));
    refused(&asks([client], &other));
}

fn thousands_of_ports_of_one_service() {
    const PORTS: u16 = 3_000;
    let mut rig = Rig::new();
    let many = |first: u16| {
        let service = service(NAMESPACE, "web").cluster_ips(["10.96.20.1", "fd00:10:96::2001"]);
        (first..first + PORTS).fold(service, |service, number| {
            service.port(&format!("p{number}"), "TCP", number, PORT)
        })
    };
    let slice = |kind, address: String| {
        let slice = endpoint_slice(NAMESPACE, "web", &format!("{kind:?}"), kind);
        let slice = (1..=2 * PORTS).fold(slice, |slice, number| slice.port(&format!("p{number}"), "TCP", PORT));
        slice.endpoint(&address, "node-9", Readiness::READY).object()
    };
    let backend = rig.lab.backend(1);
    let slices = [
        slice(AddressType::IPv4, backend.address4.to_string()),
        slice(AddressType::IPv6, backend.address6.to_string()),
    ];
    rig.apply(many(1).object());
    rig.apply_all(slices);
    rig.commit();
    let at = |number: u16| {
        let addresses = ["10.96.20.1", "[fd00:10:96::2001]"];
        addresses.map(|address| vip(&format!("{address}:{number}"), Protocol::Tcp))
    };
    let ask = |rig: &Rig, number| asks([&rig.node().client], &at(number));
    for number in [1, 2, PORTS / 2, PORTS] {
        answered_by(&ask(&rig, number), ["backend-1"]);
    }
    refused(&ask(&rig, PORTS + 1));
    // Half of them go, as many come.
    rig.apply(many(PORTS / 2 + 1).object());
    rig.commit();
    for number in [PORTS / 2 + 1, PORTS, PORTS / 2 + PORTS] {
        answered_by(&ask(&rig, number), ["backend-1"]);
    }
    for number in [1, PORTS / 2] {
        refused(&ask(&rig, number));
    }
}

/// The TCP port of a Service is served by one endpoint, the UDP port of the same number by another.
fn tcp_here_and_udp_there(rig: &mut Rig, service: serde_json::Value) {
    rig.apply(service);
    let place = |name, backend, port| Place { name, backend, port };
    slices_of(rig, "tcp", "TCP", &[place("over-tcp", 1, 9001)]);
    slices_of(rig, "udp", "UDP", &[place("over-udp", 2, 9002)]);
    rig.commit();
}

fn tcp_and_udp_answer_apart(asks: &[Ask]) {
    for (protocol, name) in [(Protocol::Tcp, "over-tcp"), (Protocol::Udp, "over-udp")] {
        let of_protocol = asks.iter().filter(|ask| ask.to.protocol == protocol).cloned();
        answered_by(&of_protocol.collect::<Vec<_>>(), [name]);
    }
}

fn tcp_and_udp_of_one_port_are_two_services() {
    let mut rig = Rig::new();
    tcp_here_and_udp_there(&mut rig, web().object());
    tcp_and_udp_answer_apart(&asks(rig.everybody(), &vips(WEB)));
    // Without its UDP port, the TCP port is what it was.
    let tcp_alone = service(NAMESPACE, "web")
        .cluster_ips(["10.96.20.1", "fd00:10:96::2001"])
        .port("tcp", "TCP", 80, PORT);
    rig.apply(tcp_alone.object());
    rig.commit();
    answered_by(
        &asks(rig.everybody(), &WEB.map(|at| vip(at, Protocol::Tcp))),
        ["over-tcp"],
    );
    refused(&asks(rig.everybody(), &WEB.map(|at| vip(at, Protocol::Udp))));
}

fn tcp_and_udp_of_one_node_port_are_two_services() {
    let mut rig = Rig::new();
    tcp_here_and_udp_there(&mut rig, crate::objects::web_on_nodes().object());
    tcp_and_udp_answer_apart(&asks(rig.everybody(), &rig.on_node(30080)));
}

fn tcp_and_udp_of_one_load_balancer_are_two_services() {
    let mut rig = Rig::new();
    let balanced = web().ingress("198.51.100.10").ingress("fd00:198::10");
    tcp_here_and_udp_there(&mut rig, balanced.object());
    let targets = vips(["198.51.100.10:80", "[fd00:198::10]:80"]);
    tcp_and_udp_answer_apart(&asks(rig.everybody(), &targets));
}
