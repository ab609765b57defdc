//! The shipped agent as a node's only service proxy: what it does besides answering for Services.

use std::net::SocketAddr;
use std::time::Duration;

use nftfleet_tests::kube_sim::Withheld;
use nftfleet_tests::manifests::{AddressType, Readiness, endpoint_slice, node, service};
use nftfleet_tests::traffic::{tcp_identity, udp_identity};
use nftfleet_tests::wait;
use nftfleet_tests::world::{NodeSpec, World, rollout};
use serde_json::{Value, json};

use crate::rollout::{LIMIT, NFT};

/// Far below the ten seconds between two audits, and above what a busy machine needs.
const AT_ONCE: Duration = Duration::from_secs(4);

/// A world of one node that the agent serves alone.
fn moved(environment: &[(&str, &str)]) -> World {
    let spec: NodeSpec = NFT;
    let mut world = World::new(&[spec]);
    let address = world.lab.node(1).address4.to_string();
    world.kubernetes.apply(node("node-1", &address));
    world.start_agent(1, environment);
    world.wait_until_reported(1);
    let started = world.start_rollout(&rollout(&[]));
    world.wait_for_task(started.id, "node-1", &["CONFIRMED"], LIMIT);
    world
}

/// Who answers the client there, if anybody does.
fn answer(world: &World, at: &str) -> Option<String> {
    let at: SocketAddr = at.parse().expect("an address");
    tcp_identity(&world.lab.node(1).client, at, Duration::from_secs(1)).ok()
}

/// A slice of `shop/gate` with one endpoint.
fn slice_with(address: &str, on: &str) -> Value {
    let slice = endpoint_slice("shop", "gate", "a", AddressType::IPv4).port("", "TCP", 8080);
    slice.endpoint(address, on, Readiness::READY).object()
}

/// An HTTP answer at the node, asked from the control host: the status and the body.
fn http(world: &mut World, url: &str) -> Option<(u16, Value)> {
    let url = url.to_owned();
    world.run(async |_| {
        let answer = reqwest::get(url).await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.json().await.ok()?))
    })
}

#[test]
fn node_ports_follow_the_nodes_address_and_unallocated_addresses_are_dropped_at_once() {
    let world = moved(&[]);
    let gate = service("shop", "gate")
        .cluster_ips(["10.96.55.5"])
        .port("", "TCP", 80, 8080);
    let mut gate = gate.spec("type", "NodePort").object();
    gate["spec"]["ports"][0]["nodePort"] = json!(30080);
    world.kubernetes.apply(gate);
    world.kubernetes.apply(slice_with("10.128.200.2", "worker-2"));
    wait::until_blocking("the node port to answer", AT_ONCE, || {
        (answer(&world, "192.168.50.1:30080")? == "backend-2").then_some(())
    });
    let node_1 = &world.lab.node(1).netns;
    node_1.pipe("ip", &["addr", "add", "192.168.50.91/24", "dev", "eth0"], "");
    assert_eq!(answer(&world, "192.168.50.91:30080"), None);
    world.kubernetes.apply(node("node-1", "192.168.50.91"));
    wait::until_blocking("the node port to answer at the new address", AT_ONCE, || {
        (answer(&world, "192.168.50.91:30080")? == "backend-2").then_some(())
    });
    assert_eq!(
        answer(&world, "192.168.50.1:30080"),
        None,
        "the old address answers no more"
    );

    let dropped = || {
        let listed = node_1.pipe("nft", &["list", "set", "inet", "nftfleet", "service-cidrs4"], "");
        listed.contains("10.96.0.0/12")
    };
    assert!(!dropped());
    let cidr = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/12"]}});
    world.kubernetes.apply(cidr);
    wait::until_blocking("the ServiceCIDR to be programmed", AT_ONCE, || dropped().then_some(()));
    world.kubernetes.delete("ServiceCIDR", "", "kubernetes");
    wait::until_blocking("the ServiceCIDR to be gone", AT_ONCE, || (!dropped()).then_some(()));
}

#[test]
fn load_balancers_hear_of_local_endpoints_and_of_a_node_that_goes() {
    let mut world = moved(&[]);
    let gate = service("shop", "gate")
        .cluster_ips(["10.96.55.5"])
        .port("", "TCP", 80, 8080);
    let gate = gate.spec("type", "LoadBalancer").spec("externalTrafficPolicy", "Local");
    world.kubernetes.apply(gate.spec("healthCheckNodePort", 32000).object());
    world.kubernetes.apply(slice_with("10.128.200.2", "worker-2"));
    let asked = "http://192.168.50.1:32000/";
    wait::until_blocking("the health check to be answered", AT_ONCE, || {
        let (status, body) = http(&mut world, asked)?;
        assert_eq!((status, &body["localEndpoints"]), (503, &json!(0)));
        assert_eq!(body["service"], json!({"namespace": "shop", "name": "gate"}));
        Some(())
    });
    world.kubernetes.apply(slice_with("10.128.1.10", "node-1"));
    wait::until_blocking("the local endpoint to be told", AT_ONCE, || {
        let (status, body) = http(&mut world, asked)?;
        (status == 200 && body["localEndpoints"] == json!(1)).then_some(())
    });
    let of = |world: &mut World, path: &str| {
        http(world, &format!("http://192.168.50.1:10256{path}")).map(|(status, _)| status)
    };
    assert_eq!(of(&mut world, "/healthz"), Some(200));
    let mut going = node("node-1", "192.168.50.1");
    going["spec"]["taints"] = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    world.kubernetes.apply(going);
    wait::until_blocking("the node to count as going", AT_ONCE, || {
        (of(&mut world, "/healthz")? == 503).then_some(())
    });
    assert_eq!(of(&mut world, "/livez"), Some(200));
    world.kubernetes.delete("Service", "shop", "gate");
    wait::until_blocking("the health check's port to be closed", AT_ONCE, || {
        http(&mut world, asked).is_none().then_some(())
    });
}

#[test]
fn what_a_stranger_does_to_the_table_is_mended_at_once() {
    let world = moved(&[]);
    let nft = |arguments: &[&str]| world.lab.node(1).netns.pipe("nft", arguments, "");
    let whole = nft(&["list", "table", "inet", "nftfleet"]);
    let edits: [&[&str]; 5] = [
        &[
            "delete",
            "element",
            "inet",
            "nftfleet",
            "cluster-ips4",
            "{ 10.96.10.1 }",
        ],
        &["flush", "map", "inet", "nftfleet", "endpoints6"],
        &["flush", "chain", "inet", "nftfleet", "services4"],
        &["add", "table", "inet", "nftfleet", "{ flags dormant; }"],
        &["flush", "ruleset"],
    ];
    for edit in edits {
        nft(edit);
        wait::until_blocking(&format!("{edit:?} to be mended"), AT_ONCE, || {
            let listed = world.lab.node(1).netns.command("nft");
            let mut listed = listed;
            let output = listed
                .args(["list", "table", "inet", "nftfleet"])
                .output()
                .expect("nft runs");
            (sorted(&String::from_utf8_lossy(&output.stdout)) == sorted(&whole)).then_some(())
        });
        assert_eq!(
            answer(&world, "10.96.10.1:80").map(|name| name.starts_with("backend-")),
            Some(true)
        );
    }
}

/// The words of a listing, in an order of their own: a set's elements have none.
fn sorted(listing: &str) -> Vec<&str> {
    let mut words: Vec<&str> = listing
        .split([' ', '\n', '\t', ','])
        .filter(|word| !word.is_empty())
        .collect();
    words.sort_unstable();
    words
}

#[test]
fn a_client_of_udp_that_keeps_its_port_leaves_an_endpoint_that_is_gone() {
    let world = moved(&[]);
    let client = &world.lab.node(1).client;
    let dns: SocketAddr = "10.96.0.10:53".parse().expect("an address");
    // One socket, one flow: connection tracking holds it at its endpoint while it lives.
    let socket = client.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.connect(dns).expect("a target");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a limit");
        socket
    });
    let ask = || {
        socket.send(b"?").ok()?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
    };
    let first = wait::until_blocking("an answer", LIMIT, ask);
    assert_eq!(ask().as_deref(), Some(first.as_str()), "the flow stays");
    let number = first.trim_start_matches("backend-").to_owned();
    let other = if number == "1" { "2" } else { "1" };
    let slices = |last: &str| {
        let slice = endpoint_slice("kube-system", "kube-dns", "ipv4", AddressType::IPv4).port("dns", "UDP", 9053);
        let slice = slice.port("dns-tcp", "TCP", 9053);
        slice
            .endpoint(&format!("10.128.200.{last}"), "worker", Readiness::READY)
            .object()
    };
    for object in nftfleet_tests::manifests::all() {
        let is_dns = object["kind"] == "EndpointSlice"
            && object["metadata"]["labels"]["kubernetes.io/service-name"] == "kube-dns";
        if is_dns && object["addressType"] == "IPv4" {
            world.kubernetes.delete(
                "EndpointSlice",
                "kube-system",
                object["metadata"]["name"].as_str().expect("a name"),
            );
        }
    }
    world.kubernetes.apply(slices(other));
    let expected = format!("backend-{other}");
    wait::until_blocking("the flow to go to the endpoint that is left", AT_ONCE, || {
        (ask()? == expected).then_some(())
    });
    assert_eq!(
        udp_identity(client, dns, Duration::from_secs(1)).ok(),
        Some(expected),
        "new flows do as well"
    );
}

#[test]
fn the_loser_of_an_address_is_told_by_an_event_and_a_metric() {
    let mut world = moved(&[("NFTFLEET_METRICS_LISTEN", "192.168.50.1:8641")]);
    for (name, created, last) in [("young", "2026-03-02T08:00:00Z", 1), ("old", "2026-03-01T08:00:00Z", 2)] {
        let claim = service("shop", name)
            .cluster_ips([&format!("10.96.70.{last}")])
            .port("", "TCP", 80, 8080);
        let mut claim = claim.spec("externalIPs", json!(["198.51.100.7"])).object();
        claim["metadata"]["creationTimestamp"] = json!(created);
        world.kubernetes.apply(claim);
        let slice = endpoint_slice("shop", name, "a", AddressType::IPv4).port("", "TCP", 8080);
        let address = format!("10.128.200.{last}");
        world
            .kubernetes
            .apply(slice.endpoint(&address, "worker", Readiness::READY).object());
    }
    wait::until_blocking("the older Service to have the address", AT_ONCE, || {
        (answer(&world, "198.51.100.7:80")? == "backend-2").then_some(())
    });
    let event = wait::until_blocking("an Event", AT_ONCE, || world.kubernetes.events().into_iter().next());
    assert_eq!(event["regarding"]["name"], "young");
    let note = event["note"].as_str().expect("a note");
    assert!(
        note.contains("198.51.100.7 tcp 80 belongs to the older Service shop/old"),
        "{note}"
    );
    let metrics = world.run(async |_| {
        let answer = reqwest::get("http://192.168.50.1:8641/metrics").await.expect("metrics");
        answer.text().await.expect("text")
    });
    assert!(metrics.contains("nftfleet_agent_address_conflicts 1"), "{metrics}");
}

/// The value of a metric in Prometheus' text.
fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.parse().expect("a number")
}

#[test]
fn changes_and_how_long_they_took_are_told_under_kube_proxys_names() {
    let mut world = moved(&[("NFTFLEET_METRICS_LISTEN", "192.168.50.1:8641")]);
    let read = |world: &mut World| {
        world.run(async |_| {
            let answer = reqwest::get("http://192.168.50.1:8641/metrics").await.expect("metrics");
            answer.text().await.expect("text")
        })
    };
    let before = read(&mut world);
    let programmed = "kubeproxy_network_programming_duration_seconds_count";
    assert!(metric(&before, programmed).abs() < 0.5, "a list is no change: {before}");
    let web = service("shop", "told").cluster_ips(["10.96.70.9"]);
    let web = web
        .port("", "TCP", 80, 8080)
        .spec("internalTrafficPolicy", json!("Local"));
    world.kubernetes.apply(web.object());
    let slice = endpoint_slice("shop", "told", "a", AddressType::IPv4).port("", "TCP", 8080);
    let mut slice = slice.endpoint("10.128.200.1", "worker", Readiness::READY).object();
    // As the endpoints controller writes it.
    let date = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"])
        .output();
    let trigger = String::from_utf8(date.expect("the time").stdout)
        .expect("a text")
        .trim()
        .to_owned();
    slice["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": trigger});
    world.kubernetes.apply(slice);
    let after = wait::until_blocking("the change to be counted", AT_ONCE, || {
        let text = read(&mut world);
        let no_local = "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"}";
        (metric(&text, programmed) > 0.5 && metric(&text, no_local) > 0.5).then_some(text)
    });
    let took = metric(&after, "kubeproxy_network_programming_duration_seconds_sum");
    assert!((0.0..AT_ONCE.as_secs_f64()).contains(&took), "{took}");
    let grew = |name: &str| metric(&after, name) - metric(&before, name);
    for (name, least) in [
        ("kubeproxy_sync_proxy_rules_service_changes_total", 1.0),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_total", 1.0),
        ("kubeproxy_sync_proxy_rules_duration_seconds_count", 1.0),
        ("kubeproxy_sync_partial_proxy_rules_duration_seconds_count", 1.0),
        ("nftfleet_agent_commit_seconds_count", 1.0),
        ("nftfleet_agent_commit_elements_sum", 2.0),
        ("nftfleet_agent_commit_bytes_sum", 100.0),
        ("nftfleet_agent_queue_seconds_count", 1.0),
    ] {
        assert!(grew(name) >= least, "{name} grew by {}: {after}", grew(name));
    }
    for (name, value) in [
        ("kubeproxy_sync_proxy_rules_service_changes_pending", 0.0),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", 0.0),
        ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", 0.0),
        (
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"}",
            1.0,
        ),
        (
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"}",
            0.0,
        ),
    ] {
        assert!((metric(&after, name) - value).abs() < 0.5, "{name}: {after}");
    }
}

#[test]
fn an_api_without_service_cidrs_and_an_agent_without_leave_to_see_nodes_serve_all_the_same() {
    let mut world = World::new(&[NFT]);
    world.kubernetes.withhold("servicecidrs", Withheld::Unknown);
    world.kubernetes.withhold("nodes", Withheld::Forbidden);
    world.start_agent(1, &[]);
    world.wait_until_reported(1);
    let started = world.start_rollout(&rollout(&[]));
    world.wait_for_task(started.id, "node-1", &["CONFIRMED"], LIMIT);
    assert!(answer(&world, "10.96.10.1:80").is_some());
    let log = std::fs::read_to_string(world.folder().join("node-1.log")).expect("the agent logs");
    for kind in ["Node", "ServiceCIDR"] {
        assert!(log.contains(&format!("the {kind} objects can't be had")), "{log}");
    }
}
