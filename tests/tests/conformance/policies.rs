//! Traffic policies: which endpoints serve whom.

use std::net::IpAddr;

use nftfleet_domain::service::{Protocol, Vip};
use nftfleet_tests::manifests::ServiceBuilder;

use crate::ask::{Ask, answered_by, asks, refused, unanswered, vip, vips};
use crate::case::cases;
use crate::objects::{Member, PORT, WEB, exposed, web, web_on_nodes};
use crate::rig::{Rig, Setup, odd_address};

cases! {
    ExternalCluster: every_endpoint_serves_every_way_in, ["PT:1179", "S:2771"];
    ExternalLocal: a_client_outside_reaches_local_endpoints_as_itself, ["PT:1061", "PT:204", "S:2771", "loadbalancer.go:1016", "loadbalancer.go:1221"];
    ExternalLocal: a_pod_reaches_every_endpoint_as_itself, ["PT:1061", "loadbalancer.go:1174"];
    ExternalLocal: the_node_reaches_every_endpoint_masqueraded, ["PT:1061", "loadbalancer.go:1081"];
    ExternalLocal: local_endpoints_come_and_go, ["loadbalancer.go:1081"];
    ExternalLocal: connections_from_outside_are_spread_over_local_endpoints, [];
    ExternalLocal: each_node_serves_its_own, ["S:2771", "loadbalancer.go:1016"];
    ExternalLocal: the_policy_changes_at_once, ["S:3833", "loadbalancer.go:1221"];
    ExternalLocal: the_cluster_ip_does_not_care, [];
    InternalLocal: the_cluster_ip_has_local_endpoints_alone, ["PT:2456", "S:2528", "S:2597"];
    InternalLocal: an_endpoint_on_the_nodes_own_network_is_local, ["S:2668"];
    InternalLocal: ways_in_from_outside_do_not_care, ["PT:2456"];
    InternalLocal: the_internal_policy_changes_at_once, ["S:2528"];
    NoLocalEndpoints: outside_clients_are_dropped_and_the_cluster_is_served, ["PT:1061", "loadbalancer.go:1081"];
    NoLocalEndpoints: a_cluster_ip_without_local_endpoints_drops_everybody, ["PT:2456", "S:2528", "S:2597", "S:2668"];
    NoLocalEndpoints: both_policies_at_once, ["PT:2456"];
}

const ALL: [&str; 3] = ["backend-1", "backend-2", "pod-1"];

fn rig<const N: usize>(service: ServiceBuilder, endpoints: [&str; N]) -> Rig {
    let mut rig = Rig::new();
    let members = rig.members(endpoints);
    rig.program(service.object(), &members);
    rig
}

/// Of everything asked, each endpoint saw the address that `expected` says.
fn sources(rig: &Rig, asks: &[Ask], expected: impl Fn(&str, Vip) -> IpAddr) {
    for ask in asks {
        for _ in 0..4 {
            let (identity, source) = rig.seen(ask);
            assert_eq!(source, expected(&identity, ask.to), "{ask:?}, answered by {identity}");
        }
    }
}

fn every_endpoint_serves_every_way_in() {
    let rig = rig(exposed(), ALL);
    answered_by(&asks(rig.everybody(), &rig.outside()), ALL);
}

fn a_client_outside_reaches_local_endpoints_as_itself() {
    let rig = rig(exposed().external_policy("Local"), ALL);
    let asks = asks([&rig.node().client], &rig.outside());
    answered_by(&asks, ["pod-1"]);
    sources(&rig, &asks, |_, to| rig.address_for("client-1", to));
}

fn a_pod_reaches_every_endpoint_as_itself() {
    let rig = rig(
        exposed().external_policy("Local"),
        ["backend-1", "backend-2", "backend-3"],
    );
    let asks = asks([&rig.node().pod], &rig.outside());
    answered_by(&asks, ["backend-1", "backend-2", "backend-3"]);
    sources(&rig, &asks, |_, to| rig.address_for("pod-1", to));
}

fn the_node_reaches_every_endpoint_masqueraded() {
    let rig = rig(exposed().external_policy("Local"), ALL);
    let node = rig.node();
    answered_by(&asks([&node.netns], &rig.outside()), ALL);
    let asks: Vec<Ask> = rig
        .outside()
        .into_iter()
        .map(|to| Ask::from_address(&node.netns, odd_address(to), to))
        .collect();
    sources(&rig, &asks, |identity, to| rig.masqueraded(identity, to));
}

fn local_endpoints_come_and_go() {
    let mut rig = rig(exposed().external_policy("Local"), ["backend-1"]);
    let client = rig.node().client.clone();
    for _ in 0..2 {
        unanswered(&asks([&client], &rig.outside()));
        let members = rig.members(["backend-1", "pod-1"]);
        rig.endpoints("web", &members);
        answered_by(&asks([&client], &rig.outside()), ["pod-1"]);
        let members = rig.members(["pod-1"]);
        rig.endpoints("web", &members);
        answered_by(&asks([&client], &rig.outside()), ["pod-1"]);
        let members = rig.members(["backend-1"]);
        rig.endpoints("web", &members);
    }
}

fn connections_from_outside_are_spread_over_local_endpoints() {
    let mut rig = Rig::new();
    let second = rig.lab.add_pod(1);
    rig.serve(&second.netns, "pod-1b", PORT);
    let mut members = rig.members(["backend-1", "backend-2", "pod-1"]);
    let addresses = [second.address4.into(), second.address6.into()];
    members.push(Member::new(&addresses, "node-1"));
    rig.program(exposed().external_policy("Local").object(), &members);
    answered_by(&asks([&rig.node().client], &rig.outside()), ["pod-1", "pod-1b"]);
    let everyone = ["backend-1", "backend-2", "pod-1", "pod-1b"];
    answered_by(&asks([&rig.node().pod], &rig.outside()), everyone);
}

fn each_node_serves_its_own() {
    let mut rig = Rig::with(&Setup {
        nodes: 2,
        ..Setup::default()
    });
    let members = rig.members(["pod-1", "backend-1"]);
    let service = web_on_nodes().ingress("198.51.100.10").external_policy("Local");
    rig.program(service.object(), &members);
    let balancer = vips(["198.51.100.10:80"]);
    let [one, two] = [rig.lab.node(1).clone(), rig.lab.node(2).clone()];
    answered_by(&asks([&one.client], &balancer), ["pod-1"]);
    unanswered(&asks([&two.client], &balancer));
    let on_two: Vec<Vip> = rig
        .addresses("node-2")
        .into_iter()
        .map(|address| Vip {
            address,
            protocol: Protocol::Tcp,
            port: 30080,
        })
        .collect();
    unanswered(&asks([&two.client], &on_two));
    // Another node's pods and kernel are as good as anybody outside, to this node.
    unanswered(&asks([&one.netns], &on_two));
    answered_by(&asks([&two.pod, &two.netns], &on_two), ["pod-1", "backend-1"]);
    let members = rig.members(["pod-2", "backend-1"]);
    rig.endpoints("web", &members);
    unanswered(&asks([&one.client], &balancer));
    answered_by(&asks([&two.client], &balancer), ["pod-2"]);
    answered_by(&asks([&two.client], &on_two), ["pod-2"]);
    answered_by(&asks([&one.netns], &on_two), ["pod-2"]);
}

fn the_policy_changes_at_once() {
    let mut rig = rig(exposed(), ALL);
    let client = rig.node().client.clone();
    for _ in 0..2 {
        answered_by(&asks([&client], &rig.outside()), ALL);
        rig.apply(exposed().external_policy("Local").object());
        rig.commit();
        answered_by(&asks([&client], &rig.outside()), ["pod-1"]);
        rig.apply(exposed().object());
        rig.commit();
    }
}

fn the_cluster_ip_does_not_care() {
    let rig = rig(exposed().external_policy("Local"), ALL);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ALL);
    sources(&rig, &asks([&rig.node().client], &vips(WEB)), |identity, to| {
        rig.masqueraded(identity, to)
    });
}

fn the_cluster_ip_has_local_endpoints_alone() {
    let mut rig = rig(web().internal_policy("Local"), ALL);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["pod-1"]);
    // Who is not of the cluster is masqueraded as ever.
    sources(&rig, &asks([&rig.node().client], &vips(WEB)), |identity, to| {
        rig.masqueraded(identity, to)
    });
    let second = rig.lab.add_pod(1);
    rig.serve(&second.netns, "pod-1b", PORT);
    let mut members = rig.members(ALL);
    let addresses = [second.address4.into(), second.address6.into()];
    members.push(Member::new(&addresses, "node-1"));
    rig.endpoints("web", &members);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["pod-1", "pod-1b"]);
}

fn an_endpoint_on_the_nodes_own_network_is_local() {
    let mut rig = Rig::new();
    let node = rig.node().netns.clone();
    rig.serve(&node, "node-1", PORT);
    let members = rig.members(["backend-1", "node-1"]);
    rig.program(web().internal_policy("Local").object(), &members);
    let tcp = WEB.map(|at| vip(at, Protocol::Tcp));
    answered_by(&asks(rig.everybody(), &tcp), ["node-1"]);
}

fn ways_in_from_outside_do_not_care() {
    let rig = rig(exposed().internal_policy("Local"), ALL);
    answered_by(&asks(rig.everybody(), &rig.outside()), ALL);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["pod-1"]);
}

fn the_internal_policy_changes_at_once() {
    let mut rig = rig(web(), ALL);
    for _ in 0..2 {
        answered_by(&asks(rig.everybody(), &vips(WEB)), ALL);
        rig.apply(web().internal_policy("Local").object());
        rig.commit();
        answered_by(&asks(rig.everybody(), &vips(WEB)), ["pod-1"]);
        rig.apply(web().object());
        rig.commit();
    }
}

fn outside_clients_are_dropped_and_the_cluster_is_served() {
    let remote = ["backend-1", "backend-2"];
    let rig = rig(exposed().external_policy("Local"), remote);
    let node = rig.node();
    // Not refused: the balancer is to try another node.
    unanswered(&asks([&node.client], &rig.outside()));
    answered_by(&asks([&node.pod, &node.netns], &rig.outside()), remote);
    answered_by(&asks(rig.everybody(), &vips(WEB)), remote);
}

fn a_cluster_ip_without_local_endpoints_drops_everybody() {
    let mut rig = rig(web().internal_policy("Local"), ["backend-1", "backend-2"]);
    unanswered(&asks(rig.everybody(), &vips(WEB)));
    let members = rig.members(["backend-1", "pod-1"]);
    rig.endpoints("web", &members);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["pod-1"]);
    let members = rig.members(["backend-1"]);
    rig.endpoints("web", &members);
    unanswered(&asks(rig.everybody(), &vips(WEB)));
    // Nobody at all: that is another matter.
    rig.endpoints("web", &[]);
    refused(&asks(rig.everybody(), &vips(WEB)));
    // A port that the Service does not have is refused, endpoints or none.
    let members = rig.members(["backend-1"]);
    rig.endpoints("web", &members);
    refused(&asks(
        rig.everybody(),
        &vips(["10.96.20.1:81", "[fd00:10:96::2001]:81"]),
    ));
}

fn both_policies_at_once() {
    let both = exposed().external_policy("Local").internal_policy("Local");
    let mut rig = rig(both, ["backend-1"]);
    let node = rig.node().clone();
    unanswered(&asks([&node.client], &rig.outside()));
    unanswered(&asks(rig.everybody(), &vips(WEB)));
    // From inside, the ways in from outside lead to every endpoint.
    answered_by(&asks([&node.pod, &node.netns], &rig.outside()), ["backend-1"]);
    let members = rig.members(["backend-1", "pod-1"]);
    rig.endpoints("web", &members);
    answered_by(&asks([&node.client], &rig.outside()), ["pod-1"]);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["pod-1"]);
}
