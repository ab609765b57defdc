//! Who may reach a load balancer's addresses.

use std::net::IpAddr;

use nftfleet_domain::service::{Protocol, Vip};
use nftfleet_tests::manifests::ServiceBuilder;
use serde_json::json;

use crate::ask::{Ask, answered_by, asks, unanswered, vip, vips};
use crate::case::cases;
use crate::objects::{BALANCER, WEB, web_on_nodes};
use crate::rig::Rig;

cases! {
    SourceRanges: who_is_inside_is_answered_and_who_is_outside_is_not, ["PT:723", "loadbalancer.go:422"];
    SourceRanges: pods_and_the_node_are_sources_like_others, ["PT:723"];
    SourceRanges: a_range_that_holds_the_node_holds_the_balancers_address, ["PT:723"];
    SourceRanges: node_ports_and_external_addresses_are_open, ["PT:723"];
    SourceRanges: the_whole_world_is_no_limit, ["PT:723"];
    SourceRanges: white_space_and_overlaps_are_understood, [];
    SourceRanges: ranges_of_one_family_leave_the_other_open, ["util TestMapIPsByIPFamily"];
    SourceRanges: ranges_change_at_once, ["loadbalancer.go:422"];
    SourceRanges: ranges_hold_under_traffic_policy_local, [];
    SourceRanges: hundreds_of_ranges, [];
}

/// Addresses of the client next to its first one.
const NEIGHBOUR: [&str; 2] = ["172.30.1.3", "fd00:30:1::3"];

fn balanced() -> ServiceBuilder {
    web_on_nodes().ingress("198.51.100.10").ingress("fd00:198::10")
}

fn rig(service: ServiceBuilder) -> Rig {
    let mut rig = Rig::new();
    let [v4, v6] = NEIGHBOUR;
    let script = format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad");
    rig.node().client.batch(&script);
    let members = rig.members(["backend-1"]);
    rig.program(service.object(), &members);
    rig
}

/// The client asks from its first addresses.
fn first(rig: &Rig, to: &[Vip]) -> Vec<Ask> {
    let ask = |to: &Vip| Ask::from_address(&rig.node().client, rig.address_for("client-1", *to), *to);
    to.iter().map(ask).collect()
}

/// The client asks from its second addresses.
fn neighbour(rig: &Rig, to: &[Vip]) -> Vec<Ask> {
    let ask = |to: &Vip| {
        let [v4, v6] = NEIGHBOUR.map(|address| address.parse::<IpAddr>().expect("an address"));
        Ask::from_address(&rig.node().client, if to.address.is_ipv4() { v4 } else { v6 }, *to)
    };
    to.iter().map(ask).collect()
}

fn who_is_inside_is_answered_and_who_is_outside_is_not() {
    let rig = rig(balanced().source_ranges(["172.30.1.2/32", "fd00:30:1::2/128"]));
    answered_by(&first(&rig, &vips(BALANCER)), ["backend-1"]);
    // Dropped, not refused: a stranger is not to learn that there is anything.
    unanswered(&neighbour(&rig, &vips(BALANCER)));
    answered_by(&neighbour(&rig, &vips(WEB)), ["backend-1"]);
}

fn pods_and_the_node_are_sources_like_others() {
    let mut rig = rig(balanced().source_ranges(["172.30.1.2/32", "fd00:30:1::2/128"]));
    let node = rig.node().clone();
    unanswered(&asks([&node.pod, &node.netns], &vips(BALANCER)));
    let ranges = ["10.128.0.0/16", "fd00:128::/32"];
    rig.apply(balanced().source_ranges(ranges).object());
    rig.commit();
    answered_by(&asks([&node.pod], &vips(BALANCER)), ["backend-1"]);
    unanswered(&asks([&node.client, &node.netns], &vips(BALANCER)));
    let ranges = ["192.168.50.1/32", "fd00:50::1/128"];
    rig.apply(balanced().source_ranges(ranges).object());
    rig.commit();
    answered_by(&asks([&node.netns], &vips(BALANCER)), ["backend-1"]);
    unanswered(&asks([&node.client, &node.pod], &vips(BALANCER)));
}

fn a_range_that_holds_the_node_holds_the_balancers_address() {
    let mut rig = rig(balanced().source_ranges(["192.168.50.0/24", "fd00:50::/64"]));
    let node = rig.node().clone();
    // Some balancers' agents give the address to the node itself, which then asks from there.
    node.netns
        .batch("addr add 198.51.100.10/32 dev lo\naddr add fd00:198::10/128 dev lo nodad");
    // The answer bears that address as its source too, when its translation is undone.
    node.netns.sysctl("ipv4/conf/all/accept_local", "1");
    let asks = BALANCER.map(|at| {
        let to = vip(at, Protocol::Tcp);
        Ask::from_address(&node.netns, to.address, to)
    });
    answered_by(&asks, ["backend-1"]);
    rig.apply(balanced().source_ranges(["172.30.1.2/32", "fd00:30:1::2/128"]).object());
    rig.commit();
    unanswered(&asks);
}

fn node_ports_and_external_addresses_are_open() {
    let external = balanced().external_ips(["198.51.100.11", "fd00:198::11"]);
    let rig = rig(external.source_ranges(["172.30.1.2/32", "fd00:30:1::2/128"]));
    let mut open = rig.on_node(30080);
    open.extend(vips(["198.51.100.11:80", "[fd00:198::11]:80"]));
    open.extend(vips(WEB));
    answered_by(&neighbour(&rig, &open), ["backend-1"]);
    answered_by(&asks(rig.everybody(), &open), ["backend-1"]);
    unanswered(&neighbour(&rig, &vips(BALANCER)));
}

fn the_whole_world_is_no_limit() {
    let rig = rig(balanced().source_ranges(["203.0.113.0/24", "0.0.0.0/0", "fd00:9::/64", "::/0"]));
    answered_by(&asks(rig.everybody(), &vips(BALANCER)), ["backend-1"]);
    answered_by(&neighbour(&rig, &vips(BALANCER)), ["backend-1"]);
}

fn white_space_and_overlaps_are_understood() {
    let ranges = [
        " 172.30.1.0/30 ",
        "172.30.1.0/31",
        "172.30.1.2/32",
        "\tfd00:30:1::/127",
        "fd00:30:1::2/127\n",
        "fd00:30:1::2/128",
        "172.30.1.2/32",
    ];
    // .0 to .3, and ::0 to ::3: the neighbours too, but not those after them.
    let mut rig = rig(balanced().source_ranges(ranges));
    answered_by(&first(&rig, &vips(BALANCER)), ["backend-1"]);
    answered_by(&neighbour(&rig, &vips(BALANCER)), ["backend-1"]);
    rig.apply(
        balanced()
            .source_ranges(["172.30.1.2/32", "172.30.1.2/31", "fd00:30:1::2/128"])
            .object(),
    );
    rig.commit();
    answered_by(&first(&rig, &vips(BALANCER)), ["backend-1"]);
    answered_by(&neighbour(&rig, &vips([BALANCER[0]])), ["backend-1"]);
    unanswered(&neighbour(&rig, &vips([BALANCER[1]])));
}

fn ranges_of_one_family_leave_the_other_open() {
    let rig = rig(balanced().source_ranges(["203.0.113.0/24"]));
    unanswered(&asks(rig.everybody(), &vips([BALANCER[0]])));
    answered_by(&asks(rig.everybody(), &vips([BALANCER[1]])), ["backend-1"]);
}

fn ranges_change_at_once() {
    let mut rig = rig(balanced());
    answered_by(&neighbour(&rig, &vips(BALANCER)), ["backend-1"]);
    let steps: [(&[&str], bool); 5] = [
        (&["172.30.1.2/32", "fd00:30:1::2/128"], false),
        (&["172.30.1.2/31", "fd00:30:1::2/127"], true),
        (&["203.0.113.0/24", "fd00:9::/64"], false),
        (&["172.30.1.3/32", "fd00:30:1::3/128"], true),
        (&[], true),
    ];
    for (ranges, inside) in steps {
        rig.apply(balanced().spec("loadBalancerSourceRanges", json!(ranges)).object());
        rig.commit();
        if inside {
            answered_by(&neighbour(&rig, &vips(BALANCER)), ["backend-1"]);
        } else {
            unanswered(&neighbour(&rig, &vips(BALANCER)));
        }
    }
}

fn ranges_hold_under_traffic_policy_local() {
    let local = || balanced().external_policy("Local");
    let mut rig = rig(local().source_ranges(["172.30.1.2/32", "fd00:30:1::2/128"]));
    let members = rig.members(["pod-1", "backend-1"]);
    rig.endpoints("web", &members);
    for ask in first(&rig, &vips(BALANCER)) {
        let expected = ("pod-1".to_owned(), rig.address_for("client-1", ask.to));
        assert_eq!(rig.seen(&ask), expected);
    }
    let node = rig.node();
    unanswered(&neighbour(&rig, &vips(BALANCER)));
    // A pod would reach all endpoints, but not past the ranges.
    unanswered(&asks([&node.pod, &node.netns], &vips(BALANCER)));
}

fn hundreds_of_ranges() {
    let mut ranges: Vec<String> = (0..250)
        .flat_map(|number| [format!("203.0.{number}.0/25"), format!("fd00:9:{number}::/65")])
        .collect();
    let last = ["172.30.1.3/32", "fd00:30:1::3/128"].map(str::to_owned);
    ranges.extend(last);
    let mut rig = rig(balanced().spec("loadBalancerSourceRanges", json!(ranges)));
    answered_by(&neighbour(&rig, &vips(BALANCER)), ["backend-1"]);
    unanswered(&first(&rig, &vips(BALANCER)));
    // Two of five hundred go.
    ranges.truncate(500);
    rig.apply(balanced().spec("loadBalancerSourceRanges", json!(ranges)).object());
    rig.commit();
    unanswered(&neighbour(&rig, &vips(BALANCER)));
}
