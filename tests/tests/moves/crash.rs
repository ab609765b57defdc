//! Crashes at every phase of a move: the same end, and no connection lost.

use std::time::Duration;

use nftfleet_tests::fault;
use nftfleet_tests::kube_proxy::Backend;
use nftfleet_tests::load::Load;
use nftfleet_tests::world::{NodeSpec, World, rollout};
use nftfleet_web_api_spec::types::RolloutState;

const NODE: NodeSpec = NodeSpec {
    backend: Backend::Nft,
    ipv6: true,
};
const LIMIT: Duration = Duration::from_mins(1);

/// Kills the agent of one node per entry at that point of its move, starts it again, and expects `end` everywhere.
fn agents_killed_at(points: &[&str], end: &str, break_probe: bool) {
    let mut world = World::new(&vec![NODE; points.len()]);
    for (number, point) in (1..).zip(points) {
        let mut environment = vec![("NFTFLEET_REHEARSE", *point)];
        if break_probe {
            fault::drop_marked(&world.lab.node(number).netns, NODE.backend);
            environment.push(("NFTFLEET_MASQUERADE_BIT", fault::CLASHING_BIT));
        }
        world.start_agent(number, &environment);
    }
    for number in 1..=points.len() {
        world.wait_until_reported(number);
    }
    let loads: Vec<Load> = world.lab.nodes.iter().map(|node| Load::start(node, 40)).collect();
    let mut wish = rollout(&[]);
    wish.settings.max_failures = Some(points.len().try_into().expect("a few"));
    let started = world.start_rollout(&wish);
    for number in 1..=points.len() {
        world.agent(number).wait_until_ended(LIMIT);
        let environment = if break_probe {
            vec![("NFTFLEET_MASQUERADE_BIT", fault::CLASHING_BIT)]
        } else {
            vec![]
        };
        world.start_agent(number, &environment);
    }
    let (_, tasks) = world.wait_for_end(started.id, LIMIT);
    assert_eq!(tasks.len(), points.len());
    for ((task, point), load) in tasks.iter().zip(points).zip(loads) {
        assert_eq!(task.state, end, "killed at {point}: {task:#?}");
        load.stop().assert_no_loss(&format!("killed at {point}"));
    }
}

#[test]
fn an_agent_killed_before_anything_is_active_goes_on() {
    agents_killed_at(
        &["preflight:before", "preflight:after", "loading:before", "loading:after"],
        "CONFIRMED",
        false,
    );
}

#[test]
fn an_agent_killed_around_the_flip_goes_on() {
    agents_killed_at(
        &[
            "flipping:before",
            "flipping:after",
            "verifying:before",
            "verifying:after",
        ],
        "CONFIRMED",
        false,
    );
}

#[test]
fn an_agent_killed_in_the_soak_or_the_clean_up_goes_on() {
    agents_killed_at(
        &[
            "soaking:before",
            "soaking:after",
            "confirming:before",
            "confirming:after",
        ],
        "CONFIRMED",
        false,
    );
}

#[test]
fn an_agent_killed_on_its_way_back_goes_back() {
    agents_killed_at(&["reverting:before", "reverting:after"], "REVERTED", true);
}

#[test]
fn an_agent_killed_when_it_is_moved_leaves_the_data_plane_at_work() {
    let mut world = World::with_agents(&[NODE]);
    let load = Load::start(world.lab.node(1), 100);
    let started = world.start_rollout(&rollout(&[]));
    world.wait_for_task(started.id, "node-1", &["CONFIRMED"], LIMIT);
    for _ in 0..3 {
        world.agent(1).kill();
        world.start_agent(1, &[]);
        world.wait_until_reported(1);
    }
    load.stop().assert_no_loss("node-1");
}

/// Kills the server when the node's task is in one of these states, or past them, and starts it again.
fn server_killed_at(states: &[&str]) {
    let mut world = World::with_agents(&[NODE]);
    let load = Load::start(world.lab.node(1), 100);
    let started = world.start_rollout(&rollout(&[]));
    let later = [
        "PREFLIGHT",
        "APPLYING",
        "VERIFYING",
        "SOAKING",
        "CONFIRMING",
        "CONFIRMED",
    ];
    let wanted: Vec<&str> = states.iter().chain(&later).copied().collect();
    let from = later.iter().position(|state| states.contains(state)).unwrap_or(0);
    let wanted: Vec<&str> = wanted
        .into_iter()
        .filter(|s| states.contains(s) || later[from..].contains(s))
        .collect();
    let met = world.wait_for_task(started.id, "node-1", &wanted, LIMIT);
    world.kill_server();
    eprintln!("killed the server when the task was {} (wanted {states:?})", met.state);
    world.start_server();
    world.wait_until_ready();
    let (ended, tasks) = world.wait_for_end(started.id, LIMIT);
    assert_eq!(ended.state, RolloutState::Succeeded, "{tasks:#?}");
    assert_eq!(tasks[0].state, "CONFIRMED");
    load.stop().assert_no_loss("node-1");
}

#[test]
fn a_server_killed_right_after_the_start_goes_on() {
    server_killed_at(&["PENDING", "OFFERED"]);
}

#[test]
fn a_server_killed_while_the_table_is_loaded_goes_on() {
    server_killed_at(&["PREFLIGHT", "APPLYING"]);
}

#[test]
fn a_server_killed_around_the_flip_goes_on() {
    server_killed_at(&["VERIFYING"]);
}

#[test]
fn a_server_killed_in_the_soak_goes_on() {
    server_killed_at(&["SOAKING"]);
}

#[test]
fn a_server_killed_in_the_clean_up_goes_on() {
    server_killed_at(&["CONFIRMING"]);
}
