//! Who answers for a Service, and what passes by untouched.

use std::collections::BTreeSet;
use std::time::Duration;

use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};
use nftfleet_tests::backends::Backend;

use crate::world::{FIRST_PORT, PROTOCOLS, SERVICE_PORT, World, answer, ask_within, desired, four_vips, identity, vip};

#[test]
fn every_endpoint_answers_a_client_a_pod_and_the_node() {
    let world = World::new(3);
    let mut dataplane = world.dataplane();
    let wish = world.four_services(&[0, 1, 2]);
    assert_eq!(dataplane.load(&wish, false).unwrap(), 1);
    let all: BTreeSet<String> = (0..3).map(identity).collect();
    for from in world.askers() {
        for vip in four_vips() {
            let mut seen = BTreeSet::new();
            // One of three unseen in 90 draws: once in 10^15.
            for _ in 0..90 {
                seen.insert(answer(from, vip));
                if seen == all {
                    break;
                }
            }
            assert_eq!(seen, all, "{vip} from {}", from.name());
        }
    }
    assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
}

#[test]
fn a_service_answers_only_on_its_own_port_and_protocol() {
    let world = World::new(2);
    let mut dataplane = world.dataplane();
    // The same address and port, another endpoint for each protocol; and a second port.
    let at = |port: u16, protocol| vip(&format!("10.96.20.1:{port}"), protocol);
    let v4 = |server| vec![world.endpoint(Family::V4, server)];
    let wish = desired([
        (at(80, Protocol::Tcp), v4(0)),
        (at(80, Protocol::Udp), v4(1)),
        (at(81, Protocol::Tcp), v4(1)),
    ]);
    dataplane.load(&wish, false).unwrap();
    for _ in 0..5 {
        assert_eq!(answer(&world.node().client, at(80, Protocol::Tcp)), identity(0));
        assert_eq!(answer(&world.node().client, at(80, Protocol::Udp)), identity(1));
        assert_eq!(answer(&world.node().client, at(81, Protocol::Tcp)), identity(1));
    }
}

#[test]
fn an_address_that_is_no_cluster_ip_passes_untouched() {
    let world = World::new(1);
    let node = world.node();
    let _on_the_node = Backend::start(&node.netns, "node", &[SERVICE_PORT], &[]);
    world.dataplane().load(&world.four_services(&[0]), false).unwrap();
    world.nft_load(
        "table inet watch {
            chain forward {
                type filter hook forward priority 0;
                ip daddr 10.96.77.77 counter
                ip6 daddr fd00:10:96::7777 counter
            }
        }",
    );
    for address in world.node_addresses() {
        let own = Vip {
            address,
            protocol: Protocol::Tcp,
            port: SERVICE_PORT,
        };
        assert_eq!(answer(&node.client, own), "node");
    }
    for protocol in PROTOCOLS {
        for family in Family::BOTH {
            let Endpoint { address, port } = world.endpoint(family, 0);
            assert_eq!(port, FIRST_PORT);
            let direct = Vip {
                address,
                protocol,
                port,
            };
            assert_eq!(answer(&node.pod, direct), identity(0));
        }
        // Like a ClusterIP, but none: forwarded as it came, to a network where nobody has it.
        for at in ["10.96.77.77:80", "[fd00:10:96::7777]:80"] {
            ask_within(&node.client, vip(at, protocol), Duration::from_millis(300)).unwrap_err();
        }
    }
    let counters = world.nft(&["list", "table", "inet", "watch"]);
    assert_eq!(counters.matches("counter packets").count(), 2, "{counters}");
    assert!(!counters.contains("packets 0 "), "{counters}");
}
