//! Packets through the lab, with kube-proxy's iptables rules in the nodes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nftfleet_tests::backends::Backend as Server;
use nftfleet_tests::kube_proxy::{self, Backend, Family};
use nftfleet_tests::kube_sim::KubeSim;
use nftfleet_tests::lab::{CONTROL4, Lab, LabSpec};
use nftfleet_tests::manifests::{self, AddressType, Readiness, endpoint_slice};
use nftfleet_tests::netns::Netns;
use nftfleet_tests::traffic::{LongLived, NewConnections, UdpQueries, tcp_identity, udp_identity};
use nftfleet_tests::wait;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(3);

/// A lab with one node, kube-proxy's rules for the manifests in it, and servers behind them.
struct World {
    lab: Lab,
    servers: Vec<Server>,
    _api_server: Server,
}

fn world(backend: Backend) -> World {
    let lab = Lab::new(&LabSpec::dual_stack(1, 3));
    let servers = lab.serve_backends(&[8080, 9090, 9053], &[9053]);
    let api_server = Server::start(&lab.control, "control", &[6443], &[]);
    let node = &lab.node(1).netns;
    kube_proxy::install_foreign(node, backend, &Family::BOTH);
    kube_proxy::install_kubelet(node, backend, &Family::BOTH);
    kube_proxy::install(node, backend, &manifests::all(), &Family::BOTH);
    World {
        lab,
        servers,
        _api_server: api_server,
    }
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address with a port")
}

fn tcp(from: &Netns, target: &str) -> String {
    tcp_identity(from, at(target), LIMIT).unwrap_or_else(|error| panic!("{target} from {}: {error}", from.name()))
}

fn every_cluster_ip_answers(backend: Backend) {
    let world = world(backend);
    let node = world.lab.node(1);
    let one_of = |identity: &str, expected: &[&str], target: &str| {
        assert!(expected.contains(&identity), "{target} was answered by {identity}");
    };
    let three = ["backend-1", "backend-2", "backend-3"];
    // A client outside, a pod, and the node itself, whose packets take the output hook.
    for from in [&node.client, &node.pod, &node.netns] {
        for (target, expected) in [
            ("10.96.0.1:443", &["control"][..]),
            ("10.96.0.10:53", &three[..2]),
            ("[fd00:10:96::a]:53", &three[..2]),
            ("10.96.10.1:80", &three),
            ("[fd00:10:96::a01]:80", &three),
            ("10.96.10.2:8000", &three),
            ("10.96.10.3:5432", &["backend-2"]),
            ("[fd00:10:96::a03]:5432", &["backend-2"]),
        ] {
            one_of(&tcp(from, target), expected, target);
        }
        for target in ["10.96.0.10:53", "[fd00:10:96::a]:53"] {
            let answer = udp_identity(from, at(target), LIMIT).unwrap_or_else(|error| panic!("{target}: {error}"));
            one_of(&answer, &three[..2], target);
        }
    }
}

#[test]
fn every_cluster_ip_answers_on_legacy_iptables() {
    every_cluster_ip_answers(Backend::Legacy);
}

#[test]
fn every_cluster_ip_answers_on_nft_iptables() {
    every_cluster_ip_answers(Backend::Nft);
}

#[test]
fn without_rules_nobody_answers_for_a_cluster_ip() {
    let lab = Lab::new(&LabSpec::dual_stack(1, 1));
    let _servers = lab.serve_backends(&[8080], &[]);
    for target in ["10.96.10.1:80", "[fd00:10:96::a01]:80"] {
        tcp_identity(&lab.node(1).client, at(target), Duration::from_millis(500)).unwrap_err();
    }
    // The backend is there, and a pod reaches it; the client's question arrives but has no way back.
    assert_eq!(tcp(&lab.node(1).pod, "10.128.200.1:8080"), "backend-1");
    assert_eq!(tcp(&lab.node(1).pod, "[fd00:128:200::1]:8080"), "backend-1");
    for target in ["10.128.200.1:8080", "[fd00:128:200::1]:8080"] {
        tcp_identity(&lab.node(1).client, at(target), Duration::from_millis(500)).unwrap_err();
    }
}

#[test]
fn every_endpoint_gets_its_share() {
    let world = world(Backend::Nft);
    let targets = vec![at("10.96.10.1:80"), at("[fd00:10:96::a01]:80")];
    let traffic = NewConnections::start(&world.lab.node(1).client, targets, 500);
    wait::until_blocking("600 connections", Duration::from_secs(20), || {
        (traffic.counts().made >= 600).then_some(())
    });
    let counts = traffic.stop();
    counts.assert_no_loss();
    assert_eq!(counts.answered.len(), 3, "{:?}", counts.answered);
    // A third each; 10 standard deviations apart is no chance.
    for (identity, answers) in &counts.answered {
        assert!(
            answers * 6 > counts.made,
            "{identity} answered {answers} of {}",
            counts.made
        );
    }
}

#[test]
fn a_client_is_masqueraded_and_a_pod_is_not() {
    let world = world(Backend::Legacy);
    let node = world.lab.node(1);
    let ipv6 = node.ipv6.unwrap();
    // The Service with one endpoint, so that we know who was asked.
    let server = &world.servers[1];
    for (target, from_client, from_pod) in [
        ("10.96.10.3:5432", IpAddr::from(node.address4), IpAddr::from(node.pod4)),
        ("[fd00:10:96::a03]:5432", ipv6.address.into(), ipv6.pod.into()),
    ] {
        for (from, seen) in [(&node.client, from_client), (&node.pod, from_pod)] {
            server.forget_peers();
            tcp(from, target);
            assert_eq!(server.peers(), BTreeSet::from([seen]), "{target} from {}", from.name());
        }
    }
}

#[test]
fn a_service_without_endpoints_is_refused_at_once() {
    for backend in [Backend::Legacy, Backend::Nft] {
        let world = world(backend);
        let error = tcp_identity(&world.lab.node(1).client, at("10.96.10.9:80"), LIMIT).unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{backend:?}: {error}"
        );
    }
}

/// The manifests with one endpoint left for shop/web in IPv4.
fn web_on(number: usize) -> Vec<Value> {
    let is_web_slice = |object: &Value| {
        object["metadata"]["labels"]["kubernetes.io/service-name"] == "web" && object["addressType"] == "IPv4"
    };
    let slice = endpoint_slice("shop", "web", "only", AddressType::IPv4)
        .port("http", "TCP", 8080)
        .endpoint(&format!("10.128.200.{number}"), "", Readiness::READY)
        .object();
    manifests::all()
        .into_iter()
        .filter(|object| !is_web_slice(object))
        .chain([slice])
        .collect()
}

#[test]
fn a_long_lived_connection_stays_while_the_rules_change() {
    for backend in [Backend::Legacy, Backend::Nft] {
        let world = world(backend);
        let node = world.lab.node(1);
        kube_proxy::install(&node.netns, backend, &web_on(1), &[Family::V4]);
        let connection = LongLived::open(&node.client, at("10.96.10.1:80"));
        assert_eq!(connection.status().backend, "backend-1");

        kube_proxy::install(&node.netns, backend, &web_on(3), &[Family::V4]);
        assert_eq!(tcp(&node.client, "10.96.10.1:80"), "backend-3");
        let before = connection.status().echoes;
        wait::until_blocking("25 more echoes", Duration::from_secs(10), || {
            (connection.status().echoes > before + 25).then_some(())
        });
        let status = connection.stop();
        assert!(status.alive, "{backend:?}: {status:?}");
        assert!(status.worst_gap_ms >= 15, "an echo every 20 ms: {status:?}");
    }
}

#[test]
fn a_broken_connection_is_noticed() {
    let mut world = world(Backend::Nft);
    let connection = LongLived::open(&world.lab.node(1).client, at("10.96.10.3:5432"));
    drop(world.servers.remove(1));
    let cause = wait::until_blocking("the death of the connection", Duration::from_secs(10), || {
        let status = connection.status();
        (!status.alive).then_some(status.cause_of_death)
    });
    assert!(cause.is_some());
}

#[test]
fn lost_traffic_is_counted_and_described() {
    let world = world(Backend::Nft);
    let node = world.lab.node(1);
    let connections = NewConnections::start(&node.client, vec![at("10.96.10.1:80"), at("10.96.10.9:80")], 200);
    let queries = UdpQueries::start(&node.client, vec![at("10.96.0.10:53"), at("10.96.10.9:53")], 200);
    wait::until_blocking("25 failures", Duration::from_secs(20), || {
        (connections.counts().failed >= 25 && queries.counts().failed >= 25).then_some(())
    });
    for (counts, lost) in [
        (connections.stop(), at("10.96.10.9:80")),
        (queries.stop(), at("10.96.10.9:53")),
    ] {
        assert_eq!(counts.failures.len(), 20);
        assert!(
            counts.failures.iter().all(|failure| failure.target == lost),
            "{:?}",
            counts.failures
        );
        assert_eq!(counts.answered.values().sum::<u64>() + counts.failed, counts.made);
        assert!(!counts.answered.is_empty());
    }
}

#[test]
fn an_update_leaves_no_stale_chain_and_touches_nothing_foreign() {
    for backend in [Backend::Legacy, Backend::Nft] {
        let world = world(backend);
        let node = &world.lab.node(1).netns;
        let count = |what: &str| kube_proxy::save(node, backend, Family::V4).matches(what).count();
        assert_eq!(count(":KUBE-SEP-"), 12);
        assert_eq!(count("-j KUBE-SERVICES"), 4);
        kube_proxy::install(node, backend, &web_on(1), &[Family::V4]);
        assert_eq!(count(":KUBE-SEP-"), 10);
        assert_eq!(count("-j KUBE-SERVICES"), 4);
        for foreign in [
            ":DOCKER ",
            ":CNI-DN-",
            "--dport 9999",
            ":KUBE-IPTABLES-HINT",
            "-j KUBE-FIREWALL",
        ] {
            assert!(count(foreign) > 0, "{backend:?}: {foreign} is gone");
        }
        // The other backend holds nothing.
        let other = if backend == Backend::Nft {
            Backend::Legacy
        } else {
            Backend::Nft
        };
        assert!(!kube_proxy::save(node, other, Family::V4).contains("KUBE-"));
    }
}

#[test]
fn a_node_without_ipv6_works_in_ipv4() {
    let spec = LabSpec {
        without_ipv6: BTreeSet::from([1]),
        ..LabSpec::dual_stack(2, 1)
    };
    let lab = Lab::new(&spec);
    let _servers = lab.serve_backends(&[8080], &[]);
    let _pod = Server::start(&lab.node(1).pod, "pod-1", &[80], &[]);
    assert_eq!(tcp(&lab.node(1).pod, "10.128.200.1:8080"), "backend-1");
    assert_eq!(tcp(&lab.node(2).pod, "10.128.1.10:80"), "pod-1");
    assert_eq!(tcp(&lab.node(2).pod, "[fd00:128:200::1]:8080"), "backend-1");
    tcp_identity(&lab.node(1).pod, at("[fd00:128:200::1]:8080"), LIMIT).unwrap_err();
}

#[test]
fn the_api_simulator_is_reached_through_its_own_service() {
    let lab = Lab::new(&LabSpec::dual_stack(1, 1));
    let node = lab.node(1);
    kube_proxy::install(&node.netns, Backend::Nft, &manifests::all(), &[Family::V4]);
    let sim = KubeSim::start_in(&lab.control, SocketAddr::new(CONTROL4.into(), 6443));
    sim.load(manifests::all());
    let through_the_service = "http://10.96.0.1:443".to_owned();
    for url in [sim.url(), through_the_service] {
        for from in [&node.netns, &node.pod] {
            let request = || async {
                let client = crate::kube_sim::client();
                let answer = client
                    .get(format!("{url}/api/v1/services"))
                    .bearer_auth(sim.token())
                    .timeout(LIMIT);
                answer.send().await.unwrap().json::<Value>().await.unwrap()
            };
            let runtime = || {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
            };
            let list = from.run(|| runtime().block_on(request()));
            assert_eq!(
                list["items"].as_array().map(Vec::len),
                Some(9),
                "{url} from {}",
                from.name()
            );
        }
    }
}

#[test]
fn a_lab_of_four_nodes_is_there_in_three_seconds() {
    let started = Instant::now();
    let lab = Lab::new(&LabSpec::dual_stack(4, 3));
    let took = started.elapsed();
    println!("a lab of 4 nodes and 3 backends took {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    let _pods: Vec<_> = lab
        .nodes
        .iter()
        .map(|node| Server::start(&node.pod, &node.name, &[80], &[]))
        .collect();
    for from in &lab.nodes {
        for to in &lab.nodes {
            for address in [IpAddr::from(to.pod4), to.ipv6.unwrap().pod.into()] {
                let target = SocketAddr::new(address, 80).to_string();
                assert_eq!(tcp(&from.pod, &target), to.name);
            }
        }
    }
}
