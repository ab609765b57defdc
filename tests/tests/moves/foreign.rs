//! What others do to the table of a node that has nothing else.

use std::time::Duration;

use nftfleet_tests::kube_proxy::Backend;
use nftfleet_tests::load::{TCP4, sockets};
use nftfleet_tests::traffic::tcp_identity;
use nftfleet_tests::wait;
use nftfleet_tests::world::{NodeSpec, World, rollout};

const NODE: NodeSpec = NodeSpec {
    backend: Backend::Nft,
    ipv6: false,
};
const LIMIT: Duration = Duration::from_mins(1);

#[test]
fn a_moved_node_whose_table_is_deleted_or_put_to_sleep_gets_it_back() {
    let mut world = World::with_agents(&[NODE]);
    let started = world.start_rollout(&rollout(&[]));
    world.wait_for_task(started.id, "node-1", &["CONFIRMED"], LIMIT);
    let (node, client) = (world.lab.node(1).netns.clone(), world.lab.node(1).client.clone());
    let web = sockets(&TCP4)[0];
    let answers = || tcp_identity(&client, web, Duration::from_millis(300)).is_ok();
    assert!(answers());
    for damage in [
        "delete table inet nftfleet",
        "add table inet nftfleet { flags dormant; }",
    ] {
        // It would be mended before anybody could look.
        world.agent(1).frozen(|| {
            node.pipe("nft", &["-f", "-"], damage);
            assert!(!answers(), "after {damage} nobody answers");
        });
        wait::until_blocking("the table to answer again", LIMIT, || answers().then_some(()));
    }
}
