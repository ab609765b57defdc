//! A `ClusterIP` and its endpoints, from everywhere.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use nftfleet_domain::service::{Protocol, Vip};
use nftfleet_tests::manifests::{AddressType, Readiness, endpoint_slice, service};
use nftfleet_tests::traffic::{Counts, LongLived, NewConnections, UdpQueries};
use nftfleet_tests::wait;

use crate::ask::{answered_by, asks, refused, unanswered, vip, vips};
use crate::case::cases;
use crate::objects::{NAMESPACE, PORT, WEB, named, slices, web};
use crate::rig::{Rig, Setup};

cases! {
    ClusterIp: one_endpoint_answers_everybody, [
        "PT:533 simple clusterIP", "S:733", "networking.go:147", "networking.go:162", "networking.go:191", "networking.go:205",
    ];
    ClusterIp: every_endpoint_answers_everybody_and_nobody_else_does, [
        "PT:204", "PT:533 clusterIP with multiple endpoints", "endpointslice.go:458",
    ];
    ClusterIp: pods_and_services_of_any_node_reach_each_other, ["networking.go:234", "networking.go:248"];
    ClusterIp: connections_are_spread_evenly, [];
    ClusterIp: a_connection_stays_with_its_endpoint_whatever_comes_and_goes, [];
    ClusterIp: a_service_that_goes_is_gone_and_others_stay, ["S:1125"];
    ClusterIp: a_service_that_comes_again_answers_again, ["S:1171"];
    ClusterIp: endpoints_that_come_before_their_service_wait_for_it, [];
    ClusterIp: a_slice_of_no_service_changes_nothing, [];
    ClusterIp: endpoints_come_and_go, ["PT:1592", "endpointslice.go:570"];
    ClusterIp: an_endpoint_that_is_the_node_itself_answers, [];
    ClusterIp: names_of_the_greatest_length_are_programmed, ["PT:4618", "PT:4673"];
    ClusterIp: hundreds_of_endpoints_of_one_service_all_answer, [];
}

/// Enough connections for the test of evenness below.
const SAMPLE: u64 = 2_400;

/// Attempts a second: one server's queue of connections must outlast a busy machine's pauses.
const RATE: u32 = 1_000;

/// What chance exceeds once in a million, with four degrees of freedom.
const CHI_SQUARE: f64 = 33.38;

fn one_endpoint_answers_everybody() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
}

fn every_endpoint_answers_everybody_and_nobody_else_does() {
    let mut rig = Rig::with(&Setup {
        backends: 4,
        ..Setup::default()
    });
    let members = rig.members(["backend-1", "backend-2", "backend-3"]);
    rig.program(web().object(), &members);
    let others = rig.members(["backend-4"]);
    rig.program(named("db", ["10.96.20.2", "fd00:10:96::2002"]).object(), &others);
    let everybody = rig.everybody();
    answered_by(&asks(everybody, &vips(WEB)), ["backend-1", "backend-2", "backend-3"]);
    let db = vips(["10.96.20.2:80", "[fd00:10:96::2002]:80"]);
    answered_by(&asks(everybody, &db), ["backend-4"]);
}

fn pods_and_services_of_any_node_reach_each_other() {
    let mut rig = Rig::with(&Setup {
        nodes: 2,
        ..Setup::default()
    });
    let members = rig.members(["pod-1", "pod-2"]);
    rig.program(web().object(), &members);
    for node in &rig.lab.nodes {
        // A pod asks a Service that it is an endpoint of itself, too.
        let from = [&node.client, &node.pod, &node.netns];
        answered_by(&asks(from, &vips(WEB)), ["pod-1", "pod-2"]);
    }
}

/// How far the answers are from an even spread over this many endpoints.
fn chi_square(answered: &BTreeMap<String, u64>, endpoints: u32) -> f64 {
    let counts: Vec<f64> = answered
        .values()
        .map(|count| f64::from(u32::try_from(*count).expect("few answers")))
        .collect();
    let expected = counts.iter().sum::<f64>() / f64::from(endpoints);
    counts.iter().map(|count| (count - expected).powi(2) / expected).sum()
}

fn connections_are_spread_evenly() {
    let mut rig = Rig::with(&Setup {
        backends: 5,
        ..Setup::default()
    });
    let members = rig.members(["backend-1", "backend-2", "backend-3", "backend-4", "backend-5"]);
    rig.program(web().object(), &members);
    let node = rig.node();
    // Source ports come again within half a minute; each is to draw anew.
    node.netns.sysctl("netfilter/nf_conntrack_udp_timeout", "1");
    let [v4, v6] = WEB.map(|at| at.parse::<SocketAddr>().expect("an address"));
    let tcp = NewConnections::start(&node.client, vec![v4], RATE);
    let udp = UdpQueries::start(&node.client, vec![v6], RATE);
    wait::until_blocking("enough connections", Duration::from_secs(30), || {
        (tcp.counts().made >= SAMPLE && udp.counts().made >= SAMPLE).then_some(())
    });
    let is_even = |what: &str, counts: &Counts| {
        counts.assert_no_loss();
        assert_eq!(counts.answered.len(), 5, "{what}: {:?}", counts.answered);
        let found = chi_square(&counts.answered, 5);
        assert!(found <= CHI_SQUARE, "{what}: {found} in {:?}", counts.answered);
    };
    is_even("TCP over IPv4", &tcp.stop());
    is_even("UDP over IPv6", &udp.stop());
}

fn a_connection_stays_with_its_endpoint_whatever_comes_and_goes() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    let targets = WEB.map(|at| at.parse::<SocketAddr>().expect("an address"));
    let connections = targets.map(|target| LongLived::open(&rig.node().client, target));
    let members = rig.members(["backend-2", "backend-3"]);
    rig.endpoints("web", &members);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-2", "backend-3"]);
    rig.endpoints("web", &[]);
    refused(&asks([&rig.node().client], &vips(WEB)));
    for connection in &connections {
        let before = connection.status().echoes;
        wait::until_blocking("ten echoes more", Duration::from_secs(10), || {
            (connection.status().echoes > before + 10).then_some(())
        });
    }
    for connection in connections {
        let status = connection.stop();
        assert!(status.alive && status.backend == "backend-1", "{status:?}");
    }
}

fn a_service_that_goes_is_gone_and_others_stay() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    let members = rig.members(["backend-2"]);
    rig.program(named("db", ["10.96.20.2", "fd00:10:96::2002"]).object(), &members);
    let db = vips(["10.96.20.2:80", "[fd00:10:96::2002]:80"]);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
    rig.delete("Service", NAMESPACE, "web");
    rig.commit();
    // Nobody has the address any more, and it is one of Services'.
    unanswered(&asks(rig.everybody(), &vips(WEB)));
    answered_by(&asks(rig.everybody(), &db), ["backend-2"]);
    // A third one on the address of the first.
    let members = rig.members(["backend-3"]);
    rig.program(named("mail", ["10.96.20.1", "fd00:10:96::2001"]).object(), &members);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-3"]);
    answered_by(&asks(rig.everybody(), &db), ["backend-2"]);
}

fn a_service_that_comes_again_answers_again() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1", "backend-2"]);
    rig.program(web().object(), &members);
    for _ in 0..3 {
        answered_by(&asks([&rig.node().client], &vips(WEB)), ["backend-1", "backend-2"]);
        // Its slices stay, as they do for the moment between two Services of one name.
        rig.delete("Service", NAMESPACE, "web");
        rig.commit();
        unanswered(&asks([&rig.node().client], &vips(WEB)));
        rig.apply(web().object());
        rig.commit();
    }
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1", "backend-2"]);
}

fn endpoints_that_come_before_their_service_wait_for_it() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.endpoints("web", &members);
    unanswered(&asks([&rig.node().pod], &vips(WEB)));
    rig.apply(web().object());
    rig.commit();
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
}

fn a_slice_of_no_service_changes_nothing() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    let before = rig.proxy().table();
    let strangers = rig.members(["backend-2"]);
    rig.endpoints("nobody", &strangers);
    // One without the label that names the Service, too.
    let mut orphan = slices("web-orphan", &strangers)[0].clone();
    orphan["metadata"]["labels"] = serde_json::json!({});
    rig.apply(orphan);
    // And one of a Service of the same name in another namespace.
    let mut elsewhere = slices("web", &strangers)[0].clone();
    elsewhere["metadata"]["namespace"] = "other".into();
    rig.apply(elsewhere);
    rig.commit();
    assert_eq!(rig.proxy().table(), before);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
}

fn endpoints_come_and_go() {
    let mut rig = Rig::new();
    rig.program(web().object(), &[]);
    let steps: [&[&str]; 7] = [
        &["backend-1"],
        &["backend-1", "backend-2", "backend-3", "pod-1"],
        &["backend-3", "pod-1"],
        &["backend-2"],
        &["backend-1", "backend-2"],
        &["pod-1"],
        &["backend-1", "backend-3"],
    ];
    for names in steps {
        let members: Vec<_> = names.iter().map(|name| rig.member(name)).collect();
        rig.endpoints("web", &members);
        answered_by(&asks([&rig.node().client], &vips(WEB)), names.iter().copied());
    }
    // A slice that is deleted takes its family's endpoints with it.
    rig.delete("EndpointSlice", NAMESPACE, "web-4");
    rig.commit();
    refused(&asks([&rig.node().client], &vips([WEB[0]])));
    answered_by(&asks([&rig.node().client], &vips([WEB[1]])), ["backend-1", "backend-3"]);
}

fn an_endpoint_that_is_the_node_itself_answers() {
    let mut rig = Rig::new();
    let node = rig.node().netns.clone();
    rig.serve(&node, "node-1", PORT);
    let members = rig.members(["node-1"]);
    rig.program(web().object(), &members);
    // Not over UDP: a server on all addresses of a machine with many answers from the wrong one, whatever we do.
    let web = WEB.map(|at| vip(at, Protocol::Tcp));
    answered_by(&asks(rig.everybody(), &web), ["node-1"]);
}

fn names_of_the_greatest_length_are_programmed() {
    let mut rig = Rig::new();
    let [namespace, name] = ["n".repeat(63), "s".repeat(63)];
    let port = "a".repeat(15);
    let long = service(&namespace, &name)
        .cluster_ips(["10.96.20.1", "fd00:10:96::2001"])
        .port(&port, "TCP", 80, PORT)
        .node_port(30080)
        .ingress("198.51.100.10")
        .external_ips(["198.51.100.11"])
        .affinity(10);
    rig.apply(long.object());
    for (suffix, kind, address) in [
        ("4", AddressType::IPv4, rig.addresses("backend-1")[0]),
        ("6", AddressType::IPv6, rig.addresses("backend-1")[1]),
    ] {
        let slice = endpoint_slice(&namespace, &name, suffix, kind)
            .port(&port, "TCP", PORT)
            .endpoint(&address.to_string(), "node-9", Readiness::READY);
        rig.apply(slice.object());
    }
    rig.commit();
    let mut targets = WEB.map(|at| vip(at, Protocol::Tcp)).to_vec();
    targets.extend(["198.51.100.10:80", "198.51.100.11:80"].map(|at| vip(at, Protocol::Tcp)));
    targets.extend(rig.node_ports(30080, Protocol::Tcp));
    answered_by(&asks(rig.everybody(), &targets), ["backend-1"]);
    // nft takes no longer comments than 128 bytes.
    let beginning = format!("{namespace}/{}", &name[..50]);
    assert!(rig.proxy().table().contains(&beginning));
}

fn hundreds_of_endpoints_of_one_service_all_answer() {
    const ENDPOINTS: u16 = 300;
    let mut rig = Rig::new();
    let backend = rig.lab.backend(1).clone();
    // One server on each of as many ports.
    let ports: Vec<u16> = (0..ENDPOINTS).map(|number| 20_000 + number).collect();
    for port in &ports {
        rig.serve(&backend.netns, &format!("server-{port}"), *port);
    }
    let [address4, address6] = [backend.address4.to_string(), backend.address6.to_string()];
    rig.apply(web().object());
    for port in &ports {
        for (kind, address) in [(AddressType::IPv4, &address4), (AddressType::IPv6, &address6)] {
            let slice = endpoint_slice(NAMESPACE, "web", &format!("{port}-{kind:?}"), kind)
                .port("tcp", "TCP", *port)
                .port("udp", "UDP", *port)
                .endpoint(address, "node-9", Readiness::READY);
            rig.apply(slice.object());
        }
    }
    rig.commit();
    let client = rig.node().client.clone();
    let targets = |protocol: Protocol| {
        let at = move |vip: Vip| (vip.protocol == protocol).then(|| SocketAddr::new(vip.address, vip.port));
        vips(WEB).into_iter().filter_map(at).collect::<Vec<_>>()
    };
    let tcp = NewConnections::start(&client, targets(Protocol::Tcp), RATE);
    let udp = UdpQueries::start(&client, targets(Protocol::Udp), RATE);
    let all = usize::from(ENDPOINTS);
    // The last of 300 is seen after some 2,000 draws.
    wait::until_blocking("an answer of every endpoint", Duration::from_mins(1), || {
        (tcp.counts().answered.len() == all && udp.counts().answered.len() == all).then_some(())
    });
    tcp.stop().assert_no_loss();
    udp.stop().assert_no_loss();
}
