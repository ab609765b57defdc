//! What is asked in vain: refused where somebody should know, dropped where nobody is to answer, and left alone elsewhere.

use nftfleet_domain::service::{Protocol, Vip};
use nftfleet_tests::lab::{SERVICE_CIDR4, SERVICE_CIDR6};
use nftfleet_tests::manifests::{Readiness, service, service_cidr};

use crate::ask::{answered_by, asks, refused, unanswered, vip, vips};
use crate::case::cases;
use crate::objects::{NAMESPACE, PORT, WEB, exposed, named, web};
use crate::rig::Rig;

cases! {
    NoEndpoints: everybody_is_refused_on_every_way_in, ["PT:456", "S:2419"];
    NoEndpoints: endpoints_that_are_all_dead_are_none, ["PT:456", "S:2464"];
    NoEndpoints: the_last_one_goes_and_the_first_one_comes, ["S:2419", "S:2464"];
    NoEndpoints: traffic_policies_change_nothing_about_it, ["PT:456", "PT:1061"];
    NoEndpoints: affinity_changes_nothing_about_it, [];
    UndefinedPort: another_port_is_refused, ["PT:533 svc1 does not accept svc2's ports"];
    UndefinedPort: another_protocol_is_refused, ["PT:533 wrong protocol"];
    Unallocated: an_address_of_nobody_is_dropped, ["PT:533 unallocated cluster IP", "service_cidrs.go:69"];
    Unallocated: an_address_outside_passes, ["PT:533 unallocated cluster IP"];
    Unallocated: a_cluster_ip_outside_every_network_is_served, [];
    ServiceCidr: a_network_that_comes_or_goes_takes_effect_at_once, ["PT:4771", "service_cidrs.go:69"];
    ServiceCidr: networks_may_overlap, ["PT:4771"];
}

fn everywhere(rig: &Rig) -> Vec<Vip> {
    let mut targets = vips(WEB);
    targets.extend(rig.outside());
    targets
}

fn everybody_is_refused_on_every_way_in() {
    let mut rig = Rig::new();
    // With slices that are empty, and without any.
    rig.apply(exposed().object());
    rig.commit();
    refused(&asks(rig.everybody(), &everywhere(&rig)));
    rig.endpoints("web", &[]);
    refused(&asks(rig.everybody(), &everywhere(&rig)));
}

fn endpoints_that_are_all_dead_are_none() {
    let mut rig = Rig::new();
    let members = [
        rig.member("backend-1").is(Readiness::UNREADY),
        rig.member("pod-1").is(Readiness::GONE),
    ];
    rig.program(exposed().object(), &members);
    refused(&asks(rig.everybody(), &everywhere(&rig)));
}

fn the_last_one_goes_and_the_first_one_comes() {
    let mut rig = Rig::new();
    rig.apply(exposed().object());
    for _ in 0..3 {
        let members = rig.members(["backend-1"]);
        rig.endpoints("web", &members);
        answered_by(&asks([&rig.node().client], &everywhere(&rig)), ["backend-1"]);
        rig.endpoints("web", &[]);
        refused(&asks([&rig.node().client], &everywhere(&rig)));
    }
}

fn traffic_policies_change_nothing_about_it() {
    let mut rig = Rig::new();
    rig.apply(exposed().external_policy("Local").internal_policy("Local").object());
    rig.commit();
    refused(&asks(rig.everybody(), &everywhere(&rig)));
    // Nobody is ready anywhere: not the same as nobody being here.
    let members = [rig.member("backend-1").is(Readiness::UNREADY)];
    rig.endpoints("web", &members);
    refused(&asks(rig.everybody(), &everywhere(&rig)));
}

fn affinity_changes_nothing_about_it() {
    let mut rig = Rig::new();
    rig.apply(exposed().affinity(60).object());
    rig.commit();
    refused(&asks(rig.everybody(), &everywhere(&rig)));
    let members = rig.members(["backend-1"]);
    rig.endpoints("web", &members);
    answered_by(&asks([&rig.node().client], &everywhere(&rig)), ["backend-1"]);
    rig.endpoints("web", &[]);
    refused(&asks(rig.everybody(), &everywhere(&rig)));
}

fn another_port_is_refused() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    let other = service(NAMESPACE, "db")
        .cluster_ips(["10.96.20.2", "fd00:10:96::2002"])
        .port("tcp", "TCP", 5432, PORT)
        .port("udp", "UDP", 5432, PORT);
    rig.program(other.object(), &members);
    // The other's port, the endpoint's own, and that of nobody.
    let undefined = vips([
        "10.96.20.1:5432",
        "[fd00:10:96::2001]:5432",
        "10.96.20.2:80",
        "[fd00:10:96::2002]:80",
        "10.96.20.1:8080",
        "[fd00:10:96::2001]:8080",
        "10.96.20.1:9",
        "[fd00:10:96::2001]:9",
    ]);
    refused(&asks(rig.everybody(), &undefined));
    let defined = vips(["10.96.20.2:5432", "[fd00:10:96::2002]:5432"]);
    answered_by(&asks(rig.everybody(), &defined), ["backend-1"]);
}

fn another_protocol_is_refused() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    for (name, cluster_ips, protocol, other) in [
        ("tcp", ["10.96.20.3", "fd00:10:96::2003"], "TCP", Protocol::Udp),
        ("udp", ["10.96.20.4", "fd00:10:96::2004"], "UDP", Protocol::Tcp),
    ] {
        let one = service(NAMESPACE, name)
            .cluster_ips(cluster_ips)
            .port(name, protocol, 80, PORT);
        rig.program(one.object(), &members);
        let [v4, v6] = cluster_ips;
        let targets = [format!("{v4}:80"), format!("[{v6}]:80")];
        let targets = |protocol| targets.each_ref().map(|at| vip(at, protocol));
        refused(&asks(rig.everybody(), &targets(other)));
        let own = if other == Protocol::Udp {
            Protocol::Tcp
        } else {
            Protocol::Udp
        };
        answered_by(&asks(rig.everybody(), &targets(own)), ["backend-1"]);
    }
}

fn tcp(at: [&str; 2]) -> [Vip; 2] {
    at.map(|at| vip(at, Protocol::Tcp))
}

fn an_address_of_nobody_is_dropped() {
    let mut rig = Rig::new();
    // The first and the last of the network, and a neighbour of a Service.
    let addresses = [
        "10.96.0.0",
        "10.111.255.255",
        "10.96.20.2",
        "fd00:10:96::",
        "fd00:10:96::ffff",
        "fd00:10:96::2002",
    ];
    let _outside = rig.outsider(&addresses, 80);
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    let at: Vec<String> = addresses
        .iter()
        .map(|address| {
            if address.contains(':') {
                format!("[{address}]:80")
            } else {
                format!("{address}:80")
            }
        })
        .collect();
    let unallocated = vips(at.iter().map(String::as_str));
    unanswered(&asks(rig.everybody(), &unallocated));
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
    rig.delete("Service", NAMESPACE, "web");
    rig.commit();
    unanswered(&asks(rig.everybody(), &vips(WEB)));
}

fn an_address_outside_passes() {
    let mut rig = Rig::new();
    // Just before and just after the networks.
    let addresses = [
        "10.95.255.255",
        "10.112.0.0",
        "fd00:10:95:ffff:ffff:ffff:ffff:ffff",
        "fd00:10:96::1:0",
    ];
    let _outside = rig.outsider(&addresses, 80);
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    let mut passing = tcp(["10.95.255.255:80", "[fd00:10:95:ffff:ffff:ffff:ffff:ffff]:80"]).to_vec();
    passing.extend(tcp(["10.112.0.0:80", "[fd00:10:96::1:0]:80"]));
    answered_by(&asks(rig.everybody(), &passing), ["outside"]);
}

fn a_cluster_ip_outside_every_network_is_served() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    // From a network that was deleted, while the Service still stands.
    rig.program(named("old", ["10.200.0.1", "fd00:10:200::1"]).object(), &members);
    let old = vips(["10.200.0.1:80", "[fd00:10:200::1]:80"]);
    answered_by(&asks(rig.everybody(), &old), ["backend-1"]);
    refused(&asks(rig.everybody(), &vips(["10.200.0.1:81", "[fd00:10:200::1]:81"])));
}

fn a_network_that_comes_or_goes_takes_effect_at_once() {
    let mut rig = Rig::new();
    let _outside = rig.outsider(&["10.200.0.9", "fd00:10:200::9", "10.96.0.9", "fd00:10:96::9"], 80);
    let second = tcp(["10.200.0.9:80", "[fd00:10:200::9]:80"]);
    let first = tcp(["10.96.0.9:80", "[fd00:10:96::9]:80"]);
    for _ in 0..2 {
        answered_by(&asks(rig.everybody(), &second), ["outside"]);
        rig.apply(service_cidr("more", &["10.200.0.0/16", "fd00:10:200::/112"]));
        rig.commit();
        unanswered(&asks(rig.everybody(), &second));
        unanswered(&asks(rig.everybody(), &first));
        rig.delete("ServiceCIDR", "", "more");
        rig.commit();
    }
    answered_by(&asks(rig.everybody(), &second), ["outside"]);
    // Without the first network, none is left.
    rig.delete("ServiceCIDR", "", "kubernetes");
    rig.commit();
    answered_by(&asks(rig.everybody(), &first), ["outside"]);
    // One family alone.
    rig.apply(service_cidr("kubernetes", &[SERVICE_CIDR6]));
    rig.commit();
    answered_by(&asks(rig.everybody(), &first[..1]), ["outside"]);
    unanswered(&asks(rig.everybody(), &first[1..]));
}

fn networks_may_overlap() {
    let mut rig = Rig::new();
    let _outside = rig.outsider(&["10.96.0.9", "fd00:10:96::9", "10.97.0.9"], 80);
    let inner = tcp(["10.96.0.9:80", "[fd00:10:96::9]:80"]);
    let outer = [vip("10.97.0.9:80", Protocol::Tcp)];
    rig.apply(service_cidr("inner", &["10.96.0.0/24", "fd00:10:96::/120"]));
    rig.apply(service_cidr("same", &[SERVICE_CIDR4, SERVICE_CIDR6]));
    rig.commit();
    unanswered(&asks(rig.everybody(), &inner));
    rig.delete("ServiceCIDR", "", "kubernetes");
    rig.commit();
    unanswered(&asks(rig.everybody(), &inner));
    unanswered(&asks(rig.everybody(), &outer));
    rig.delete("ServiceCIDR", "", "same");
    rig.commit();
    unanswered(&asks(rig.everybody(), &inner));
    answered_by(&asks(rig.everybody(), &outer), ["outside"]);
    rig.delete("ServiceCIDR", "", "inner");
    rig.commit();
    answered_by(&asks(rig.everybody(), &inner), ["outside"]);
}
