//! One client, one endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use nftfleet_domain::service::{Protocol, Vip};
use nftfleet_tests::manifests::ServiceBuilder;
use nftfleet_tests::wait;

use crate::ask::{Ask, answered_by, asks, refused, vip, vips};
use crate::case::cases;
use crate::objects::{BALANCER, Member, PORT, WEB, named, web, web_on_nodes};
use crate::rig::Rig;

cases! {
    Affinity: a_client_stays_with_its_endpoint, ["PT:204", "S:2229", "dual_stack.go:576"];
    Affinity: a_client_stays_whatever_the_way_in, ["S:2266", "networking.go:413", "loadbalancer.go:565", "loadbalancer.go:585"];
    Affinity: clients_are_spread, [];
    Affinity: a_silent_client_is_forgotten, ["S:2235", "S:2272"];
    Affinity: a_client_that_comes_again_is_remembered_anew, ["S:2235"];
    Affinity: an_endpoint_that_goes_moves_its_clients_and_no_others, [];
    Affinity: clients_of_an_endpoint_that_goes_are_spread_over_the_others, [];
    Affinity: an_endpoint_that_comes_moves_nobody, [];
    Affinity: the_last_endpoint_goes_and_another_comes, [];
    Affinity: affinity_is_switched_on_and_off, ["S:2251", "S:2288", "networking.go:431", "dual_stack.go:594", "loadbalancer.go:575", "loadbalancer.go:595"];
    Affinity: another_time_out_is_taken_over, [];
    Affinity: services_are_remembered_apart, [];
    Affinity: policy_local_sticks_to_local_endpoints, [];
    Affinity: a_restarted_agent_keeps_every_client, [];
}

/// As many clients as are asked for where each must be looked at.
const CLIENTS: u8 = 60;

/// Longer than any case takes.
const LONG: u32 = 10_800;

fn addresses() -> Vec<[IpAddr; 2]> {
    let pair = |number: u8| -> [IpAddr; 2] {
        [
            Ipv4Addr::new(172, 30, 1, 100 + number).into(),
            Ipv6Addr::new(0xfd00, 0x30, 1, 0, 0, 0, 1, number.into()).into(),
        ]
    };
    (0..CLIENTS).map(pair).collect()
}

/// A Service with these endpoints, and clients.
fn rig(service: ServiceBuilder, endpoints: &[&str]) -> Rig {
    let mut rig = Rig::new();
    let lines = addresses()
        .into_iter()
        .map(|[v4, v6]| format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad"));
    rig.node().client.batch(&lines.collect::<Vec<_>>().join("\n"));
    endpoints_are(&mut rig, endpoints);
    rig.apply(service.object());
    rig.commit();
    rig
}

fn endpoints_are(rig: &mut Rig, names: &[&str]) {
    let members: Vec<_> = names.iter().map(|name| rig.member(name)).collect();
    rig.endpoints("web", &members);
}

/// Every client asks once; who answered whom.
fn ask_all(rig: &Rig, to: Vip) -> BTreeMap<IpAddr, String> {
    let each = addresses()
        .into_iter()
        .map(|pair| pair[usize::from(to.address.is_ipv6())]);
    each.map(|source| (source, Ask::from_address(&rig.node().client, source, to).answer()))
        .collect()
}

/// TCP over IPv4 and UDP over IPv6: the two halves of the table, and both protocols.
fn two() -> [Vip; 2] {
    [vip(WEB[0], Protocol::Tcp), vip(WEB[1], Protocol::Udp)]
}

fn distinct(answers: &BTreeMap<IpAddr, String>) -> BTreeSet<&str> {
    answers.values().map(String::as_str).collect()
}

/// How many clients were answered by another endpoint than before.
fn moved(before: &BTreeMap<IpAddr, String>, after: &BTreeMap<IpAddr, String>) -> usize {
    before
        .iter()
        .filter(|(client, answer)| after[*client] != **answer)
        .count()
}

/// The same endpoint again and again; gives it.
fn sticks(ask: &Ask) -> String {
    let first = ask.answer();
    // By chance once in 10^9, with three endpoints.
    for _ in 0..19 {
        assert_eq!(ask.answer(), first, "{ask:?}");
    }
    first
}

fn a_client_stays_with_its_endpoint() {
    let rig = rig(web().affinity(LONG), &["backend-1", "backend-2", "backend-3"]);
    for ask in asks(rig.everybody(), &vips(WEB)) {
        sticks(&ask);
    }
}

fn a_client_stays_whatever_the_way_in() {
    let service = web_on_nodes()
        .ingress("198.51.100.10")
        .ingress("fd00:198::10")
        .external_ips(["198.51.100.11", "fd00:198::11"])
        .affinity(LONG);
    let rig = rig(service, &["backend-1", "backend-2", "backend-3", "pod-1"]);
    let ways = [
        vips(WEB),
        vips(BALANCER),
        vips(["198.51.100.11:80", "[fd00:198::11]:80"]),
        rig.on_node(30080),
    ];
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for v4 in [true, false] {
            let ways: Vec<Vip> = ways
                .iter()
                .flatten()
                .filter(|vip| vip.protocol == protocol && vip.address.is_ipv4() == v4)
                .copied()
                .collect();
            assert_eq!(ways.len(), 4);
            let answers: Vec<_> = ways.iter().map(|way| ask_all(&rig, *way)).collect();
            for other in &answers[1..] {
                assert_eq!(other, &answers[0], "{ways:?}");
            }
        }
    }
}

fn clients_are_spread() {
    let endpoints = ["backend-1", "backend-2", "backend-3"];
    let rig = rig(web().affinity(LONG), &endpoints);
    for to in vips(WEB) {
        let answers = ask_all(&rig, to);
        for endpoint in endpoints {
            // A third of 60 is 20; below 6 or above 38 comes by chance once in 10^5.
            let count = answers.values().filter(|answer| *answer == endpoint).count();
            assert!((6..=38).contains(&count), "{to}: {count} of {answers:?}");
        }
    }
}

/// No client is remembered any more, says the kernel.
fn wait_until_forgotten(rig: &mut Rig) {
    let proxy = rig.proxy();
    wait::until_blocking("every client to be forgotten", Duration::from_secs(20), || {
        let table = proxy.table();
        (!table.contains(" expires ")).then_some(())
    });
}

fn a_silent_client_is_forgotten() {
    let mut rig = rig(web().affinity(2), &["backend-1", "backend-2", "backend-3"]);
    for to in two() {
        let before = ask_all(&rig, to);
        assert_eq!(moved(&before, &ask_all(&rig, to)), 0, "{to}");
        wait_until_forgotten(&mut rig);
        let after = ask_all(&rig, to);
        // Two thirds draw another one: fewer than 20 of 60 by chance once in 10^7.
        assert!(moved(&before, &after) >= 20, "{to}: {before:?}, {after:?}");
    }
}

fn a_client_that_comes_again_is_remembered_anew() {
    const TIMEOUT: u32 = 3;
    let mut rig = rig(web().affinity(TIMEOUT), &["backend-1", "backend-2", "backend-3"]);
    let clients: Vec<Ask> = addresses()[..8]
        .iter()
        .flat_map(|pair| pair.map(|source| (source, two()[usize::from(source.is_ipv6())])))
        .map(|(source, to)| Ask::from_address(&rig.node().client, source, to))
        .collect();
    let first: Vec<String> = clients.iter().map(Ask::answer).collect();
    let started = Instant::now();
    let round = |rounds: &mut u32| {
        // A round that comes too late proves nothing: the machine was too busy.
        let begun = Instant::now();
        for (ask, before) in clients.iter().zip(&first) {
            assert_eq!(ask.answer(), *before, "{ask:?} after {:?}", started.elapsed());
        }
        assert!(
            begun.elapsed() < Duration::from_secs(TIMEOUT.into()) / 2,
            "a machine without time"
        );
        *rounds += 1;
    };
    let mut rounds = 0;
    wait::until_blocking("three time-outs to pass", Duration::from_secs(30), || {
        round(&mut rounds);
        (started.elapsed() > Duration::from_secs(TIMEOUT.into()) * 3).then_some(())
    });
    assert!(rounds > 6, "{rounds}");
    wait_until_forgotten(&mut rig);
}

fn an_endpoint_that_goes_moves_its_clients_and_no_others() {
    let all = ["backend-1", "backend-2", "backend-3", "pod-1"];
    let mut rig = rig(web().affinity(LONG), &all);
    // Each of them once, since they need not stand in the table alike; the last one leaves nothing for others to fill.
    for gone in ["backend-3", "backend-2", "backend-1", "pod-1"] {
        let before = two().map(|to| ask_all(&rig, to));
        endpoints_are(
            &mut rig,
            &all.into_iter().filter(|name| *name != gone).collect::<Vec<_>>(),
        );
        for (to, before) in two().into_iter().zip(&before) {
            let after = ask_all(&rig, to);
            for (client, answer) in &after {
                if before[client] == gone {
                    assert_ne!(answer, gone, "{client} to {to}");
                } else {
                    assert_eq!(*answer, before[client], "{client} to {to}");
                }
            }
            // And there they stay.
            assert_eq!(moved(&after, &ask_all(&rig, to)), 0, "{to} after {gone}");
        }
        endpoints_are(&mut rig, &all);
    }
}

fn clients_of_an_endpoint_that_goes_are_spread_over_the_others() {
    let all = ["backend-1", "backend-2", "backend-3", "pod-1"];
    for gone in all {
        let mut rig = rig(web().affinity(LONG), &all);
        let before = two().map(|to| ask_all(&rig, to));
        endpoints_are(
            &mut rig,
            &all.into_iter().filter(|name| *name != gone).collect::<Vec<_>>(),
        );
        for (to, before) in two().into_iter().zip(&before) {
            let after = ask_all(&rig, to);
            let homeless = after.iter().filter(|(client, _)| before[*client] == gone);
            let found: BTreeSet<&str> = homeless.map(|(_, answer)| answer.as_str()).collect();
            // Some 15 of them, all at one by chance once in 10^6.
            assert!(found.len() > 1, "{to}: all clients of {gone} went to {found:?}");
        }
    }
}

fn an_endpoint_that_comes_moves_nobody() {
    let mut rig = rig(web().affinity(LONG), &["backend-1"]);
    let mut endpoints = vec!["backend-1"];
    for more in ["backend-2", "backend-3", "pod-1"] {
        let before = two().map(|to| ask_all(&rig, to));
        endpoints.push(more);
        endpoints_are(&mut rig, &endpoints);
        for (to, before) in two().into_iter().zip(&before) {
            assert_eq!(moved(before, &ask_all(&rig, to)), 0, "{to}");
        }
    }
    for to in two() {
        assert_eq!(distinct(&ask_all(&rig, to)), BTreeSet::from(["backend-1"]));
    }
    // Whoever is new may go anywhere.
    let node = rig.node();
    let strangers = asks([&node.pod, &node.netns], &vips(WEB));
    let elsewhere = strangers.iter().filter(|ask| sticks(ask) != "backend-1");
    // All eight at the first by chance once in 65,536.
    assert!(elsewhere.count() > 0);
}

fn the_last_endpoint_goes_and_another_comes() {
    let mut rig = rig(web().affinity(LONG), &["backend-1"]);
    let client = rig.node().client.clone();
    answered_by(&asks([&client], &vips(WEB)), ["backend-1"]);
    endpoints_are(&mut rig, &[]);
    refused(&asks([&client], &vips(WEB)));
    endpoints_are(&mut rig, &["backend-2"]);
    answered_by(&asks([&client], &vips(WEB)), ["backend-2"]);
    endpoints_are(&mut rig, &["backend-1", "backend-2", "backend-3"]);
    for ask in asks([&client], &vips(WEB)) {
        assert_eq!(sticks(&ask), "backend-2");
    }
}

fn affinity_is_switched_on_and_off() {
    let all = ["backend-1", "backend-2", "backend-3"];
    let mut rig = rig(web_on_nodes(), &all);
    let mut targets = vips(WEB);
    targets.extend(rig.on_node(30080));
    for _ in 0..2 {
        answered_by(&asks(rig.everybody(), &targets), all);
        rig.apply(web_on_nodes().affinity(LONG).object());
        rig.commit();
        for ask in asks(rig.everybody(), &targets) {
            sticks(&ask);
        }
        rig.apply(web_on_nodes().object());
        rig.commit();
    }
    answered_by(&asks(rig.everybody(), &targets), all);
}

fn another_time_out_is_taken_over() {
    let mut rig = rig(web().affinity(LONG), &["backend-1", "backend-2", "backend-3"]);
    rig.apply(web().affinity(1).object());
    rig.commit();
    let before = two().map(|to| ask_all(&rig, to));
    wait_until_forgotten(&mut rig);
    for (to, before) in two().into_iter().zip(&before) {
        let after = ask_all(&rig, to);
        assert!(moved(before, &after) >= 20, "{to}: {before:?}, {after:?}");
    }
}

fn services_are_remembered_apart() {
    let all = ["backend-1", "backend-2", "backend-3"];
    let mut rig = rig(web().affinity(LONG), &all);
    let members = rig.members(all);
    let db = named("db", ["10.96.20.2", "fd00:10:96::2002"]).affinity(LONG);
    rig.program(db.object(), &members);
    for (web, db) in [
        (two()[0], vip("10.96.20.2:80", Protocol::Tcp)),
        (two()[1], vip("[fd00:10:96::2002]:80", Protocol::Udp)),
    ] {
        let (web, db) = (ask_all(&rig, web), ask_all(&rig, db));
        // Two thirds differ, if the one Service knows nothing of the other.
        assert!(moved(&web, &db) >= 20, "{web:?}, {db:?}");
    }
}

fn policy_local_sticks_to_local_endpoints() {
    let service = web_on_nodes().external_policy("Local").affinity(LONG);
    let mut rig = rig(service, &["backend-1", "backend-2", "pod-1"]);
    let second = rig.lab.add_pod(1);
    rig.serve(&second.netns, "pod-1b", PORT);
    let mut members = rig.members(["backend-1", "backend-2", "pod-1"]);
    let second = Member::new(&[second.address4.into(), second.address6.into()], "node-1");
    members.push(second);
    rig.endpoints("web", &members);
    for to in rig.on_node(30080) {
        let first = ask_all(&rig, to);
        assert_eq!(distinct(&first), BTreeSet::from(["pod-1", "pod-1b"]), "{to}");
        assert_eq!(moved(&first, &ask_all(&rig, to)), 0, "{to}");
    }
    // From inside, all endpoints, and the same one each time.
    for ask in asks([&rig.node().pod, &rig.node().netns], &rig.on_node(30080)) {
        sticks(&ask);
    }
}

fn a_restarted_agent_keeps_every_client() {
    let all = ["backend-1", "backend-2", "backend-3"];
    let mut rig = rig(web().affinity(LONG), &all);
    let before = two().map(|to| ask_all(&rig, to));
    assert_eq!(rig.restart(), 0);
    let again = |rig: &Rig| {
        for (to, before) in two().into_iter().zip(&before) {
            assert_eq!(moved(before, &ask_all(rig, to)), 0, "{to}");
        }
    };
    again(&rig);
    // Endpoints that come after the restart take no ticket that is in use.
    endpoints_are(&mut rig, &["backend-1", "backend-2", "backend-3", "pod-1"]);
    again(&rig);
    let db = named("db", ["10.96.20.2", "fd00:10:96::2002"]).affinity(LONG);
    let members = rig.members(["backend-1"]);
    rig.program(db.object(), &members);
    again(&rig);
}
