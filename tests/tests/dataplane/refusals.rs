//! Connections to a `ClusterIP` that nobody serves are refused, and at once.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use nftfleet_domain::service::{Protocol, Vip};
use nftfleet_tests::netns::Netns;

use crate::world::{World, answer, ask, desired, four_vips, vip};

/// Well below the second that an ICMP error costs IPv6 clients, and far above a reset's way on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(500);

fn is_refused_at_once(from: &Netns, vip: Vip, kind: ErrorKind) {
    let asked = Instant::now();
    let error = ask(from, vip).expect_err("a refusal");
    let took = asked.elapsed();
    assert_eq!(error.kind(), kind, "{vip} from {}: {error}", from.name());
    assert!(took < AT_ONCE, "{vip} from {}: {took:?}", from.name());
}

#[test]
fn a_service_without_endpoints_and_a_port_without_service_are_refused_at_once() {
    let world = World::new(1);
    let node = world.node();
    let mut dataplane = world.dataplane();
    let mut wish = world.four_services(&[0]);
    let empty = ["10.96.20.9:80", "[fd00:10:96::2009]:80"];
    let undefined = [
        "10.96.20.1:81",
        "[fd00:10:96::2001]:81",
        "10.96.20.1:8080",
        "[fd00:10:96::2001]:8080",
    ];
    let of_nobody = |at| [Protocol::Tcp, Protocol::Udp].map(|protocol| (vip(at, protocol), vec![]));
    let without = desired(empty.into_iter().flat_map(of_nobody));
    wish.frontends.extend(without.frontends);
    wish.cluster_ips.extend(without.cluster_ips);
    dataplane.load(&wish, false).unwrap();

    for at in empty.into_iter().chain(undefined) {
        for from in world.askers() {
            is_refused_at_once(from, vip(at, Protocol::Tcp), ErrorKind::ConnectionRefused);
        }
        for from in [&node.client, &node.pod] {
            is_refused_at_once(from, vip(at, Protocol::Udp), ErrorKind::ConnectionRefused);
        }
        // A datagram that is rejected in the output hook fails in `send` itself, as it does with kube-proxy's rules.
        is_refused_at_once(&node.netns, vip(at, Protocol::Udp), ErrorKind::PermissionDenied);
    }
    for vip in four_vips() {
        answer(&node.client, vip);
    }
    assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
}

#[test]
fn the_last_endpoint_that_goes_leaves_a_refusal_and_the_first_that_comes_an_answer() {
    let world = World::new(1);
    let mut dataplane = world.dataplane();
    for _ in 0..5 {
        dataplane.load(&world.four_services(&[0]), false).unwrap();
        for vip in four_vips() {
            answer(&world.node().client, vip);
        }
        dataplane.load(&world.four_services(&[]), false).unwrap();
        for vip in four_vips() {
            // A UDP client with a port of its own has a connection of its own.
            is_refused_at_once(&world.node().client, vip, ErrorKind::ConnectionRefused);
        }
    }
}
