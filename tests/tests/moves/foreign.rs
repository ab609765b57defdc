//! What others do to a node that was moved: to its table, which is all it has, and beside it.

use std::time::Duration;

use nftfleet_tests::kube_proxy::{Backend, Family, save};
use nftfleet_tests::load::{LoadFromEverywhere, TCP4, sockets};
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

#[test]
fn a_kube_proxy_that_runs_on_writes_its_rules_again_and_does_no_harm() {
    let mut world = World::new(&[NODE]);
    world.start_kube_proxies(&[NODE]);
    world.kube_proxy(1).stuck(true);
    world.start_agent(1, &[]);
    world.wait_until_reported(1);
    let load = LoadFromEverywhere::start(world.lab.node(1), 40);
    let started = world.start_rollout(&rollout(&[]));
    world.wait_for_task(started.id, "node-1", &["CONFIRMED"], LIMIT);
    let rules = |world: &World| save(&world.lab.node(1).netns, Backend::Nft, Family::V4);
    assert!(
        !rules(&world).contains("KUBE-SVC-"),
        "the move ends with kube-proxy's rules gone"
    );
    world.kube_proxy(1).resync();
    assert!(rules(&world).contains("KUBE-SVC-"), "kube-proxy writes them again");
    load.wait_for_more(40);
    load.stop_without_loss("node-1");
}
