//! How little is written, and that nobody notices.

use std::net::SocketAddr;
use std::time::Duration;

use nftfleet_domain::service::Protocol;
use nftfleet_tests::manifests::{ServiceBuilder, service};
use nftfleet_tests::traffic::{LongLived, NewConnections};
use nftfleet_tests::wait;
use serde_json::Value;

use crate::ask::{answered_by, asks, refused, vip, vips};
use crate::case::cases;
use crate::objects::{NAMESPACE, PORT, WEB, named, slices, web, web_on_nodes};
use crate::rig::Rig;

cases! {
    Restart: nothing_is_written_and_nobody_notices, ["PT:4253", "S:1207", "S:1240"];
    Restart: what_changed_meanwhile_is_written_and_no_more, ["PT:4253"];
    PartialSync: what_has_not_changed_is_not_written, ["PT:3833"];
    PartialSync: one_endpoint_is_a_few_elements, ["PT:3833"];
    PartialSync: one_service_is_a_few_elements, ["PT:3833"];
    PartialSync: a_list_of_what_is_known_is_no_change, ["S:1240"];
    BoundedFrequency: a_burst_of_events_is_one_commit, [];
    ListAll: a_change_is_written_without_reading_the_table, [];
    StaleChains: services_come_and_go_without_a_chain, ["PT:3833"];
    StaleChains: affinity_makes_no_chain_per_service, ["PT:3833"];
    StaleChains: what_affinity_needs_no_more_goes_in_the_end, ["PT:3833"];
}

/// The most elements that one endpoint of a Service with one address and port may cost: in and out of a list, in and out
/// of a class.
const FEW: usize = 6;

/// A Service with one IPv4 address and one port.
fn small(name: &str, cluster_ip: &str) -> ServiceBuilder {
    service(NAMESPACE, name)
        .cluster_ips([cluster_ip])
        .port("tcp", "TCP", 80, PORT)
}

/// The IPv4 slice of a Service, on these servers.
fn slice_on(rig: &Rig, service: &str, names: &[&str]) -> Value {
    let members: Vec<_> = names.iter().map(|name| rig.member(name)).collect();
    let [v4, _] = slices(service, &members);
    v4
}

/// A cluster that has been at work: some Services, with endpoints.
fn busy() -> Rig {
    let mut rig = Rig::new();
    for number in 1..=40_u16 {
        let name = format!("other-{number}");
        rig.apply(small(&name, &format!("10.96.30.{number}")).object());
        let slice = slice_on(&rig, &name, &["backend-1", "backend-2"]);
        rig.apply(slice);
    }
    let members = rig.members(["backend-1", "backend-2", "pod-1"]);
    rig.program(web_on_nodes().external_policy("Local").object(), &members);
    rig
}

fn targets() -> Vec<SocketAddr> {
    WEB.map(|at| at.parse().expect("an address")).into()
}

fn nothing_is_written_and_nobody_notices() {
    let mut rig = busy();
    let client = rig.node().client.clone();
    let connections = [
        LongLived::open(&client, targets()[0]),
        LongLived::open(&client, targets()[1]),
    ];
    let stream = NewConnections::start(&client, targets(), 300);
    let mut transcript = rig.transcript();
    for _ in 0..5 {
        assert_eq!(rig.restart(), 0);
        let before = stream.counts().made;
        wait::until_blocking("some connections more", Duration::from_secs(10), || {
            (stream.counts().made > before + 50).then_some(())
        });
    }
    assert_eq!(transcript.changes(), Vec::<String>::new());
    stream.stop().assert_no_loss();
    for connection in connections {
        let status = connection.stop();
        assert!(status.alive, "{status:?}");
    }
}

fn what_changed_meanwhile_is_written_and_no_more() {
    let mut rig = busy();
    let client = rig.node().client.clone();
    let stream = NewConnections::start(&client, targets(), 300);
    // While the agent is away an endpoint goes, and a Service.
    let shrunk = slice_on(&rig, "other-7", &["backend-1"]);
    rig.change_unseen(shrunk);
    let mut transcript = rig.transcript();
    assert!(rig.restart() > 0);
    let changes = transcript.changes();
    assert!(!changes.is_empty() && changes.len() <= FEW, "{changes:#?}");
    stream.stop().assert_no_loss();
    let seventh = [vip("10.96.30.7:80", Protocol::Tcp)];
    answered_by(&asks([&client], &seventh), ["backend-1"]);
    answered_by(&asks([&client], &vips(WEB)), ["backend-1", "backend-2", "pod-1"]);
}

fn what_has_not_changed_is_not_written() {
    let mut rig = busy();
    let mut transcript = rig.transcript();
    assert_eq!(rig.commit(), 0);
    // The same once more, and with changes that mean nothing to a proxy.
    let mut web = web_on_nodes().external_policy("Local").label("team", "shop").object();
    web["metadata"]["resourceVersion"] = "4711".into();
    rig.apply(web);
    let members = rig.members(["pod-1", "backend-2", "backend-1"]);
    rig.apply_all(slices("web", &members));
    assert_eq!(rig.commit(), 0);
    assert_eq!(rig.proxy().load(), 0);
    assert_eq!(transcript.changes(), Vec::<String>::new());
}

fn one_endpoint_is_a_few_elements() {
    let mut rig = busy();
    let mut transcript = rig.transcript();
    for names in [
        &["backend-1", "backend-2", "backend-3"][..],
        &["backend-1", "backend-3"],
        &["backend-2", "backend-3"],
        &["backend-3"],
        &[],
        &["backend-1"],
    ] {
        let slice = slice_on(&rig, "other-3", names);
        rig.apply(slice);
        assert!(rig.commit() > 0, "{names:?}");
        let changes = transcript.changes();
        assert!(!changes.is_empty() && changes.len() <= FEW, "{names:?}: {changes:#?}");
        assert!(changes.iter().all(|line| line.contains(" element ")), "{changes:#?}");
    }
}

fn one_service_is_a_few_elements() {
    let mut rig = busy();
    let mut transcript = rig.transcript();
    for _ in 0..2 {
        let slice = slice_on(&rig, "late", &["backend-1", "backend-2"]);
        rig.apply(small("late", "10.96.40.1").object());
        rig.apply(slice);
        rig.commit();
        let changes = transcript.changes();
        // Its address, its class, and two endpoints.
        assert!((4..=FEW).contains(&changes.len()), "{changes:#?}");
        let late = [vip("10.96.40.1:80", Protocol::Tcp)];
        answered_by(&asks(rig.everybody(), &late), ["backend-1", "backend-2"]);
        rig.delete("Service", NAMESPACE, "late");
        rig.commit();
        let changes = transcript.changes();
        assert!((4..=FEW).contains(&changes.len()), "{changes:#?}");
        assert!(changes.iter().all(|line| line.contains("10.96.40.1")), "{changes:#?}");
    }
}

fn a_list_of_what_is_known_is_no_change() {
    let mut rig = busy();
    let mut transcript = rig.transcript();
    rig.list_again();
    assert_eq!(rig.commit(), 0);
    assert_eq!(transcript.changes(), Vec::<String>::new());
    // What is missing from the new list is gone, though nobody said so.
    rig.forget("Service", NAMESPACE, "other-5");
    rig.list_again();
    assert!(rig.commit() > 0);
    let changes = transcript.changes();
    assert!(
        !changes.is_empty() && changes.iter().all(|line| line.contains("10.96.30.5 ")),
        "{changes:#?}"
    );
    answered_by(
        &asks([&rig.node().client], &vips(WEB)),
        ["backend-1", "backend-2", "pod-1"],
    );
}

fn a_burst_of_events_is_one_commit() {
    let mut rig = busy();
    let mut transcript = rig.transcript();
    for number in 1..=200_u16 {
        let name = format!("burst-{number}");
        rig.apply(small(&name, &format!("10.96.50.{number}")).object());
        for names in [&["backend-1"][..], &["backend-2"], &["backend-1", "backend-2"]] {
            let slice = slice_on(&rig, &name, names);
            rig.apply(slice);
        }
    }
    // A move between classes takes a second one.
    assert!((1..=2).contains(&rig.commit()));
    let changes = transcript.changes();
    assert!(changes.len() <= 200 * FEW, "{}", changes.len());
    for number in [1, 100, 200] {
        let burst = [vip(&format!("10.96.50.{number}:80"), Protocol::Tcp)];
        answered_by(&asks([&rig.node().client], &burst), ["backend-1", "backend-2"]);
    }
}

fn a_change_is_written_without_reading_the_table() {
    let mut rig = busy();
    // Whoever read the table would find this.
    rig.proxy()
        .nft_load("add element inet nftfleet cluster-ips4 { 192.0.2.77 }");
    let slice = slice_on(&rig, "other-3", &["backend-3"]);
    rig.apply(slice);
    rig.commit();
    let third = [vip("10.96.30.3:80", Protocol::Tcp)];
    answered_by(&asks([&rig.node().client], &third), ["backend-3"]);
    assert!(rig.proxy().table().contains("192.0.2.77"));
    assert_ne!(rig.proxy().differences(), Vec::<String>::new());
    assert!(rig.proxy().load() > 0);
    assert!(!rig.proxy().table().contains("192.0.2.77"));
}

/// How many chains and rules the table has.
fn shape(rig: &mut Rig) -> (usize, usize) {
    let table = rig.proxy().nft(&["--terse", "list", "table", "inet", "nftfleet"]);
    let chains = table.lines().filter(|line| line.starts_with("\tchain ")).count();
    (chains, table.lines().count())
}

fn services_come_and_go_without_a_chain() {
    let mut rig = Rig::new();
    let before = shape(&mut rig);
    let mut transcript = rig.transcript();
    for number in 1..=60_u16 {
        let name = format!("other-{number}");
        rig.apply(small(&name, &format!("10.96.30.{number}")).object());
        let names: Vec<&str> = ["backend-1", "backend-2", "backend-3"][..usize::from(number % 4).min(3)].to_vec();
        let slice = slice_on(&rig, &name, &names);
        rig.apply(slice);
    }
    let members = rig.members(["backend-1", "pod-1"]);
    rig.program(
        web_on_nodes()
            .ingress("198.51.100.10")
            .external_policy("Local")
            .object(),
        &members,
    );
    assert_eq!(shape(&mut rig), before);
    let changes = transcript.changes();
    assert!(changes.iter().all(|line| line.contains(" element ")), "{changes:#?}");
    for number in 1..=60_u16 {
        rig.delete("Service", NAMESPACE, &format!("other-{number}"));
        rig.delete("EndpointSlice", NAMESPACE, &format!("other-{number}-4"));
    }
    rig.delete("Service", NAMESPACE, "web");
    rig.commit();
    assert_eq!(shape(&mut rig), before);
    // Nothing is left of anybody but the network of Services and the node's own addresses.
    let table = rig.proxy().table();
    assert!(
        !table.contains("10.96.30.") && !table.contains("10.128.200."),
        "{table}"
    );
}

fn affinity_makes_no_chain_per_service() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1", "backend-2"]);
    rig.program(web().affinity(60).object(), &members);
    let with_one = shape(&mut rig);
    for number in 2..=30_u16 {
        let name = format!("web-{number}");
        let service = named(&name, ["10.96.20.2", "fd00:10:96::2002"]);
        let cluster_ips = [format!("10.96.31.{number}"), format!("fd00:10:96::31{number}")];
        let service = service.cluster_ips([&cluster_ips[0], &cluster_ips[1]]).affinity(60);
        rig.program(service.object(), &members);
    }
    assert_eq!(shape(&mut rig), with_one);
    let last = asks([&rig.node().client], &vips(["10.96.31.30:80"]));
    assert!(last.iter().all(|ask| ask.answer().starts_with("backend-")));
    for number in 2..=30_u16 {
        rig.delete("Service", NAMESPACE, &format!("web-{number}"));
    }
    rig.commit();
    assert_eq!(shape(&mut rig), with_one);
    rig.endpoints("web", &[]);
    refused(&asks([&rig.node().client], &vips(WEB)));
}

fn what_affinity_needs_no_more_goes_in_the_end() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1", "backend-2"]);
    rig.program(web().affinity(60).object(), &members);
    let (chains, _) = shape(&mut rig);
    // Every one with a time of its own.
    for round in 0..2 {
        for number in 1..=40_u16 {
            let name = format!("other-{number}");
            let seconds = 1_000 + 100 * round + u32::from(number);
            let service = small(&name, &format!("10.96.31.{number}")).affinity(seconds);
            rig.program(service.object(), &members);
            let last = asks(
                [&rig.node().client],
                &[vip(&format!("10.96.31.{number}:80"), Protocol::Tcp)],
            );
            assert!(last[0].answer().starts_with("backend-"));
        }
        for number in 1..=40_u16 {
            rig.delete("Service", NAMESPACE, &format!("other-{number}"));
        }
        rig.commit();
        rig.restart();
    }
    // Some may be kept for the next time; not all of eighty.
    let (after, _) = shape(&mut rig);
    assert!(after < chains + 30, "{after} chains, {chains} before");
    for ask in asks(rig.everybody(), &vips(WEB)) {
        assert!(ask.answer().starts_with("backend-"));
    }
}
