//! From whose address an endpoint is asked.

use std::net::IpAddr;

use nftfleet_agent::dataplane::LayoutSettings;
use nftfleet_domain::service::{Protocol, Vip};
use nftfleet_tests::netns::Netns;

use crate::ask::{Ask, answered_by, asks, unanswered, vips};
use crate::case::cases;
use crate::objects::{Member, PORT, WEB, exposed, web, web_on_nodes};
use crate::rig::{Rig, Setup, odd_address};

cases! {
    Hairpin: an_endpoint_reaches_itself_and_sees_the_node, ["PT:533 hairpin to cluster IP", "S:1095"];
    Hairpin: an_endpoint_reaches_itself_through_every_way_in, ["PT:3279"];
    Hairpin: another_pod_of_the_node_is_no_hairpin, [];
    Hairpin: a_remote_endpoint_that_asks_through_us_is_left_alone, [];
    SourceKept: a_pod_is_seen_as_itself_and_all_others_as_the_node, ["PT:3279", "S:1020"];
    SourceKept: a_pod_that_asks_a_pod_is_not_touched, ["no_snat.go:67"];
    SourceKept: no_mark_leaves_the_node_and_others_bits_stay, [];
    MasqueradeAll: a_pod_is_seen_as_the_node, ["PT:3279 masqueradeAll"];
    MasqueradeAll: traffic_policy_local_keeps_the_source_all_the_same, ["PT:3279 masqueradeAll"];
    ExternalCluster: everybody_who_comes_from_outside_is_seen_as_the_node, ["PT:1179", "PT:3279"];
}

/// Asks from one place to many, and compares whose address the only endpoint saw.
fn is_seen_as(rig: &Rig, from: &Netns, to: &[Vip], expected: impl Fn(&str, Vip) -> IpAddr) {
    for ask in asks([from], to) {
        let (identity, source) = rig.seen(&ask);
        assert_eq!(source, expected(&identity, ask.to), "{} from {}", ask.to, from.name());
    }
}

/// The same from one of the node's addresses that is not the one it would choose: only a masquerade makes that one of it.
fn odd_node_is_masqueraded(rig: &Rig, to: &[Vip]) {
    for to in to {
        let odd = odd_address(*to);
        let (identity, source) = rig.seen(&Ask::from_address(&rig.node().netns, odd, *to));
        assert_eq!(source, rig.masqueraded(&identity, *to), "{to} from the node's {odd}");
    }
}

fn pod_itself(rig: &Rig) -> impl Fn(&str, Vip) -> IpAddr {
    |_, to| rig.address_for("pod-1", to)
}

fn the_node(rig: &Rig) -> impl Fn(&str, Vip) -> IpAddr {
    |identity, to| rig.masqueraded(identity, to)
}

fn an_endpoint_reaches_itself_and_sees_the_node() {
    let mut rig = Rig::new();
    let members = rig.members(["pod-1"]);
    rig.program(web().object(), &members);
    is_seen_as(&rig, &rig.node().pod, &vips(WEB), the_node(&rig));
    // It goes, and no trace of the pair stays.
    rig.endpoints("web", &[]);
    let table = rig.proxy().table();
    assert!(!table.contains("10.128.1.10"), "{table}");
}

fn an_endpoint_reaches_itself_through_every_way_in() {
    let mut rig = Rig::new();
    let members = rig.members(["pod-1"]);
    for policy in ["Cluster", "Local"] {
        let service = exposed().external_policy(policy).internal_policy(policy);
        rig.program(service.object(), &members);
        let mut targets = rig.outside();
        targets.extend(vips(WEB));
        is_seen_as(&rig, &rig.node().pod, &targets, the_node(&rig));
    }
}

fn another_pod_of_the_node_is_no_hairpin() {
    let mut rig = Rig::new();
    let second = rig.lab.add_pod(1);
    let members = rig.members(["pod-1"]);
    rig.program(web().object(), &members);
    is_seen_as(&rig, &second.netns, &vips(WEB), |_, to| {
        if to.address.is_ipv4() {
            second.address4.into()
        } else {
            second.address6.into()
        }
    });
}

fn a_remote_endpoint_that_asks_through_us_is_left_alone() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    // A pod without a node of its own sends what it sends to Services through us.
    let backend = rig.lab.backend(1).netns.clone();
    backend.batch("route add 10.96.0.0/12 via 192.168.50.1\nroute add fd00:10:96::/112 via fd00:50::1");
    // Its question comes back to it with its own address as source: its own node would have to help, not we.
    unanswered(&asks([&backend], &vips(WEB)));
    let table = rig.proxy().table();
    assert!(!table.contains("10.128.200.1 . 10.128.200.1"), "{table}");
}

fn a_pod_is_seen_as_itself_and_all_others_as_the_node() {
    let mut rig = Rig::new();
    let second = rig.lab.add_pod(1);
    rig.serve(&second.netns, "second", PORT);
    for members in [
        rig.members(["backend-1"]),
        vec![Member::new(&[second.address4.into(), second.address6.into()], "node-1")],
    ] {
        rig.program(web().object(), &members);
        let node = rig.node();
        is_seen_as(&rig, &node.pod, &vips(WEB), pod_itself(&rig));
        let gateway = |identity: &str, to: Vip| match (identity, to.address.is_ipv4()) {
            ("second", true) => second.gateway4.into(),
            ("second", false) => second.gateway6.into(),
            _ => rig.masqueraded(identity, to),
        };
        for from in [&node.client, &node.netns] {
            is_seen_as(&rig, from, &vips(WEB), gateway);
        }
    }
    let members = rig.members(["backend-1"]);
    rig.endpoints("web", &members);
    odd_node_is_masqueraded(&rig, &vips(WEB));
}

fn a_pod_that_asks_a_pod_is_not_touched() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(exposed().object(), &members);
    let direct: Vec<Vip> = rig
        .addresses("backend-1")
        .into_iter()
        .flat_map(|address| {
            [Protocol::Tcp, Protocol::Udp].map(|protocol| Vip {
                address,
                protocol,
                port: PORT,
            })
        })
        .collect();
    is_seen_as(&rig, &rig.node().pod, &direct, pod_itself(&rig));
}

fn no_mark_leaves_the_node_and_others_bits_stay() {
    let mut rig = Rig::with(&Setup {
        layout: LayoutSettings {
            masquerade_bit: 7,
            masquerade_all: false,
        },
        ..Setup::default()
    });
    // Whatever is forwarded bears a mark of the site's, and is counted where it leaves. nat hooks in at 100.
    rig.proxy().nft_load(
        "table inet site {
            counter whole { }
            counter other { }
            counter ours { }
            chain marking {
                type filter hook prerouting priority -150;
                ct state new meta mark set 0x80000001
            }
            chain before {
                type filter hook postrouting priority 80;
                ct state new meta mark & 0x80 != 0 counter name ours
            }
            chain after {
                type filter hook postrouting priority 160;
                ct state new ct status dnat meta mark 0x80000001 counter name whole
                ct state new ct status dnat meta mark != 0x80000001 counter name other
            }
        }",
    );
    let members = rig.members(["backend-1"]);
    rig.program(web_on_nodes().object(), &members);
    let mut targets = vips(WEB);
    targets.extend(rig.on_node(30080));
    is_seen_as(&rig, &rig.node().client, &targets, the_node(&rig));
    for (counter, packets) in [("whole", 8), ("other", 0), ("ours", 8)] {
        let text = rig.proxy().nft(&["list", "counter", "inet", "site", counter]);
        assert!(text.contains(&format!("packets {packets} ")), "{counter}: {text}");
    }
}

fn masquerading_all() -> Rig {
    Rig::with(&Setup {
        layout: LayoutSettings {
            masquerade_bit: 14,
            masquerade_all: true,
        },
        ..Setup::default()
    })
}

fn a_pod_is_seen_as_the_node() {
    let mut rig = masquerading_all();
    for name in ["backend-1", "pod-1"] {
        for policy in ["Cluster", "Local"] {
            let mut member = rig.member(name);
            // Local to the node, as far as the policy is concerned.
            "node-1".clone_into(&mut member.node);
            rig.program(web().internal_policy(policy).object(), &[member]);
            for from in rig.everybody() {
                is_seen_as(&rig, from, &vips(WEB), the_node(&rig));
            }
        }
    }
}

fn traffic_policy_local_keeps_the_source_all_the_same() {
    let mut rig = masquerading_all();
    let members = rig.members(["pod-1"]);
    rig.program(exposed().external_policy("Local").object(), &members);
    let client = rig.node().client.clone();
    is_seen_as(&rig, &client, &rig.outside(), |_, to| rig.address_for("client-1", to));
    is_seen_as(&rig, &client, &vips(WEB), the_node(&rig));
    let members = rig.members(["backend-1"]);
    rig.endpoints("web", &members);
    // Between pod and outside, and not masqueraded even so.
    is_seen_as(&rig, &rig.node().pod, &rig.outside(), pod_itself(&rig));
}

fn everybody_who_comes_from_outside_is_seen_as_the_node() {
    let mut rig = Rig::new();
    for name in ["backend-1", "pod-1"] {
        let members = rig.members([name]);
        rig.program(exposed().object(), &members);
        for from in rig.everybody() {
            is_seen_as(&rig, from, &rig.outside(), the_node(&rig));
        }
        odd_node_is_masqueraded(&rig, &rig.outside());
    }
    // With several endpoints, near and far, each of them gets its share.
    let members = rig.members(["backend-1", "backend-2", "pod-1"]);
    rig.program(web_on_nodes().object(), &members);
    answered_by(
        &asks(rig.everybody(), &rig.on_node(30080)),
        ["backend-1", "backend-2", "pod-1"],
    );
}
