//! What Debian's `nft` prints is the table, and loads again as the same table.

use std::collections::BTreeSet;
use std::sync::Arc;

use nftfleet_agent::dataplane::desired::{Affinity, Frontend, List, PodMatch, Pods, Route};
use nftfleet_agent::dataplane::{Dataplane, Desired, LayoutSettings};
use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::{Family, Protocol, Vip};
use nftfleet_tests::netns::{Netns, Prefix};

use crate::world::{SETTINGS, World, netlink, pods_in};

const LIST: [&str; 4] = ["list", "table", "inet", "nftfleet"];

/// What `nft` prints; it must end well and complain of nothing.
fn listed(netns: &Netns, arguments: &[&str]) -> String {
    let output = netns.command("nft").args(arguments).output().expect("nft runs");
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).expect("text")
}

fn prints_and_loads_again(world: &World, settings: LayoutSettings, wish: &Desired, dormant: bool) -> String {
    let mut dataplane = Dataplane::new(world.netlink(), settings);
    dataplane.load(wish, dormant).expect("the table follows");
    dataplane.set_dormant(dormant).expect("a flip");
    let printed = listed(&world.node().netns, &LIST);
    assert_eq!(printed.contains("flags dormant"), dormant);

    let fresh = Netns::create(&Prefix::unique(), "fresh");
    fresh.pipe("nft", &["-f", "-"], &printed);
    assert_eq!(listed(&fresh, &LIST), printed);
    let mut there = Dataplane::new(netlink(&fresh), settings);
    assert_eq!(there.compare(wish).expect("the table is read"), Vec::<String>::new());
    let state = if dormant {
        TableState::Dormant
    } else {
        TableState::Active
    };
    assert_eq!(there.state().expect("the table is read"), state);
    assert_eq!(there.load(wish, !dormant).expect("the table follows"), 0);
    printed
}

#[test]
fn nft_prints_the_table_and_loads_it_again_as_the_same() {
    let world = World::new(12);
    let mut wish = world.four_services(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
    wish.hairpins = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .flat_map(|protocol| Family::BOTH.map(|family| (protocol, world.endpoint(family, 0))))
        .collect();
    let printed = prints_and_loads_again(&world, SETTINGS, &wish, true);
    prints_and_loads_again(&world, SETTINGS, &wish, false);
    for expected in [
        "comment \"Services of Kubernetes: made by nftfleet-agent, do not edit\"",
        "10.96.20.1 . tcp . 80 . 8 : 10.128.200.",
        "fd00:10:96::2001 . udp . 80 . 0 : fd00:128:200::",
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 12 map @endpoints4",
        "dnat ip6 to ip6 daddr . meta l4proto . th dport . numgen random mod 1 map @endpoints6",
        "reject with tcp reset",
        "second look",
        "masquerade fully-random",
    ] {
        assert!(printed.contains(expected), "{expected:?} is not in\n{printed}");
    }
    // An empty table and other settings: prefixes within a byte, no prefix, a device, another bit.
    let device = |device: PodMatch| Pods {
        v4: Some(device.clone()),
        v6: Some(device),
    };
    for (masquerade_bit, pods) in [
        (31, pods_in("10.128.0.0/14", "fd00:128::/33")),
        (0, pods_in("10.128.0.0/24", "fd00::/8")),
        (1, device(PodMatch::Interface("cni0".to_owned()))),
        (2, device(PodMatch::InterfacePrefix("azv".to_owned()))),
        (3, Pods::default()),
    ] {
        let settings = LayoutSettings {
            masquerade_bit,
            masquerade_all: masquerade_bit == 3,
        };
        let wish = Desired {
            pods,
            ..Desired::default()
        };
        prints_and_loads_again(&world, settings, &wish, true);
    }
}

/// A list with session affinity.
fn sticky(world: &World, vip: Vip, servers: &[u16], number: u32) -> List {
    let endpoints = servers.iter().map(|n| world.endpoint(Family::of(vip.address), *n));
    List {
        endpoints: endpoints.collect::<BTreeSet<_>>().into_iter().collect(),
        affinity: Some(Affinity {
            timeout: 10,
            number,
            siblings: [vip].into(),
        }),
    }
}

#[test]
fn nft_prints_every_kind_of_element_and_loads_it_again_as_the_same() {
    let world = World::new(12);
    let mut wish = world.four_services(&[0, 1, 2]);
    wish.nodeport_ips = world.node_addresses().into();
    wish.service_cidrs = ["10.96.0.0/12", "10.112.0.0/13", "fd00:10:96::/112", "192.0.2.1/32"]
        .map(|cidr| cidr.parse().unwrap())
        .into();
    wish.hairpins = Family::BOTH
        .map(|family| (Protocol::Udp, world.endpoint(family, 0)))
        .into();
    for (port, at) in (1..)
        .flat_map(|n| ["198.51.100.1", "2001:db8::1"].map(move |at| (n, at)))
        .take(16)
    {
        let vip = Vip {
            address: at.parse().unwrap(),
            protocol: if port % 2 == 0 { Protocol::Sctp } else { Protocol::Tcp },
            port,
        };
        wish.external_ips.insert(vip.address);
        let (range, one) = if vip.address.is_ipv4() {
            ("192.0.2.0/25", "198.51.100.1/32")
        } else {
            ("fd00:30::/33", "2001:db8::1/128")
        };
        let frontend = Frontend {
            name: format!("shop/web:port-{port}").into(),
            route: Some(Route::ALL[usize::from(port) % 4]),
            all: Some(sticky(
                &world,
                vip,
                &[0, 1, 2, 3, 4, 5, 6, 7, 8],
                0x8000_0000 + u32::from(port),
            )),
            local: Some(sticky(&world, vip, &[1], 0x9000_0000)),
            sources: (port % 3 == 0).then(|| Arc::new([range, one].map(|r| r.parse().unwrap()).into())),
            serving: [].into(),
        };
        wish.frontends.insert(vip, frontend);
    }
    let printed = prints_and_loads_again(&world, SETTINGS, &wish, true);
    for expected in [
        "10.96.20.1 comment \"shop/test\"",
        "10.96.0.0/12",
        "10.112.0.0/13",
        "198.51.100.1 . tcp . 3 . 192.0.2.0/25",
        "2001:db8::1 . tcp . 1 . 4e46:8 : fd00:128:200::",
        "198.51.100.1 . tcp . 1 . 4e47:0 : 10.128.200.",
        "198.51.100.1 . sctp . 2 : 8000:2",
        "comment \"shop/web:port-4\"",
        "update @clients4 { ip saddr . meta priority timeout 10s : numgen random mod 12 offset 1313210368 }",
        "update @clients6 { jhash ip6 saddr mod 4294967295 seed 0x6e667466 . meta priority timeout 10s",
        "goto local-sticky6-10-1",
    ] {
        assert!(printed.contains(expected), "{expected:?} is not in\n{printed}");
    }
}

#[test]
fn nft_prints_the_whole_ruleset_with_our_table_in_it() {
    let world = World::new(1);
    world.dataplane().load(&world.four_services(&[0]), false).unwrap();
    let node = &world.node().netns;
    for arguments in [
        &["list", "ruleset"][..],
        &["-j", "list", "ruleset"],
        &["list", "tables"],
        &["list", "sets"],
        &["list", "maps"],
    ] {
        assert!(listed(node, arguments).contains("nftfleet"), "{arguments:?}");
    }
    // A reader in numbers sees the endpoints too.
    assert!(listed(node, &["-n", "-a", "list", "map", "inet", "nftfleet", "endpoints4"]).contains("10.128.200.1"));
}
