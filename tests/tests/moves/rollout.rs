//! Rollouts from their start to their end.

use std::time::Duration;

use nftfleet_tests::fault;
use nftfleet_tests::kube_proxy::{self, Backend, Family};
use nftfleet_tests::load::Load;
use nftfleet_tests::manifests::{AddressType, Readiness, endpoint_slice, service};
use nftfleet_tests::traffic::tcp_identity;
use nftfleet_tests::wait;
use nftfleet_tests::world::{NodeSpec, World, rollout};
use nftfleet_web_api_spec::types::{RolloutState, StageSize, StageSpec};

const LEGACY: NodeSpec = NodeSpec {
    backend: Backend::Legacy,
    ipv6: false,
};
pub const NFT: NodeSpec = NodeSpec {
    backend: Backend::Nft,
    ipv6: false,
};
const DUAL_STACK: NodeSpec = NodeSpec {
    backend: Backend::Nft,
    ipv6: true,
};

pub const LIMIT: Duration = Duration::from_mins(1);

/// All that `iptables-save` prints of both backends and families but counters and times.
fn iptables(world: &World, number: usize) -> String {
    let node = &world.lab.node(number).netns;
    let mut all = String::new();
    for backend in [Backend::Legacy, Backend::Nft] {
        for family in Family::BOTH {
            let saved = kube_proxy::save(node, backend, family);
            all.extend(
                saved
                    .lines()
                    .filter(|line| !line.starts_with('#'))
                    .map(|line| format!("{line}\n")),
            );
        }
    }
    all
}

fn mode(world: &mut World, number: usize) -> String {
    world.node(number).proxy_mode.map(|mode| mode.mode).unwrap_or_default()
}

fn wait_for_mode(world: &mut World, number: usize, wanted: &str) {
    wait::until_blocking(&format!("node-{number} to report {wanted}"), LIMIT, || {
        (mode(world, number) == wanted).then_some(())
    });
}

#[test]
fn a_staged_rollout_moves_every_node_and_loses_nothing() {
    let mut world = World::with_agents(&[LEGACY, NFT, DUAL_STACK]);
    assert_eq!(mode(&mut world, 1), "IPTABLES_LEGACY");
    assert_eq!(mode(&mut world, 2), "IPTABLES_NFT");
    let loads: Vec<Load> = world.lab.nodes.iter().map(|node| Load::start(node, 100)).collect();
    let mut wish = rollout(&[]);
    wish.stages = vec![
        StageSpec {
            name: "canary".to_owned(),
            size: StageSize::Count(1),
        },
        StageSpec {
            name: "rest".to_owned(),
            size: StageSize::Rest,
        },
    ];
    let started = world.start_rollout(&wish);
    let (ended, tasks) = world.wait_for_end(started.id, LIMIT);
    assert_eq!(ended.state, RolloutState::Succeeded);
    assert!(tasks.iter().all(|task| task.state == "CONFIRMED"), "{tasks:#?}");
    let canary_done = tasks[0].timeline.last().expect("a timeline").at;
    for task in &tasks[1..] {
        assert!(
            task.timeline
                .iter()
                .find(|e| e.state == "OFFERED")
                .expect("it was offered")
                .at
                >= canary_done
        );
    }
    for (number, load) in (1..).zip(loads) {
        load.stop().assert_no_loss(&format!("node-{number}"));
    }
    for number in 1..=3 {
        wait_for_mode(&mut world, number, "NFTFLEET");
        let left = iptables(&world, number);
        for gone in [
            "KUBE-SVC-",
            "KUBE-SEP-",
            "KUBE-SERVICES",
            "KUBE-POSTROUTING",
            "KUBE-PROXY-CANARY",
        ] {
            assert!(!left.contains(gone), "node-{number} still has {gone}:\n{left}");
        }
        assert!(left.contains("KUBE-KUBELET-CANARY"), "kubelet's chains stay");
        let listed = world
            .lab
            .node(number)
            .netns
            .pipe("nft", &["list", "table", "inet", "nftfleet"], "");
        assert!(listed.contains("10.96.10.1 . tcp . 80 . 0 : "), "{listed}");
        assert!(!listed.contains("flags dormant"));
    }
}

#[test]
fn foreign_rules_survive_a_move_byte_for_byte() {
    let mut world = World::with_agents(&[LEGACY]);
    let before = iptables(&world, 1);
    let started = world.start_rollout(&rollout(&[]));
    world.wait_for_task(started.id, "node-1", &["CONFIRMED"], LIMIT);
    let is_kube_proxys = |line: &&str| {
        let ours = [
            "KUBE-S",
            "KUBE-EXT",
            "KUBE-NODEPORTS",
            "KUBE-POSTROUTING",
            "KUBE-MARK-MASQ",
            "KUBE-FORWARD",
            "KUBE-PROXY-",
        ];
        ours.iter().any(|name| line.contains(name))
    };
    let expected: Vec<&str> = before.lines().filter(|line| !is_kube_proxys(line)).collect();
    let after = iptables(&world, 1);
    // A policy line's counters go on counting.
    let without_counters = |line: &str| line.split(" [").next().unwrap_or_default().to_owned();
    assert_eq!(
        after.lines().map(without_counters).collect::<Vec<_>>(),
        expected.into_iter().map(without_counters).collect::<Vec<_>>()
    );
}

#[test]
fn a_failing_probe_sends_the_node_back_and_loses_nothing() {
    let mut world = World::new(&[NFT, DUAL_STACK]);
    fault::drop_marked(&world.lab.node(1).netns, NFT.backend);
    world.start_agent(1, &[("NFTFLEET_MASQUERADE_BIT", fault::CLASHING_BIT)]);
    world.start_agent(2, &[]);
    world.wait_until_reported(1);
    world.wait_until_reported(2);
    let before = iptables(&world, 1);
    let loads: Vec<Load> = world.lab.nodes.iter().map(|node| Load::start(node, 200)).collect();
    let mut wish = rollout(&[]);
    wish.settings.max_failures = Some(1);
    let started = world.start_rollout(&wish);
    let (ended, tasks) = world.wait_for_end(started.id, LIMIT);
    assert_eq!(ended.state, RolloutState::SucceededWithFailures);
    assert_eq!(tasks[0].state, "REVERTED", "{tasks:#?}");
    assert!(
        tasks[0].reasons[0].contains("10.96.10.1:80"),
        "the reason names the address: {:?}",
        tasks[0].reasons
    );
    assert!(
        tasks[0].timeline.iter().any(|event| event.state == "VERIFYING"),
        "it was active: {tasks:#?}"
    );
    assert_eq!(tasks[1].state, "CONFIRMED");
    for (number, load) in (1..).zip(loads) {
        load.stop().assert_no_loss(&format!("node-{number}"));
    }
    wait_for_mode(&mut world, 1, "IPTABLES_NFT");
    let without_counters = |text: &str| {
        text.lines()
            .map(|l| l.split(" [").next().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        without_counters(&iptables(&world, 1)),
        without_counters(&before),
        "kube-proxy's rules are untouched"
    );
}

#[test]
fn without_the_confirmation_in_time_the_node_goes_back_by_itself() {
    let mut world = World::with_agents(&[LEGACY]);
    let load = Load::start(world.lab.node(1), 100);
    let mut wish = rollout(&[]);
    wish.settings.node_soak_seconds = Some(5);
    wish.settings.confirm_within_seconds = Some(10);
    let started = world.start_rollout(&wish);
    world.wait_for_task(started.id, "node-1", &["SOAKING"], LIMIT);
    // The confirmation can't come any more; nobody but the agent is left to act.
    world.kill_server();
    wait::until_blocking("the agent to go back by itself", LIMIT, || {
        (world.ledger(1).as_deref() == Some("ended")).then_some(())
    });
    let table = world
        .lab
        .node(1)
        .netns
        .pipe("nft", &["list", "table", "inet", "nftfleet"], "");
    assert!(table.contains("flags dormant"));
    world.start_server();
    world.wait_until_ready();
    let task = world.wait_for_task(started.id, "node-1", &["REVERTED"], LIMIT);
    assert!(task.reasons[0].contains("not confirmed within 10 s"), "{task:?}");
    load.stop().assert_no_loss("node-1");
    wait_for_mode(&mut world, 1, "IPTABLES_LEGACY");
}

#[test]
fn a_moved_node_follows_its_services_while_server_and_kubernetes_are_gone() {
    let mut world = World::with_agents(&[DUAL_STACK]);
    let started = world.start_rollout(&rollout(&[]));
    world.wait_for_task(started.id, "node-1", &["CONFIRMED"], LIMIT);
    world.kill_server();
    let client = world.lab.node(1).client.clone();
    let answers =
        |address: &str| tcp_identity(&client, address.parse().expect("an address"), Duration::from_secs(1)).ok();

    world.kubernetes.apply(
        service("shop", "new")
            .cluster_ips(["10.96.77.7"])
            .port("", "TCP", 80, 8080)
            .object(),
    );
    let slice = endpoint_slice("shop", "new", "a", AddressType::IPv4)
        .port("", "TCP", 8080)
        .endpoint("10.128.200.2", "worker-2", Readiness::READY)
        .object();
    world.kubernetes.apply(slice);
    wait::until_blocking("the new Service to answer", LIMIT, || {
        (answers("10.96.77.7:80")? == "backend-2").then_some(())
    });

    world.kubernetes.refuse(true);
    world.kubernetes.cut_watches();
    assert_eq!(
        answers("10.96.77.7:80").as_deref(),
        Some("backend-2"),
        "the data plane stays as it is"
    );
    world.kubernetes.delete("Service", "shop", "new");
    world.kubernetes.expire_history();
    world.kubernetes.refuse(false);
    wait::until_blocking("the deleted Service to be gone after a new list", LIMIT, || {
        let listed = world
            .lab
            .node(1)
            .netns
            .pipe("nft", &["list", "set", "inet", "nftfleet", "cluster-ips4"], "");
        (!listed.contains("10.96.77.7")).then_some(())
    });
    assert!(answers("10.96.10.1:80").is_some());
}

#[test]
fn objects_that_make_no_sense_are_skipped_and_the_others_are_programmed() {
    let mut world = World::new(&[NFT]);
    let mut wrong = service("shop", "wrong")
        .cluster_ips(["10.96.66.6"])
        .port("", "TCP", 80, 8080)
        .object();
    wrong["spec"]["ports"][0]["port"] = serde_json::json!(70_000);
    world.kubernetes.apply(wrong);
    world.start_agent(1, &[("NFTFLEET_METRICS_LISTEN", "192.168.50.1:8641")]);
    world.wait_until_reported(1);
    let started = world.start_rollout(&rollout(&[]));
    world.wait_for_task(started.id, "node-1", &["CONFIRMED"], LIMIT);
    let log = std::fs::read_to_string(world.folder().join("node-1.log")).expect("the agent logs");
    assert!(
        log.contains("shop/wrong") && log.contains("70000 is not 1-65535"),
        "{log}"
    );
    let metrics = world.run(async |_| {
        let answer = reqwest::get("http://192.168.50.1:8641/metrics")
            .await
            .expect("metrics are shown");
        answer.text().await.expect("metrics are text")
    });
    assert!(
        metrics.contains("nftfleet_agent_objects_left_out_total{kind=\"Service\"} 1"),
        "{metrics}"
    );
    assert!(metrics.contains("nftfleet_agent_table_active 1"), "{metrics}");
}

#[test]
fn a_node_with_a_service_that_is_too_large_for_the_table_is_rejected_untouched() {
    let mut world = World::new(&[NFT]);
    let large = service("shop", "large")
        .cluster_ips(["10.96.55.5"])
        .port("", "TCP", 80, 8080);
    // An API server takes 1,000 endpoints in a slice.
    for part in 0..17 {
        let slice = endpoint_slice("shop", "large", &format!("{part}"), AddressType::IPv4).port("", "TCP", 8080);
        let slice = (0..1_000).fold(slice, |slice, n| {
            let address = format!("10.129.{}.{}", part * 4 + n / 250, 1 + n % 250);
            slice.endpoint(&address, "worker-9", Readiness::READY)
        });
        world.kubernetes.apply(slice.object());
    }
    world.kubernetes.apply(large.object());
    world.start_agent(1, &[]);
    world.wait_until_reported(1);
    let load = Load::start(world.lab.node(1), 50);
    let started = world.start_rollout(&rollout(&[]));
    let (ended, tasks) = world.wait_for_end(started.id, LIMIT);
    assert_eq!(ended.state, RolloutState::Failed);
    assert_eq!(tasks[0].state, "REJECTED");
    let reason = "shop/large:80: 17000 endpoints, more than 16384";
    assert!(tasks[0].reasons.iter().any(|r| r.contains(reason)), "{tasks:?}");
    assert!(
        !world
            .lab
            .node(1)
            .netns
            .pipe("nft", &["list", "tables"], "")
            .contains("nftfleet"),
        "nothing was touched"
    );
    load.stop().assert_no_loss("node-1");
}

#[test]
fn a_node_that_forwards_only_by_kube_proxys_leave_is_rejected_untouched() {
    let mut world = World::with_agents(&[LEGACY]);
    world
        .lab
        .node(1)
        .netns
        .pipe("iptables-legacy", &["-P", "FORWARD", "DROP"], "");
    let load = Load::start(world.lab.node(1), 50);
    let started = world.start_rollout(&rollout(&[]));
    let (_, tasks) = world.wait_for_end(started.id, LIMIT);
    assert_eq!(tasks[0].state, "REJECTED");
    assert!(
        tasks[0]
            .reasons
            .iter()
            .any(|reason| reason.starts_with("forward-closed")),
        "{tasks:?}"
    );
    load.stop().assert_no_loss("node-1");
}
