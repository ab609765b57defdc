//! What strangers do to our table is found and mended; what is theirs stays as it is.

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::{Family, Protocol};
use nftfleet_tests::kube_proxy::{self, Backend};
use nftfleet_tests::manifests;

use crate::world::{World, answer, four_vips};

/// What somebody may do to our table with `nft`.
const CHANGES: [(&str, &str); 27] = [
    (
        "a slot added",
        "add element inet nftfleet endpoints4 { 10.96.20.1 . tcp . 80 . 7 : 10.128.200.9 . 9 }",
    ),
    (
        "a slot of a Service of nobody",
        "add element inet nftfleet endpoints6 { fd00::1 . udp . 53 . 0 : fd00::2 . 53 }",
    ),
    (
        "a slot that is no slot",
        "add element inet nftfleet endpoints4 { 10.96.20.1 . tcp . 80 . 70000 : 10.128.200.9 . 9 }",
    ),
    (
        "a protocol that is none of Services",
        "add element inet nftfleet service4-1 { 10.96.20.1 . icmp . 80 }",
    ),
    (
        "a ClusterIP for all addresses",
        "add element inet nftfleet cluster-ips4 { * }",
    ),
    (
        "a slot removed",
        "delete element inet nftfleet endpoints6 { fd00:10:96::2001 . tcp . 80 . 1 }",
    ),
    (
        "a slot changed",
        "delete element inet nftfleet endpoints4 { 10.96.20.1 . udp . 80 . 0 }
         add element inet nftfleet endpoints4 { 10.96.20.1 . udp . 80 . 0 : 10.128.200.9 . 9 }",
    ),
    ("all slots flushed", "flush map inet nftfleet endpoints4"),
    (
        "a ClusterIP added",
        "add element inet nftfleet cluster-ips4 { 192.0.2.1 }",
    ),
    (
        "a ClusterIP removed",
        "delete element inet nftfleet cluster-ips6 { fd00:10:96::2001 }",
    ),
    (
        "a class added",
        "add element inet nftfleet service4-16 { 10.96.20.1 . tcp . 80 }",
    ),
    (
        "a class removed",
        "delete element inet nftfleet service6-3 { fd00:10:96::2001 . udp . 80 }",
    ),
    (
        "a hairpin added",
        "add element inet nftfleet hairpin4 { 10.128.1.9 . 10.128.1.9 . tcp . 80 }",
    ),
    ("a hairpin removed", "flush set inet nftfleet hairpin6"),
    (
        "a hairpin between two",
        "add element inet nftfleet hairpin4 { 10.128.1.9 . 10.128.1.8 . tcp . 80 }",
    ),
    ("a rule added", "add rule inet nftfleet services4 counter"),
    (
        "a rule put in front",
        "insert rule inet nftfleet prerouting ip saddr 172.30.1.2 accept",
    ),
    (
        "a rule like ours added",
        "add rule inet nftfleet cluster-ip4 goto reject-connection",
    ),
    ("a chain emptied", "flush chain inet nftfleet slots6-3"),
    ("a rule in an empty place", "flush chain inet nftfleet output"),
    ("a chain added", "add chain inet nftfleet site"),
    (
        "a base chain added",
        "add chain inet nftfleet site { type filter hook input priority 0; policy accept; }",
    ),
    (
        "a policy changed",
        "add chain inet nftfleet prerouting { policy drop; }",
    ),
    ("a set added", "add set inet nftfleet site { type ipv4_addr; }"),
    ("all rules flushed", "flush table inet nftfleet"),
    ("the table deleted", "delete table inet nftfleet"),
    (
        "another table in its place",
        "delete table inet nftfleet
         table inet nftfleet { chain prerouting { type filter hook prerouting priority 0; }; }",
    ),
];

/// Everything on the node that is not ours, without counters and dates.
fn others(world: &World) -> Vec<String> {
    let node = &world.node().netns;
    let mut all = Vec::new();
    for table in world
        .nft(&["list", "tables"])
        .lines()
        .filter(|table| *table != "table inet nftfleet")
    {
        let words: Vec<&str> = ["-s", "list"].into_iter().chain(table.split_whitespace()).collect();
        all.push(world.nft(&words));
    }
    for family in kube_proxy::Family::BOTH {
        for backend in [Backend::Legacy, Backend::Nft] {
            let saved = kube_proxy::save(node, backend, family);
            let lines = saved.lines().filter(|line| !line.starts_with('#'));
            // `:CHAIN POLICY [packets:bytes]`
            all.extend(lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned()));
        }
    }
    all
}

#[test]
fn every_foreign_change_is_found_and_mended_and_foreign_tables_stay() {
    let world = World::new(3);
    let node = &world.node().netns;
    world.nft_load(
        "table inet site {
            set admins { type ipv4_addr; elements = { 192.0.2.7 }; }
            chain input {
                type filter hook input priority 5; policy accept;
                tcp dport 9999 ip saddr != @admins counter drop
            }
        }
        table ip kube-proxy {
            map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
            chain services { }
            chain nat-prerouting {
                type nat hook prerouting priority dstnat;
                jump services
            }
        }
        add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips",
    );
    for backend in [Backend::Legacy, Backend::Nft] {
        kube_proxy::install_foreign(node, backend, &kube_proxy::Family::BOTH);
        kube_proxy::install_kubelet(node, backend, &kube_proxy::Family::BOTH);
        kube_proxy::install(node, backend, &manifests::all(), &kube_proxy::Family::BOTH);
    }
    let before = others(&world);
    assert!(
        before.len() > 100 && before.iter().any(|text| text.contains("KUBE-SVC-")),
        "{before:?}"
    );

    let mut wish = world.four_services(&[0, 1, 2]);
    wish.hairpins = Family::BOTH
        .map(|family| (Protocol::Tcp, world.endpoint(family, 0)))
        .into();
    let mut dataplane = world.dataplane();
    dataplane.load(&wish, false).unwrap();
    assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
    for (what, script) in CHANGES {
        world.nft_load(script);
        let found = dataplane
            .compare(&wish)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_ne!(found, Vec::<String>::new(), "{what} is not found");
        let commits = dataplane
            .load(&wish, false)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!((1..=2).contains(&commits), "{what}: {commits}");
        assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new(), "{what}");
        assert_eq!(dataplane.state().unwrap(), TableState::Active, "{what}");
        for vip in four_vips() {
            answer(&world.node().client, vip);
        }
    }
    assert_eq!(others(&world), before);
    world.nft_load("delete table inet nftfleet");
    assert_eq!(others(&world), before);
}

#[test]
fn a_table_that_a_stranger_put_to_sleep_is_seen_and_woken() {
    let world = World::new(1);
    let wish = world.four_services(&[0]);
    let mut dataplane = world.dataplane();
    dataplane.load(&wish, false).unwrap();
    world.nft_load("table inet nftfleet { flags dormant; }");
    assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
    assert_eq!(dataplane.state().unwrap(), TableState::Dormant);
    dataplane.set_dormant(false).unwrap();
    assert_eq!(answer(&world.node().client, four_vips()[0]), "server-0");
    // Its comment is still there.
    assert!(
        world
            .nft(&["list", "table", "inet", "nftfleet"])
            .contains("do not edit")
    );
}
