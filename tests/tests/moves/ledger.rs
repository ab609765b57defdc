//! A ledger that can't be used: the data plane goes on, nothing is moved, and a person is asked for.

use std::time::Duration;

use nftfleet_tests::kube_proxy::Backend;
use nftfleet_tests::load::Load;
use nftfleet_tests::manifests::{AddressType, Readiness, endpoint_slice, service};
use nftfleet_tests::traffic::tcp_identity;
use nftfleet_tests::wait;
use nftfleet_tests::world::{NodeSpec, World, rollout};

const NODE: NodeSpec = NodeSpec {
    backend: Backend::Nft,
    ipv6: false,
};
const LIMIT: Duration = Duration::from_mins(1);

#[test]
fn a_moved_node_with_a_damaged_or_newer_ledger_serves_on_and_asks_for_a_person() {
    let mut world = World::with_agents(&[NODE]);
    let started = world.start_rollout(&rollout(&[]));
    world.wait_for_task(started.id, "node-1", &["CONFIRMED"], LIMIT);
    let load = Load::start(world.lab.node(1), 100);
    let ledger = world.folder().join("node-1/ledger.json");
    let client = world.lab.node(1).client.clone();
    for (number, text, reason) in [
        (1, "{\"version\": 1, \"posi", "is damaged"),
        (2, "{\"version\": 99}", "newer than 2"),
    ] {
        world.agent(1).kill();
        std::fs::write(&ledger, text).expect("the ledger can be written");
        world.start_agent(1, &[]);
        // The table follows the Services still.
        let (name, address) = (format!("new-{number}"), format!("10.96.77.{number}"));
        let new = service("shop", &name).cluster_ips([&address]).port("", "TCP", 80, 8080);
        world.kubernetes.apply(new.object());
        let slice = endpoint_slice("shop", &name, "a", AddressType::IPv4)
            .port("", "TCP", 8080)
            .endpoint("10.128.200.2", "worker-2", Readiness::READY);
        world.kubernetes.apply(slice.object());
        let target = format!("{address}:80").parse().expect("an address");
        wait::until_blocking("the new Service to answer", LIMIT, || {
            (tcp_identity(&client, target, Duration::from_secs(1)).ok()? == "backend-2").then_some(())
        });
        // Nothing is written over what a person has to look at, and work is answered with the reason.
        let log = std::fs::read_to_string(world.folder().join("node-1.log")).expect("the agent logs");
        assert!(log.contains(reason), "{log}");
        assert_eq!(std::fs::read_to_string(&ledger).expect("it is there"), text);
    }
    load.stop().assert_no_loss("node-1");
}

#[test]
fn work_for_a_node_with_a_damaged_ledger_needs_attention() {
    let mut world = World::new(&[NODE]);
    let folder = world.folder().join("node-1");
    std::fs::create_dir_all(&folder).expect("a state folder");
    std::fs::write(folder.join("ledger.json"), "{").expect("the ledger can be written");
    world.start_agent(1, &[]);
    world.wait_until_reported(1);
    let started = world.start_rollout(&rollout(&[]));
    let task = world.wait_for_task(started.id, "node-1", &["NEEDS_ATTENTION"], LIMIT);
    assert!(
        task.reasons[0].contains("ledger-lost") && task.reasons[0].contains("is damaged"),
        "{task:?}"
    );
    let tables = world.lab.node(1).netns.pipe("nft", &["list", "tables"], "");
    assert!(!tables.contains("nftfleet"), "{tables}");
}
