//! Addresses that a load balancer or the site brings to the nodes.

use nftfleet_domain::service::{Protocol, Vip};
use nftfleet_tests::backends::Backend;
use nftfleet_tests::manifests::service;
use serde_json::json;

use crate::ask::{answered_by, asks, refused, unanswered, vip, vips};
use crate::case::cases;
use crate::objects::{BALANCER, NAMESPACE, PORT, WEB, named, web};
use crate::rig::Rig;

cases! {
    LoadBalancer: every_address_of_the_balancer_answers, ["PT:723", "loadbalancer.go:132", "loadbalancer.go:270"];
    LoadBalancer: an_address_in_mode_proxy_passes_by, ["PT:4533"];
    LoadBalancer: an_entry_without_an_address_is_none, [];
    LoadBalancer: other_ports_of_the_address_pass_by, [];
    LoadBalancer: addresses_come_and_go_with_the_balancer, ["loadbalancer.go:642"];
    LoadBalancer: two_services_share_one_address, [];
    LoadBalancer: the_nodes_own_address_may_be_the_balancers, [];
    ExternalIps: an_address_that_the_site_brings_answers, ["PT:204", "S:1313"];
    ExternalIps: the_older_of_two_services_keeps_the_address, [];
    ExternalIps: addresses_come_and_go, [];
}

/// Where another address of the balancer or of the site is.
const SECOND: [&str; 2] = ["198.51.100.20:80", "[fd00:198::20]:80"];

fn tcp(at: [&str; 2]) -> Vec<Vip> {
    at.map(|at| vip(at, Protocol::Tcp)).into()
}

fn every_address_of_the_balancer_answers() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1", "pod-1"]);
    let balanced = web()
        .ingress("198.51.100.10")
        .ingress("fd00:198::10")
        // Older clusters have no mode: it means VIP.
        .ingress_entry(json!({"ip": "198.51.100.20"}))
        .ingress_entry(json!({"ip": "fd00:198::20", "ports": [{"port": 80, "protocol": "TCP"}]}));
    rig.program(balanced.object(), &members);
    let targets = vips(BALANCER.into_iter().chain(SECOND).chain(WEB));
    answered_by(&asks(rig.everybody(), &targets), ["backend-1", "pod-1"]);
}

fn an_address_in_mode_proxy_passes_by() {
    let mut rig = Rig::new();
    let _outside = rig.outsider(&["198.51.100.20", "fd00:198::20"], 80);
    let members = rig.members(["backend-1"]);
    let entries = |mode: &str| {
        web()
            .ingress("198.51.100.10")
            .ingress("fd00:198::10")
            .ingress_entry(json!({"ip": "198.51.100.20", "ipMode": mode}))
            .ingress_entry(json!({"ip": "fd00:198::20", "ipMode": mode}))
            .object()
    };
    rig.program(entries("Proxy"), &members);
    answered_by(&asks(rig.everybody(), &tcp(SECOND)), ["outside"]);
    answered_by(&asks(rig.everybody(), &vips(BALANCER)), ["backend-1"]);
    rig.apply(entries("VIP"));
    rig.commit();
    answered_by(&asks(rig.everybody(), &tcp(SECOND)), ["backend-1"]);
}

fn an_entry_without_an_address_is_none() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    let balanced = web()
        .ingress_entry(json!({"hostname": "balancer.example"}))
        .ingress("198.51.100.10");
    rig.program(balanced.object(), &members);
    answered_by(
        &asks(rig.everybody(), &vips([WEB[0], WEB[1], BALANCER[0]])),
        ["backend-1"],
    );
}

fn other_ports_of_the_address_pass_by() {
    let mut rig = Rig::new();
    let _outside = rig.outsider(&["198.51.100.10", "fd00:198::10"], 81);
    let members = rig.members(["backend-1"]);
    let balanced = web().ingress("198.51.100.10").external_ips(["fd00:198::10"]);
    rig.program(balanced.object(), &members);
    answered_by(&asks(rig.everybody(), &vips(BALANCER)), ["backend-1"]);
    let other = tcp(["198.51.100.10:81", "[fd00:198::10]:81"]);
    answered_by(&asks(rig.everybody(), &other), ["outside"]);
}

fn addresses_come_and_go_with_the_balancer() {
    let mut rig = Rig::new();
    let _outside = rig.outsider(&["198.51.100.10", "fd00:198::10"], 80);
    let members = rig.members(["backend-1"]);
    rig.program(web().load_balancer().object(), &members);
    answered_by(&asks(rig.everybody(), &tcp(BALANCER)), ["outside"]);
    rig.apply(web().ingress("198.51.100.10").ingress("fd00:198::10").object());
    rig.commit();
    answered_by(&asks(rig.everybody(), &tcp(BALANCER)), ["backend-1"]);
    // Another address in place of the first.
    rig.apply(web().ingress("198.51.100.20").ingress("fd00:198::20").object());
    rig.commit();
    answered_by(&asks(rig.everybody(), &tcp(BALANCER)), ["outside"]);
    answered_by(&asks(rig.everybody(), &vips(SECOND)), ["backend-1"]);
    // No balancer any more.
    rig.apply(web().object());
    rig.commit();
    unanswered(&asks([&rig.node().client, &rig.node().pod], &vips(SECOND)));
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
}

fn two_services_share_one_address() {
    let mut rig = Rig::new();
    let shared = |name, cluster_ips: [&str; 2], port| {
        service(NAMESPACE, name)
            .cluster_ips(cluster_ips)
            .port("tcp", "TCP", port, PORT)
            .ingress("198.51.100.10")
            .ingress("fd00:198::10")
            .object()
    };
    let members = rig.members(["backend-1"]);
    rig.program(shared("web", ["10.96.20.1", "fd00:10:96::2001"], 80), &members);
    let members = rig.members(["backend-2"]);
    rig.program(shared("db", ["10.96.20.2", "fd00:10:96::2002"], 5432), &members);
    let db = tcp(["198.51.100.10:5432", "[fd00:198::10]:5432"]);
    answered_by(&asks(rig.everybody(), &tcp(BALANCER)), ["backend-1"]);
    answered_by(&asks(rig.everybody(), &db), ["backend-2"]);
    // One of them goes, the address stays the other's.
    rig.delete("Service", NAMESPACE, "web");
    rig.commit();
    answered_by(&asks(rig.everybody(), &db), ["backend-2"]);
    unanswered(&asks([&rig.node().client, &rig.node().pod], &tcp(BALANCER)));
}

fn the_nodes_own_address_may_be_the_balancers() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1", "pod-1"]);
    let [v4, v6] = [0, 1].map(|at| rig.addresses("node-1")[at].to_string());
    let balanced = || web().ingress(&v4).external_ips([&v6]);
    rig.program(balanced().object(), &members);
    let host = Backend::start(&rig.node().netns, "host", &[22], &[]);
    answered_by(&asks(rig.everybody(), &rig.on_node(80)), ["backend-1", "pod-1"]);
    // Whatever else listens there is the node's.
    let other = rig.node_ports(22, Protocol::Tcp);
    answered_by(&asks(rig.everybody(), &other), ["host"]);
    rig.apply(balanced().external_policy("Local").object());
    rig.commit();
    answered_by(&asks([&rig.node().client], &rig.on_node(80)), ["pod-1"]);
    rig.endpoints("web", &[]);
    refused(&asks(rig.everybody(), &rig.on_node(80)));
    // Without the Service the port is the node's too.
    rig.delete("Service", NAMESPACE, "web");
    rig.commit();
    drop(host);
    let _host = Backend::start(&rig.node().netns, "host", &[80], &[]);
    answered_by(&asks(rig.everybody(), &rig.node_ports(80, Protocol::Tcp)), ["host"]);
}

fn an_address_that_the_site_brings_answers() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1", "pod-1"]);
    let external = web().external_ips(["198.51.100.10", "fd00:198::10"]);
    rig.program(external.object(), &members);
    answered_by(&asks(rig.everybody(), &vips(BALANCER)), ["backend-1", "pod-1"]);
    rig.endpoints("web", &[]);
    refused(&asks(rig.everybody(), &vips(BALANCER)));
}

fn the_older_of_two_services_keeps_the_address() {
    let mut rig = Rig::new();
    let claim = |name, cluster_ips, created| {
        named(name, cluster_ips)
            .external_ips(["198.51.100.10", "fd00:198::10"])
            .created(created)
            .object()
    };
    // In name and in time of arrival the younger is first.
    let members = rig.members(["backend-2"]);
    let younger = claim("a-younger", ["10.96.20.2", "fd00:10:96::2002"], "2026-03-01T00:00:00Z");
    rig.program(younger.clone(), &members);
    answered_by(&asks(rig.everybody(), &vips(BALANCER)), ["backend-2"]);
    let members = rig.members(["backend-1"]);
    let older = claim("web", ["10.96.20.1", "fd00:10:96::2001"], "2026-02-01T00:00:00Z");
    rig.program(older, &members);
    answered_by(&asks(rig.everybody(), &vips(BALANCER)), ["backend-1"]);
    // Each keeps its own addresses, and the agent can say who got nothing.
    let own = vips(["10.96.20.2:80", "[fd00:10:96::2002]:80"]);
    answered_by(&asks(rig.everybody(), &own), ["backend-2"]);
    let conflicts = rig.proxy().index.conflicts();
    let mut shown: Vec<String> = conflicts
        .iter()
        .map(|conflict| format!("{}: {} before {}", conflict.vip, conflict.holder, conflict.loser))
        .collect();
    shown.sort();
    assert_eq!(
        shown,
        [
            "198.51.100.10 tcp 80: shop/web before shop/a-younger",
            "198.51.100.10 udp 80: shop/web before shop/a-younger",
            "fd00:198::10 tcp 80: shop/web before shop/a-younger",
            "fd00:198::10 udp 80: shop/web before shop/a-younger",
        ]
    );
    // A change of the loser does not take the address, the end of the holder hands it over.
    rig.apply(younger);
    rig.commit();
    answered_by(&asks([&rig.node().client], &vips(BALANCER)), ["backend-1"]);
    rig.delete("Service", NAMESPACE, "web");
    rig.commit();
    answered_by(&asks(rig.everybody(), &vips(BALANCER)), ["backend-2"]);
    assert!(rig.proxy().index.conflicts().is_empty());
}

fn addresses_come_and_go() {
    let mut rig = Rig::new();
    let _outside = rig.outsider(&["198.51.100.10", "fd00:198::10"], 80);
    let members = rig.members(["backend-1"]);
    rig.program(web().external_ips(["198.51.100.10", "fd00:198::20"]).object(), &members);
    answered_by(&asks(rig.everybody(), &tcp([BALANCER[0], SECOND[1]])), ["backend-1"]);
    rig.apply(web().external_ips(["198.51.100.20", "fd00:198::20"]).object());
    rig.commit();
    answered_by(&asks(rig.everybody(), &tcp(BALANCER)), ["outside"]);
    answered_by(&asks(rig.everybody(), &tcp(SECOND)), ["backend-1"]);
}
