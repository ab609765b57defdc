//! What load balancers and monitors are told about the node.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nftfleet_agent::clock::Clock;
use nftfleet_agent::health::{HealthInput, serve};
use nftfleet_domain::service::ObjectName;
use nftfleet_tests::manifests::{Readiness, ServiceBuilder};
use nftfleet_tests::netns::Netns;
use nftfleet_tests::wait;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use crate::ask::LIMIT;
use crate::case::cases;
use crate::objects::{Member, NAMESPACE, named, web, web_on_nodes};
use crate::rig::Rig;

cases! {
    HealthCheckNodePort: ready_local_endpoints_are_counted, ["healthcheck TestServer", "S:2771"];
    HealthCheckNodePort: who_is_ending_counts_no_more, ["PT:2341", "S:2823"];
    HealthCheckNodePort: only_balanced_services_with_policy_local_have_one, ["S:3833", "healthcheck TestServer"];
    HealthCheckNodePort: a_pod_of_two_families_is_one, ["healthcheck TestServer", "endpointschangetracker TestGetLocalEndpointIPs"];
    HealthCheckNodePort: a_balancer_asks_from_outside, ["healthcheck TestServer", "S:2823", "S:3833"];
    HealthCheckNodePort: it_listens_where_node_ports_do, ["healthcheck TestServerWithSelectiveListeningAddress"];
    Healthz: the_node_and_the_proxy_are_told_apart, ["healthcheck TestHealthzServer", "healthcheck TestLivezServer", "networking.go:132"];
}

fn checked() -> ServiceBuilder {
    web_on_nodes()
        .ingress("198.51.100.10")
        .external_policy("Local")
        .health_check_node_port(31_000)
}

/// What the agent would say: each Service's port, and how many endpoints it counts.
fn checks(rig: &mut Rig) -> Vec<(String, u16, usize)> {
    let checks = rig.proxy().index.health_checks().clone();
    checks
        .into_iter()
        .map(|(ObjectName { name, .. }, check)| (name, check.port, check.local_endpoints))
        .collect()
}

fn is(rig: &mut Rig, expected: &[(&str, u16, usize)]) {
    let found = checks(rig);
    let found: Vec<(&str, u16, usize)> = found
        .iter()
        .map(|(name, port, count)| (name.as_str(), *port, *count))
        .collect();
    assert_eq!(found, expected);
}

/// IPv4 members alone, so that each counts once.
fn of_v4(rig: &Rig, endpoints: &[(&str, Readiness)]) -> Vec<Member> {
    let member = |(name, readiness): &(&str, Readiness)| {
        let member = rig.member(name);
        Member::new(&member.addresses[..1], &member.node).is(*readiness)
    };
    endpoints.iter().map(member).collect()
}

fn ready_local_endpoints_are_counted() {
    let mut rig = Rig::new();
    let ready = Readiness::READY;
    let members = of_v4(&rig, &[("backend-1", ready)]);
    rig.program(checked().object(), &members);
    is(&mut rig, &[("web", 31_000, 0)]);
    let members = of_v4(&rig, &[("backend-1", ready), ("pod-1", ready)]);
    rig.endpoints("web", &members);
    is(&mut rig, &[("web", 31_000, 1)]);
    let mut two = members;
    two.push(Member::new(&[[10, 128, 1, 77].into()], "node-1"));
    rig.endpoints("web", &two);
    is(&mut rig, &[("web", 31_000, 2)]);
    rig.endpoints("web", &[]);
    is(&mut rig, &[("web", 31_000, 0)]);
    rig.delete("Service", NAMESPACE, "web");
    rig.commit();
    is(&mut rig, &[]);
}

fn who_is_ending_counts_no_more() {
    let mut rig = Rig::new();
    rig.apply(checked().object());
    for (readiness, count) in [
        (Readiness::READY, 1),
        (Readiness::DRAINING, 0),
        (Readiness::GONE, 0),
        (Readiness::UNREADY, 0),
        (Readiness::READY, 1),
    ] {
        let members = of_v4(&rig, &[("pod-1", readiness)]);
        rig.endpoints("web", &members);
        is(&mut rig, &[("web", 31_000, count)]);
    }
}

fn only_balanced_services_with_policy_local_have_one() {
    let mut rig = Rig::new();
    let members = of_v4(&rig, &[("pod-1", Readiness::READY)]);
    rig.program(checked().object(), &members);
    rig.program(web().object(), &members);
    is(&mut rig, &[]);
    // The number may outlive the policy for a moment.
    rig.apply(checked().external_policy("Cluster").object());
    rig.commit();
    is(&mut rig, &[]);
    rig.apply(checked().object());
    let other = named("other", ["10.96.20.2", "fd00:10:96::2002"])
        .ingress("198.51.100.20")
        .external_policy("Local")
        .health_check_node_port(31_001);
    rig.program(other.object(), &[]);
    is(&mut rig, &[("other", 31_001, 0), ("web", 31_000, 1)]);
}

fn a_pod_of_two_families_is_one() {
    let mut rig = Rig::new();
    // Two ports and two addresses of one pod are one endpoint to a balancer.
    let members = rig.members(["pod-1", "backend-1"]);
    rig.program(checked().object(), &members);
    is(&mut rig, &[("web", 31_000, 1)]);
}

/// It stands still.
pub struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Timestamp {
        Timestamp::constant(1_767_600_000, 0)
    }
}

/// The health check ports of a node. They close on drop.
struct Ports {
    input: watch::Sender<HealthInput>,
    _stop: oneshot::Sender<()>,
}

const HEALTHZ: u16 = 10_256;

impl Ports {
    fn open(netns: &Netns, input: HealthInput) -> Self {
        let (input, receiver) = watch::channel(input);
        let (stop, stopped) = oneshot::channel::<()>();
        netns.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let healthz = SocketAddr::new([0, 0, 0, 0].into(), HEALTHZ);
                tokio::select! {
                    () = serve(receiver, Some(healthz), Arc::new(Stopped), Arc::default()) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { input, _stop: stop }
    }
}

/// What the agent's glue makes of the index.
fn input(rig: &mut Rig, listen: &[IpAddr]) -> HealthInput {
    HealthInput {
        active: true,
        listen: listen.to_vec(),
        checks: rig.proxy().index.health_checks().clone(),
        node_eligible: true,
        last_synced: Some(Stopped.now()),
        pending_since: None,
    }
}

/// The status, the weight and the body of an answer; none if nobody listens.
fn get(from: &Netns, at: SocketAddr, path: &str) -> Option<(u16, Option<usize>, Value)> {
    let text = from.run(|| {
        let mut stream = TcpStream::connect_timeout(&at, LIMIT).ok()?;
        stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    })?;
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    let weight = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("X-Load-Balancing-Endpoint-Weight")
            .then(|| value.trim().parse().expect("a number"))
    });
    Some((status, weight, serde_json::from_str(body).expect("JSON")))
}

/// Asks until the status is this one: an input takes a moment.
fn get_status(from: &Netns, at: SocketAddr, path: &str, status: u16) -> (Option<usize>, Value) {
    let what = format!("{status} at {at}{path}");
    wait::until_blocking(&what, Duration::from_secs(10), || {
        let (found, weight, body) = get(from, at, path)?;
        (found == status).then_some((weight, body))
    })
}

fn a_balancer_asks_from_outside() {
    let mut rig = Rig::new();
    let members = of_v4(&rig, &[("pod-1", Readiness::READY)]);
    rig.program(checked().object(), &members);
    let node = rig.node().clone();
    let ports = Ports::open(&node.netns, input(&mut rig, &[]));
    let addresses = rig.addresses("node-1");
    for address in &addresses {
        let (weight, body) = get_status(&node.client, (*address, 31_000).into(), "/", 200);
        assert_eq!(weight, Some(1));
        let expected = json!({
            "service": {"namespace": NAMESPACE, "name": "web"}, "localEndpoints": 1, "serviceProxyHealthy": true,
        });
        assert_eq!(body, expected);
    }
    // Ending: a balancer is to look for another node, while clients are still served.
    let members = of_v4(&rig, &[("pod-1", Readiness::DRAINING)]);
    rig.endpoints("web", &members);
    let changed = input(&mut rig, &[]);
    ports.input.send_replace(changed);
    let (weight, body) = get_status(&node.client, (addresses[0], 31_000).into(), "/", 503);
    assert_eq!((weight, &body["localEndpoints"]), (Some(0), &json!(0)));
    // The policy changes, and the port closes.
    rig.apply(checked().external_policy("Cluster").object());
    rig.commit();
    let changed = input(&mut rig, &[]);
    ports.input.send_replace(changed);
    wait::until_blocking("a closed port", Duration::from_secs(10), || {
        get(&node.client, (addresses[0], 31_000).into(), "/")
            .is_none()
            .then_some(())
    });
}

fn it_listens_where_node_ports_do() {
    let mut rig = Rig::new();
    let members = of_v4(&rig, &[("pod-1", Readiness::READY)]);
    rig.program(checked().object(), &members);
    let node = rig.node().clone();
    let own = rig.addresses("node-1")[0];
    let _ports = Ports::open(&node.netns, input(&mut rig, &[own]));
    get_status(&node.client, (own, 31_000).into(), "/", 200);
    assert_eq!(
        get(&node.client, SocketAddr::from(([172, 30, 1, 1], 31_000)), "/"),
        None
    );
}

fn the_node_and_the_proxy_are_told_apart() {
    let mut rig = Rig::new();
    let node = rig.node().clone();
    let ports = Ports::open(&node.netns, input(&mut rig, &[]));
    let at = SocketAddr::new(rig.addresses("node-1")[0], HEALTHZ);
    for path in ["/healthz", "/livez"] {
        let (_, body) = get_status(&node.client, at, path, 200);
        assert_eq!((&body["nodeEligible"], &body["healthy"]), (&json!(true), &json!(true)));
        for field in ["lastUpdated", "currentTime"] {
            assert!(body[field].is_string(), "{field} in {body}");
        }
    }
    // The node is about to go: no balancer is to send it anything, and nobody is to restart its proxy.
    ports.input.send_modify(|input| input.node_eligible = false);
    get_status(&node.client, at, "/healthz", 503);
    get_status(&node.client, at, "/livez", 200);
    // The proxy has waited for its kernel for more than two minutes.
    let long_ago = Timestamp::constant(1_767_600_000 - 150, 0);
    ports.input.send_modify(|input| input.pending_since = Some(long_ago));
    get_status(&node.client, at, "/livez", 503);
}
