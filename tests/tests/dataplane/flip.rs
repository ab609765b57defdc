//! The flip between kube-proxy's rules and our table, to and fro, under load.

use std::time::Duration;

use nftfleet_agent::dataplane::{Dataplane, Netlink};
use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::{Family as IpFamily, Protocol, Vip};
use nftfleet_tests::kube_proxy::{self, Backend, Family};
use nftfleet_tests::manifests::{AddressType, Readiness, endpoint_slice, service};
use nftfleet_tests::traffic::{LongLived, NewConnections, UdpQueries};
use nftfleet_tests::wait;
use serde_json::Value;

use crate::world::{FIRST_PORT, World, answer, four_vips, identity, target};

const FLIPS: u64 = 220;

/// The Service of [`four_vips`] as kube-proxy is told of it: server 0 alone.
fn manifests(world: &World) -> Vec<Value> {
    let vips = four_vips();
    let [v4, v6] = [vips[0], vips[2]].map(|vip| vip.address.to_string());
    let slice = |suffix, kind, family| {
        let endpoint = world.endpoint(family, 0);
        endpoint_slice("shop", "flip", suffix, kind)
            .port("tcp", "TCP", FIRST_PORT)
            .port("udp", "UDP", FIRST_PORT)
            .endpoint(&endpoint.address.to_string(), "", Readiness::READY)
            .object()
    };
    vec![
        service("shop", "flip")
            .cluster_ips([&v4, &v6])
            .port("tcp", "TCP", 80, FIRST_PORT)
            .port("udp", "UDP", 80, FIRST_PORT)
            .object(),
        slice("a", AddressType::IPv4, IpFamily::V4),
        slice("b", AddressType::IPv6, IpFamily::V6),
    ]
}

/// A node with kube-proxy's rules to server 0, and our table, dormant, to server 1.
fn before_the_flip(backend: Backend) -> (World, Dataplane<Netlink>) {
    let world = World::new(2);
    let node = &world.node().netns;
    kube_proxy::install_foreign(node, backend, &Family::BOTH);
    kube_proxy::install_kubelet(node, backend, &Family::BOTH);
    kube_proxy::install(node, backend, &manifests(&world), &Family::BOTH);
    let mut dataplane = world.dataplane();
    dataplane
        .load(&world.four_services(&[1]), true)
        .expect("the table follows");
    assert_eq!(dataplane.state().expect("the table is read"), TableState::Dormant);
    (world, dataplane)
}

/// Everybody is answered by this server.
fn everybody_reaches(world: &World, server: u16) {
    for from in world.askers() {
        for vip in four_vips() {
            assert_eq!(answer(from, vip), identity(server), "{vip} from {}", from.name());
        }
    }
}

fn dormant_hooks_nothing_and_active_answers_first(backend: Backend) {
    let (world, mut dataplane) = before_the_flip(backend);
    everybody_reaches(&world, 0);
    dataplane.set_dormant(false).expect("a flip");
    everybody_reaches(&world, 1);
    dataplane.set_dormant(true).expect("a flip");
    everybody_reaches(&world, 0);
    // What changes while it is dormant is there when it wakes.
    let wish = world.four_services(&[]);
    dataplane.load(&wish, false).expect("the table follows");
    assert_eq!(dataplane.state().expect("the table is read"), TableState::Dormant);
    everybody_reaches(&world, 0);
    let wish = world.four_services(&[1]);
    dataplane.load(&wish, false).expect("the table follows");
    dataplane.set_dormant(false).expect("a flip");
    everybody_reaches(&world, 1);
    assert_eq!(
        dataplane.compare(&wish).expect("the table is read"),
        Vec::<String>::new()
    );
    assert_eq!(dataplane.state().expect("the table is read"), TableState::Active);
}

#[test]
fn dormant_hooks_nothing_and_active_answers_before_legacy_iptables() {
    dormant_hooks_nothing_and_active_answers_first(Backend::Legacy);
}

#[test]
fn dormant_hooks_nothing_and_active_answers_before_nft_iptables() {
    dormant_hooks_nothing_and_active_answers_first(Backend::Nft);
}

fn flipping_to_and_fro_loses_nothing(backend: Backend) {
    let (world, mut dataplane) = before_the_flip(backend);
    let node = world.node();
    let tcp: Vec<Vip> = four_vips()
        .into_iter()
        .filter(|vip| vip.protocol == Protocol::Tcp)
        .collect();
    let targets = |protocol| {
        let vips = four_vips().into_iter().filter(move |vip| vip.protocol == protocol);
        vips.map(target).collect::<Vec<_>>()
    };
    let open = |server: u16| {
        let connections: Vec<_> = tcp
            .iter()
            .map(|vip| LongLived::open(&node.client, target(*vip)))
            .collect();
        for connection in &connections {
            assert_eq!(connection.status().backend, identity(server));
        }
        connections
    };
    let of_kube_proxy = open(0);
    dataplane.set_dormant(false).expect("a flip");
    let ours = open(1);

    let connections = NewConnections::start(&node.client, targets(Protocol::Tcp), 1_000);
    let queries = UdpQueries::start(&node.client, targets(Protocol::Udp), 1_000);
    for flip in 1..=FLIPS {
        let dormant = flip % 2 == 1;
        dataplane.set_dormant(dormant).expect("a flip");
        // From the pod, so that no connection of the streams has the same source port.
        let vip = tcp[usize::from(flip % 4 < 2)];
        assert_eq!(answer(&node.pod, vip), identity(u16::from(!dormant)), "flip {flip}");
        let so_far = (connections.counts().made, queries.counts().made);
        wait::until_blocking("some connections in this phase", Duration::from_secs(10), || {
            (connections.counts().made >= so_far.0 + 8 && queries.counts().made >= so_far.1 + 8).then_some(())
        });
    }
    let (connections, queries) = (connections.stop(), queries.stop());
    println!(
        "{backend:?}: {FLIPS} flips, {} connections {:?}, {} queries {:?}",
        connections.made, connections.answered, queries.made, queries.answered
    );
    for counts in [connections, queries] {
        counts.assert_no_loss();
        assert!(counts.made >= 8 * FLIPS, "{counts:?}");
        for server in [0, 1] {
            let answers = counts.answered.get(&identity(server)).copied().unwrap_or_default();
            assert!(answers * 5 > counts.made, "{:?}", counts.answered);
        }
    }
    for (server, connections) in [(0, of_kube_proxy), (1, ours)] {
        for connection in connections {
            let status = connection.stop();
            assert!(status.alive && status.echoes > 20, "{status:?}");
            assert_eq!(status.backend, identity(server));
            assert!(status.worst_gap_ms < 1_000, "{status:?}");
        }
    }
    assert_eq!(
        dataplane
            .compare(&world.four_services(&[1]))
            .expect("the table is read"),
        Vec::<String>::new()
    );
}

#[test]
fn flipping_before_legacy_iptables_loses_nothing() {
    flipping_to_and_fro_loses_nothing(Backend::Legacy);
}

#[test]
fn flipping_before_nft_iptables_loses_nothing() {
    flipping_to_and_fro_loses_nothing(Backend::Nft);
}
