//! A ledger that can't be used: nothing is touched, and the reason is told.

use std::time::Duration;

use nftfleet_tests::kube_proxy::Backend;
use nftfleet_tests::load::Load;
use nftfleet_tests::world::{NodeSpec, World, rollout};

const NODE: NodeSpec = NodeSpec {
    backend: Backend::Nft,
    ipv6: false,
};
const LIMIT: Duration = Duration::from_mins(1);

#[test]
fn an_agent_with_a_damaged_or_newer_ledger_refuses_to_start_and_the_data_plane_stays() {
    let mut world = World::with_agents(&[NODE]);
    let started = world.start_rollout(&rollout(&[]));
    world.wait_for_task(started.id, "node-1", &["CONFIRMED"], LIMIT);
    let load = Load::start(world.lab.node(1), 100);
    let ledger = world.folder().join("node-1/ledger.json");
    for (text, reason) in [
        ("{\"version\": 1, \"posi", "is damaged"),
        ("{\"version\": 99}", "newer than 1"),
    ] {
        world.agent(1).kill();
        std::fs::write(&ledger, text).expect("the ledger can be written");
        world.start_agent(1, &[]);
        world.agent(1).wait_until_ended(LIMIT);
        let log = std::fs::read_to_string(world.folder().join("node-1.log")).expect("the agent logs");
        assert!(log.contains(reason), "{log}");
    }
    let table = world
        .lab
        .node(1)
        .netns
        .pipe("nft", &["list", "table", "inet", "nftfleet"], "");
    assert!(!table.contains("flags dormant"));
    load.stop().assert_no_loss("node-1");
}
