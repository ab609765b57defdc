//! The dead-man's switch in a move: an agent that dies and is not started again leaves a node that goes back.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use nftfleet_tests::guard;
use nftfleet_tests::kube_proxy::Backend;
use nftfleet_tests::load::{Load, TCP4, sockets};
use nftfleet_tests::traffic::tcp_identity;
use nftfleet_tests::wait;
use nftfleet_tests::world::{NodeSpec, World, rollout};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getsid;
use serde_json::Value;

const NODE: NodeSpec = NodeSpec {
    backend: Backend::Nft,
    ipv6: true,
};
const LIMIT: Duration = Duration::from_mins(1);

/// Short, and long enough for a confirmation on a busy machine: that takes some three seconds.
const WITHIN: u32 = 15;

fn is_active(world: &World, number: usize) -> bool {
    let node = &world.lab.node(number).netns;
    let listed = node.pipe("nft", &["list", "table", "inet", "nftfleet"], "");
    !listed.contains("flags dormant")
}

fn answers(world: &World, number: usize) -> bool {
    let client = &world.lab.node(number).client;
    tcp_identity(client, sockets(&TCP4)[0], Duration::from_secs(1)).is_ok()
}

fn state(world: &World, number: usize) -> Value {
    guard::state(&world.lab.node(number).netns).unwrap_or_default()
}

/// Kills the agent of one node per entry at that point of its move. Nobody starts it again until the node has gone back by
/// itself; then it says so, or goes on if the server had confirmed it.
fn agents_that_stay_dead(points: &[(&str, &str)]) {
    let mut world = World::new(&vec![NODE; points.len()]);
    for (number, (point, _)) in (1..).zip(points) {
        world.start_agent(number, &[("NFTFLEET_REHEARSE", *point)]);
    }
    for number in 1..=points.len() {
        world.wait_until_reported(number);
    }
    let loads: Vec<Load> = world.lab.nodes.iter().map(|node| Load::start(node, 40)).collect();
    let mut wish = rollout(&[]);
    wish.settings.max_failures = Some(points.len().try_into().expect("a few"));
    wish.settings.confirm_within_seconds = Some(WITHIN);
    let started = world.start_rollout(&wish);
    for number in 1..=points.len() {
        world.agent(number).wait_until_ended(LIMIT);
    }
    for (number, (point, _)) in (1..).zip(points) {
        wait::until_blocking(&format!("the guard to fire after {point}"), LIMIT, || {
            let fired = state(&world, number)["fired"]["asleep"].as_bool()?;
            fired.then_some(())
        });
        assert!(!is_active(&world, number), "after {point} kube-proxy's rules serve");
        assert!(answers(&world, number), "after {point} the node answers");
    }
    for number in 1..=points.len() {
        world.start_agent(number, &[]);
    }
    let (_, tasks) = world.wait_for_end(started.id, LIMIT);
    for ((task, (point, end)), load) in tasks.iter().zip(points).zip(loads) {
        assert_eq!(task.state, *end, "killed at {point}: {task:#?}");
        load.stop().assert_no_loss(&format!("killed at {point}"));
    }
}

#[test]
fn a_node_whose_agent_dies_around_the_flip_and_stays_dead_goes_back() {
    agents_that_stay_dead(&[
        ("flipping:after", "REVERTED"),
        ("verifying:before", "REVERTED"),
        ("verifying:after", "REVERTED"),
    ]);
}

#[test]
fn a_node_whose_agent_dies_in_the_soak_and_stays_dead_goes_back() {
    agents_that_stay_dead(&[
        ("soaking:before", "REVERTED"),
        ("soaking:after", "REVERTED"),
        // The ledger has the server's word, and the guard is not disarmed yet.
        ("parking:before", "CONFIRMED"),
    ]);
}

#[test]
fn a_node_whose_agent_dies_before_the_flip_or_after_the_clean_up_has_nothing_to_fear() {
    let mut world = World::new(&[NODE, NODE]);
    world.start_agent(1, &[("NFTFLEET_REHEARSE", "flipping:before")]);
    world.start_agent(2, &[("NFTFLEET_REHEARSE", "confirming:after")]);
    for number in 1..=2 {
        world.wait_until_reported(number);
    }
    let loads: Vec<Load> = world.lab.nodes.iter().map(|node| Load::start(node, 40)).collect();
    let started = world.start_rollout(&rollout(&[]));
    for number in 1..=2 {
        world.agent(number).wait_until_ended(LIMIT);
    }
    assert_eq!(guard::state(&world.lab.node(1).netns), None, "nothing was active yet");
    assert!(!is_active(&world, 1));
    assert_eq!(state(&world, 2), "idle", "disarmed before the clean-up");
    assert!(is_active(&world, 2));
    for number in 1..=2 {
        assert!(answers(&world, number));
        world.start_agent(number, &[]);
    }
    let (_, tasks) = world.wait_for_end(started.id, LIMIT);
    for (task, load) in tasks.iter().zip(loads) {
        assert_eq!(task.state, "CONFIRMED", "{task:#?}");
        load.stop().assert_no_loss(&task.node);
    }
}

#[test]
fn a_guard_that_dies_in_the_soak_is_replaced_and_one_that_is_disarmed_leaves_the_node_alone() {
    let mut world = World::with_agents(&[NODE]);
    let load = Load::start(world.lab.node(1), 100);
    let mut wish = rollout(&[]);
    wish.settings.node_soak_seconds = Some(5);
    let started = world.start_rollout(&wish);
    world.wait_for_task(started.id, "node-1", &["SOAKING"], LIMIT);
    let node = world.lab.node(1).netns.clone();
    let first = guard::process(&node).expect("a guard listens");
    let left = |state: &Value| state["armed"]["left_ms"].as_u64();
    let before = left(&state(&world, 1)).expect("it is armed");
    assert_eq!(getsid(Some(first)), Ok(first), "it leads a session of its own");
    // It needs no disk: it holds no file but its log, and stands in no folder that could go.
    let files = std::fs::read_dir(format!("/proc/{first}/fd")).expect("its files can be listed");
    for file in files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok()) {
        let is_spared = ["/dev/null", "node-1.log"].iter().any(|name| file.ends_with(name));
        assert!(is_spared || file.is_relative(), "it holds {}", file.display());
    }
    let folder = std::fs::read_link(format!("/proc/{first}/cwd")).expect("its folder is known");
    assert_eq!(folder.display().to_string(), "/");
    kill(first, Signal::SIGKILL).expect("it can be killed");
    let after = wait::until_blocking("another guard to be armed", LIMIT, || {
        let second = guard::process(&node).filter(|pid| *pid != first)?;
        left(&state(&world, 1)).map(|left| (second, left))
    });
    assert!(
        after.1 <= before,
        "with what is left of the time: {before} ms, then {} ms",
        after.1
    );
    let task = world.wait_for_task(started.id, "node-1", &["CONFIRMED", "REVERTED"], LIMIT);
    assert_eq!(task.state, "CONFIRMED", "{task:#?}");
    assert_eq!(
        (state(&world, 1), guard::process(&node)),
        (Value::from("idle"), Some(after.0))
    );
    assert!(is_active(&world, 1));
    load.stop().assert_no_loss("node-1");
}

#[test]
fn without_a_guard_that_answers_nothing_is_flipped() {
    let mut world = World::with_agents(&[NODE]);
    // Somebody of root's who never says anything.
    let node = world.lab.node(1).netns.clone();
    let _mute = node.run(|| UnixListener::bind_addr(&guard::address()).expect("nobody listens yet"));
    let load = Load::start(world.lab.node(1), 100);
    let mut wish = rollout(&[]);
    wish.settings.max_failures = Some(1);
    let started = world.start_rollout(&wish);
    let task = world.wait_for_task(started.id, "node-1", &["CONFIRMED", "REVERTED"], LIMIT);
    assert_eq!(task.state, "REVERTED", "{task:#?}");
    let said =
        "the table could not be made active: the dead-man's switch can't be armed: the guard did not answer within 5 s";
    assert_eq!(task.reasons, [said]);
    load.stop().assert_no_loss("node-1");
}

#[test]
fn a_guard_that_fires_in_the_soak_sends_the_node_back() {
    let mut world = World::with_agents(&[NODE]);
    let load = Load::start(world.lab.node(1), 100);
    let mut wish = rollout(&[]);
    wish.settings.node_soak_seconds = Some(30);
    wish.settings.max_failures = Some(1);
    let started = world.start_rollout(&wish);
    world.wait_for_task(started.id, "node-1", &["SOAKING"], LIMIT);
    let node = world.lab.node(1).netns.clone();
    // The same attempt with less time: the sooner of both ends counts.
    let id = state(&world, 1)["armed"]["id"].clone();
    let armed = guard::ask(&node, &serde_json::json!({"arm": {"id": id, "left_ms": 300}}));
    assert_eq!(armed.expect("an answer")["refused"], Value::Null);
    let task = world.wait_for_task(started.id, "node-1", &["CONFIRMED", "REVERTED"], LIMIT);
    assert_eq!(
        task.reasons,
        ["the dead-man's switch fired: not confirmed within 60 s of the flip"]
    );
    assert!(!is_active(&world, 1));
    load.stop().assert_no_loss("node-1");
}
