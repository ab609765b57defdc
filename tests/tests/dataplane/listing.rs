//! What Debian's `nft` prints is the table, and loads again as the same table.

use nftfleet_agent::dataplane::{Dataplane, Desired, Layout, LayoutSettings};
use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::{Family, Protocol};
use nftfleet_tests::netns::{Netns, Prefix};

use crate::world::{World, netlink, settings};

const LIST: [&str; 4] = ["list", "table", "inet", "nftfleet"];

/// What `nft` prints; it must end well and complain of nothing.
fn listed(netns: &Netns, arguments: &[&str]) -> String {
    let output = netns.command("nft").args(arguments).output().expect("nft runs");
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).expect("text")
}

fn prints_and_loads_again(world: &World, layout: &Layout, wish: &Desired, dormant: bool) -> String {
    let mut dataplane = Dataplane::new(world.netlink(), layout.clone());
    dataplane.load(wish, dormant).expect("the table follows");
    dataplane.set_dormant(dormant).expect("a flip");
    let printed = listed(&world.node().netns, &LIST);
    assert_eq!(printed.contains("flags dormant"), dormant);

    let fresh = Netns::create(&Prefix::unique(), "fresh");
    fresh.pipe("nft", &["-f", "-"], &printed);
    assert_eq!(listed(&fresh, &LIST), printed);
    let mut there = Dataplane::new(netlink(&fresh), layout.clone());
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
    wish.local = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .flat_map(|protocol| Family::BOTH.map(|family| (protocol, world.endpoint(family, 0))))
        .collect();
    let layout = Layout::new(&settings());
    let printed = prints_and_loads_again(&world, &layout, &wish, true);
    prints_and_loads_again(&world, &layout, &wish, false);
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
    // An empty table and other settings: prefixes within a byte, no prefix, another bit.
    for (cluster_cidr4, cluster_cidr6, masquerade_bit) in [
        (Some("10.128.0.0/14"), Some("fd00:128::/33"), 31),
        (None, Some("fd00::/8"), 0),
    ] {
        let layout = Layout::new(&LayoutSettings {
            cluster_cidr4: cluster_cidr4.map(|cidr| cidr.parse().unwrap()),
            cluster_cidr6: cluster_cidr6.map(|cidr| cidr.parse().unwrap()),
            masquerade_bit,
        });
        prints_and_loads_again(&world, &layout, &Desired::default(), true);
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
