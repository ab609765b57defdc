//! Endpoints that are meant for clients of certain zones or nodes.

use nftfleet_tests::manifests::{Readiness, ServiceBuilder};

use crate::ask::{answered_by, asks, refused, vips};
use crate::case::cases;
use crate::objects::{Member, WEB, exposed, web};
use crate::rig::{Rig, Setup, ZONE, node_object};

cases! {
    Hints: same_zone_is_preferred, ["traffic_distribution.go:350", "traffic_distribution.go:357", "topology_hints.go:55", "topology TestCategorizeEndpoints"];
    Hints: same_node_is_preferred, ["traffic_distribution.go:364", "topology TestCategorizeEndpoints"];
    Hints: node_hints_that_name_nobody_here_leave_it_to_the_zone, ["traffic_distribution.go:371", "traffic_distribution.go:378"];
    Hints: one_endpoint_without_hints_makes_all_hints_void, ["topology TestCategorizeEndpoints"];
    Hints: hints_for_elsewhere_are_void, ["topology TestCategorizeEndpoints"];
    Hints: only_ready_endpoints_count, ["topology TestCategorizeEndpoints"];
    Hints: ways_in_from_outside_follow_them_too, ["traffic_distribution.go:430"];
    Hints: traffic_policy_local_ignores_them, ["topology TestCategorizeEndpoints"];
    Hints: each_node_has_its_own, ["traffic_distribution.go:350", "traffic_distribution.go:364"];
    Hints: hints_change_at_once, ["traffic_distribution.go:430"];
    TopologyLabel: another_zone_takes_effect_at_once, ["TestNodeManagerOnNodeChange"];
    TopologyLabel: a_node_without_a_zone_ignores_zones, ["topology TestCategorizeEndpoints"];
}

const ALL: [&str; 3] = ["backend-1", "backend-2", "backend-3"];

fn rig(service: ServiceBuilder) -> Rig {
    let mut rig = Rig::new();
    rig.apply(service.spec("trafficDistribution", "PreferSameZone").object());
    rig.commit();
    rig
}

/// The backends, each with what it is meant for, and who of them is to answer everybody.
fn answer(rig: &mut Rig, members: &[Member], expected: &[&str]) {
    rig.endpoints("web", members);
    answered_by(&asks(rig.everybody(), &vips(WEB)), expected.iter().copied());
}

fn same_zone_is_preferred() {
    let mut rig = rig(web());
    let [a, b, c] = ALL.map(|name| rig.member(name));
    let members = [
        a.for_zones(&[ZONE]),
        b.for_zones(&["zone-b"]),
        c.for_zones(&["zone-c", ZONE]),
    ];
    answer(&mut rig, &members, &["backend-1", "backend-3"]);
}

fn same_node_is_preferred() {
    let mut rig = rig(web());
    let [a, b, c] = ALL.map(|name| rig.member(name));
    // Node before zone, where both are said.
    let members = [
        a.for_nodes(&["node-1"]).for_zones(&["zone-b"]),
        b.for_nodes(&["node-2"]).for_zones(&[ZONE]),
        c.for_nodes(&["node-3"]).for_zones(&[ZONE]),
    ];
    answer(&mut rig, &members, &["backend-1"]);
}

fn node_hints_that_name_nobody_here_leave_it_to_the_zone() {
    let mut rig = rig(web());
    let [a, b, c] = ALL.map(|name| rig.member(name));
    let members = [
        a.clone().for_nodes(&["node-7"]).for_zones(&[ZONE]),
        b.clone().for_nodes(&["node-8"]).for_zones(&[ZONE]),
        c.clone().for_nodes(&["node-9"]).for_zones(&["zone-b"]),
    ];
    answer(&mut rig, &members, &["backend-1", "backend-2"]);
    // Nobody in this zone either.
    let members = [a, b, c].map(|member| member.for_nodes(&["node-7"]).for_zones(&["zone-b"]));
    answer(&mut rig, &members, &ALL);
}

fn one_endpoint_without_hints_makes_all_hints_void() {
    let mut rig = rig(web());
    let [a, b, c] = ALL.map(|name| rig.member(name));
    let members = [
        a.clone().for_zones(&[ZONE]),
        b.clone().for_zones(&["zone-b"]),
        c.clone(),
    ];
    answer(&mut rig, &members, &ALL);
    let members = [
        a.for_nodes(&["node-1"]).for_zones(&[ZONE]),
        b.for_zones(&[ZONE]),
        c.for_zones(&["zone-b"]),
    ];
    // Not every one has a node, but every one has a zone.
    answer(&mut rig, &members, &["backend-1", "backend-2"]);
}

fn hints_for_elsewhere_are_void() {
    let mut rig = rig(web());
    let members = ALL.map(|name| rig.member(name).for_zones(&["zone-b", "zone-c"]));
    answer(&mut rig, &members, &ALL);
}

fn only_ready_endpoints_count() {
    let mut rig = rig(web());
    let [a, b, c] = ALL.map(|name| rig.member(name));
    // Whoever is not ready may be without hints, and its hints bring nobody here.
    let members = [
        a.clone().is(Readiness::UNREADY),
        b.clone().for_zones(&[ZONE]),
        c.clone().for_zones(&["zone-b"]),
    ];
    answer(&mut rig, &members, &["backend-2"]);
    let members = [
        a.clone().for_zones(&[ZONE]).is(Readiness::UNREADY),
        b.clone().for_zones(&["zone-b"]),
        c.clone().for_zones(&["zone-b"]),
    ];
    answer(&mut rig, &members, &["backend-2", "backend-3"]);
    // The only one for this zone is ending: those of other zones serve.
    let members = [
        a.for_zones(&[ZONE]).is(Readiness::DRAINING),
        b.for_zones(&["zone-b"]),
        c.for_zones(&["zone-b"]),
    ];
    answer(&mut rig, &members, &["backend-2", "backend-3"]);
}

fn ways_in_from_outside_follow_them_too() {
    let mut rig = rig(exposed());
    let [a, b, c] = ALL.map(|name| rig.member(name));
    let members = [a.for_zones(&[ZONE]), b.for_zones(&["zone-b"]), c.for_zones(&[ZONE])];
    rig.endpoints("web", &members);
    answered_by(&asks(rig.everybody(), &rig.outside()), ["backend-1", "backend-3"]);
}

fn traffic_policy_local_ignores_them() {
    let mut rig = rig(exposed().external_policy("Local").internal_policy("Local"));
    let members = [
        rig.member("pod-1").for_zones(&["zone-b"]),
        rig.member("backend-1").for_zones(&[ZONE]),
        rig.member("backend-2").for_zones(&["zone-b"]),
    ];
    rig.endpoints("web", &members);
    answered_by(&asks([&rig.node().client], &rig.outside()), ["pod-1"]);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["pod-1"]);
    // Who comes from inside to a way in from outside is not bound by that policy, but by the hints.
    answered_by(
        &asks([&rig.node().pod, &rig.node().netns], &rig.outside()),
        ["backend-1"],
    );
}

fn each_node_has_its_own() {
    let mut rig = Rig::with(&Setup {
        nodes: 2,
        ..Setup::default()
    });
    let members = [
        rig.member("pod-1").for_zones(&["zone-b"]).for_nodes(&["node-1"]),
        rig.member("pod-2").for_zones(&[ZONE]).for_nodes(&["node-2"]),
        rig.member("backend-1").for_zones(&[ZONE]).for_nodes(&["node-9"]),
    ];
    rig.program(web().object(), &members);
    for (number, expected) in [(1, "pod-1"), (2, "pod-2")] {
        let node = rig.lab.node(number);
        answered_by(&asks([&node.client, &node.pod, &node.netns], &vips(WEB)), [expected]);
    }
    // Without the nodes, the zones decide.
    let members = members.map(|member| member.for_nodes(&[]));
    rig.endpoints("web", &members);
    let [one, two] = [rig.lab.node(1), rig.lab.node(2)];
    answered_by(&asks([&one.client, &one.pod], &vips(WEB)), ["pod-2", "backend-1"]);
    answered_by(&asks([&two.client, &two.pod], &vips(WEB)), ["pod-1"]);
}

fn hints_change_at_once() {
    let mut rig = rig(web());
    let [a, b, c] = ALL.map(|name| rig.member(name));
    for _ in 0..2 {
        let members = [
            a.clone().for_zones(&[ZONE]),
            b.clone().for_zones(&["zone-b"]),
            c.clone().for_zones(&["zone-b"]),
        ];
        answer(&mut rig, &members, &["backend-1"]);
        let members = [
            a.clone().for_zones(&["zone-b"]),
            b.clone().for_zones(&["zone-b"]),
            c.clone().for_zones(&[ZONE]),
        ];
        answer(&mut rig, &members, &["backend-3"]);
        answer(&mut rig, &[a.clone(), b.clone(), c.clone()], &ALL);
    }
    rig.endpoints("web", &[]);
    refused(&asks([&rig.node().client], &vips(WEB)));
}

/// `node-1` in this zone, if any.
fn node_in(rig: &Rig, zone: Option<&str>) -> serde_json::Value {
    let mut object = node_object(rig.node());
    let labels = object["metadata"]["labels"].as_object_mut().expect("labels");
    match zone {
        Some(zone) => labels.insert("topology.kubernetes.io/zone".to_owned(), zone.into()),
        None => labels.remove("topology.kubernetes.io/zone"),
    };
    object
}

fn three_zones(rig: &mut Rig) {
    let [a, b, c] = ALL.map(|name| rig.member(name));
    let members = [a.for_zones(&[ZONE]), b.for_zones(&["zone-b"]), c.for_zones(&["zone-c"])];
    rig.endpoints("web", &members);
}

fn another_zone_takes_effect_at_once() {
    let mut rig = rig(web());
    three_zones(&mut rig);
    for (zone, expected) in [
        (ZONE, "backend-1"),
        ("zone-b", "backend-2"),
        ("zone-c", "backend-3"),
        (ZONE, "backend-1"),
    ] {
        rig.apply(node_in(&rig, Some(zone)));
        rig.commit();
        answered_by(&asks(rig.everybody(), &vips(WEB)), [expected]);
    }
    // A zone without endpoints.
    rig.apply(node_in(&rig, Some("zone-d")));
    rig.commit();
    answered_by(&asks(rig.everybody(), &vips(WEB)), ALL);
}

fn a_node_without_a_zone_ignores_zones() {
    let mut rig = rig(web());
    rig.apply(node_in(&rig, None));
    three_zones(&mut rig);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ALL);
    // A node's name it has.
    let members = [
        rig.member("backend-1").for_nodes(&["node-2"]),
        rig.member("backend-2").for_nodes(&["node-1"]),
    ];
    rig.endpoints("web", &members);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-2"]);
    rig.apply(node_in(&rig, Some("zone-c")));
    three_zones(&mut rig);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-3"]);
}
