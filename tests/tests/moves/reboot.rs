//! What a reboot leaves: the ledger, and no table.

use std::time::Duration;

use nftfleet_tests::kube_proxy::Backend;
use nftfleet_tests::load::{TCP4, sockets};
use nftfleet_tests::traffic::tcp_identity;
use nftfleet_tests::wait;
use nftfleet_tests::world::{NodeSpec, World, rollout};

const NODE: NodeSpec = NodeSpec {
    backend: Backend::Legacy,
    ipv6: false,
};
const LIMIT: Duration = Duration::from_mins(1);

fn forget_the_table(world: &World) {
    world
        .lab
        .node(1)
        .netns
        .pipe("nft", &["delete", "table", "inet", "nftfleet"], "");
}

fn answers(world: &World) -> bool {
    tcp_identity(&world.lab.node(1).client, sockets(&TCP4)[0], Duration::from_millis(300)).is_ok()
}

#[test]
fn a_moved_node_answers_again_after_a_reboot_even_without_the_server() {
    let mut world = World::with_agents(&[NODE]);
    let started = world.start_rollout(&rollout(&[]));
    world.wait_for_task(started.id, "node-1", &["CONFIRMED"], LIMIT);
    world.kill_server();
    world.agent(1).kill();
    forget_the_table(&world);
    // Nobody keeps an enrolment token longer than it is needed.
    std::fs::remove_file(world.folder().join("enrolment-token")).expect("the token was there");
    assert!(!answers(&world));
    world.start_agent(1, &[]);
    wait::until_blocking("the node to answer again", LIMIT, || answers(&world).then_some(()));
}

#[test]
fn a_node_that_reboots_before_its_confirmation_goes_back() {
    let mut world = World::new(&[NODE]);
    world.start_agent(1, &[("NFTFLEET_REHEARSE", "soaking:before")]);
    world.wait_until_reported(1);
    let started = world.start_rollout(&rollout(&[]));
    world.agent(1).wait_until_ended(LIMIT);
    forget_the_table(&world);
    world.start_agent(1, &[]);
    let task = world.wait_for_task(started.id, "node-1", &["REVERTED"], LIMIT);
    assert!(task.reasons[0].contains("not active any more"), "{task:?}");
    assert!(answers(&world), "kube-proxy's rules answer");
}
