//! Whose address a backend sees, and the mark that carries the decision.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use nftfleet_agent::dataplane::desired::Pods;
use nftfleet_agent::dataplane::{Dataplane, Desired, LayoutSettings};
use nftfleet_domain::service::{Endpoint, Family, Vip};
use nftfleet_tests::backends::Backend;
use nftfleet_tests::netns::Netns;

use crate::world::{SETTINGS, World, answer, ask_within, desired, four_vips, identity, pods_in};

/// Counts marked packets before our postrouting chain (nat hooks in at 100, whatever the chain's own priority) and after it.
/// Only translated connections are looked at for other bits: the kernel's own multicast reports carry a mark of their own.
const WATCH: &str = "table inet watch {
    counter marked-before { }
    counter marked-after { }
    counter any-bit-after { }

    chain before { type filter hook postrouting priority 80;
        meta mark & 0x4000 != 0 counter name marked-before
    }
    chain after { type filter hook postrouting priority 150;
        meta mark & 0x4000 != 0 counter name marked-after
        ct status dnat meta mark != 0 counter name any-bit-after
    }
}";

fn packets(world: &World, counter: &str) -> u64 {
    let text = world.nft(&["list", "counter", "inet", "watch", counter]);
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
    let number = words.nth(1).unwrap_or_else(|| panic!("no packets in {text}"));
    number.parse().unwrap_or_else(|error| panic!("{number}: {error}"))
}

fn bit(masquerade_bit: u8) -> LayoutSettings {
    LayoutSettings {
        masquerade_bit,
        ..SETTINGS
    }
}

/// Who asked the only server, seen from there.
fn seen(world: &World, from: &Netns, vip: Vip) -> BTreeSet<IpAddr> {
    world.servers[0].forget_peers();
    assert_eq!(answer(from, vip), identity(0));
    world.servers[0].peers()
}

fn of_family([v4, v6]: [IpAddr; 2], vip: Vip) -> BTreeSet<IpAddr> {
    BTreeSet::from([if vip.address.is_ipv4() { v4 } else { v6 }])
}

#[test]
fn a_client_comes_from_the_node_and_a_pod_from_itself_and_no_mark_leaves() {
    let world = World::new(1);
    let node = world.node();
    world.nft_load(WATCH);
    world.dataplane().load(&world.four_services(&[0]), false).unwrap();
    for vip in four_vips() {
        assert_eq!(seen(&world, &node.pod, vip), of_family(world.pod_addresses(), vip));
    }
    assert_eq!(packets(&world, "marked-before"), 0, "a pod needs no mark");
    for vip in four_vips() {
        let before = packets(&world, "marked-before");
        for from in [&node.client, &node.netns] {
            assert_eq!(seen(&world, from, vip), of_family(world.node_addresses(), vip));
        }
        assert_eq!(
            packets(&world, "marked-before"),
            before + 2,
            "{vip}: the first packet of each"
        );
    }
    assert_eq!(packets(&world, "marked-after"), 0);
    assert_eq!(packets(&world, "any-bit-after"), 0);
}

#[test]
fn bits_of_others_in_the_mark_stay() {
    let world = World::new(1);
    world.nft_load(WATCH);
    world.nft_load(
        "table inet site {
            counter whole { }
            chain marking {
                type filter hook prerouting priority -200;
                meta mark set 0x80000001
            }
            chain look {
                type filter hook postrouting priority 160;
                meta mark 0x80000001 counter name whole
            }
        }",
    );
    world.dataplane().load(&world.four_services(&[0]), false).unwrap();
    for vip in four_vips() {
        let before = world.nft(&["list", "counter", "inet", "site", "whole"]);
        assert_eq!(
            seen(&world, &world.node().client, vip),
            of_family(world.node_addresses(), vip)
        );
        assert_ne!(world.nft(&["list", "counter", "inet", "site", "whole"]), before);
    }
    assert_eq!(packets(&world, "marked-before"), 4);
    assert_eq!(packets(&world, "marked-after"), 0);
}

#[test]
fn a_cluster_cidr_that_ends_within_a_byte_is_kept() {
    let world = World::new(1);
    let node = world.node();
    // The pod is inside, the client outside; the second pair leaves all but eight addresses out.
    for (cidr4, cidr6) in [
        ("10.128.0.0/9", "fd00:128::/31"),
        ("10.128.1.8/29", "fd00:128:1::10/125"),
    ] {
        let wish = Desired {
            pods: pods_in(cidr4, cidr6),
            ..world.four_services(&[0])
        };
        let mut dataplane = Dataplane::new(world.netlink(), bit(31));
        dataplane.load(&wish, false).unwrap();
        for vip in four_vips() {
            assert_eq!(seen(&world, &node.pod, vip), of_family(world.pod_addresses(), vip));
            assert_eq!(seen(&world, &node.client, vip), of_family(world.node_addresses(), vip));
        }
        assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
    }
    // The pod just outside.
    let wish = Desired {
        pods: pods_in("10.128.1.16/28", "fd00:128:1::20/123"),
        ..world.four_services(&[0])
    };
    // The table of the other bit goes first: that one is set at the agent's start.
    world.nft(&["delete", "table", "inet", "nftfleet"]);
    Dataplane::new(world.netlink(), bit(0)).load(&wish, false).unwrap();
    for vip in four_vips() {
        assert_eq!(seen(&world, &node.pod, vip), of_family(world.node_addresses(), vip));
    }
}

#[test]
fn without_a_cluster_cidr_nobody_is_masqueraded() {
    let world = World::new(1);
    let wish = Desired {
        pods: Pods {
            v4: None,
            ..pods_in("10.128.0.0/16", "::/0")
        },
        ..world.four_services(&[0])
    };
    world.dataplane().load(&wish, false).unwrap();
    world.servers[0].forget_peers();
    for vip in four_vips() {
        // The question arrives with the client's address, to which the backend has no way back.
        ask_within(&world.node().client, vip, Duration::from_millis(300)).unwrap_err();
        assert_eq!(
            seen(&world, &world.node().pod, vip),
            of_family(world.pod_addresses(), vip)
        );
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service_and_sees_the_node_without_a_mark() {
    let world = World::new(1);
    let node = world.node();
    let port = 8888;
    let server = Backend::start(&node.pod, "pod", &[port], &[port]);
    world.nft_load(WATCH);
    let itself = |vip: Vip| {
        let [v4, v6] = world.pod_addresses();
        let address = if Family::of(vip.address) == Family::V4 { v4 } else { v6 };
        Endpoint { address, port }
    };
    let mut wish = desired(four_vips().map(|vip| (vip, vec![itself(vip)])));
    let mut dataplane = world.dataplane();
    dataplane.load(&wish, false).unwrap();
    for vip in four_vips() {
        // Not known as local: the pod sees a packet from itself, and drops it.
        ask_within(&node.pod, vip, Duration::from_millis(300)).unwrap_err();
    }
    wish.hairpins = four_vips().map(|vip| (vip.protocol, itself(vip))).into();
    dataplane.load(&wish, false).unwrap();
    // The addresses of the node's device to the pod.
    let gateway: [IpAddr; 2] = [[10, 128, 1, 1].into(), "fd00:128:1::1".parse().unwrap()];
    for vip in four_vips() {
        server.forget_peers();
        assert_eq!(answer(&node.pod, vip), "pod");
        assert_eq!(server.peers(), of_family(gateway, vip), "{vip}");
    }
    assert_eq!(packets(&world, "marked-before"), 0);
    // Others who ask the same endpoint are told apart as ever.
    for vip in four_vips() {
        assert_eq!(answer(&node.client, vip), "pod");
    }
    assert_eq!(packets(&world, "marked-before"), 4);
    assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
}
