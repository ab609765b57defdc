//! Where a node comes from: what is at work on it, and what it is refused for.

use nftfleet_tests::kube_proxy::{self, Backend, Family, install_nftables};
use nftfleet_tests::load::Load;
use nftfleet_tests::manifests;
use nftfleet_tests::wait;
use nftfleet_tests::world::{CLUSTER, World, rollout};
use nftfleet_web_api_spec::types::Verdict;

use crate::rollout::{LIMIT, NFT};

#[test]
fn a_node_with_rules_at_work_in_both_backends_is_moved_and_left_clean() {
    let mut world = World::new(&[NFT]);
    let node = world.lab.node(1).netns.clone();
    kube_proxy::install(&node, Backend::Legacy, &manifests::all(), &[Family::V4]);
    world.start_agent(1, &[]);
    world.wait_until_reported(1);
    assert_eq!(
        world.node(1).proxy_mode.map(|mode| mode.mode).as_deref(),
        Some("IPTABLES_BOTH")
    );
    let load = Load::start(world.lab.node(1), 100);
    let started = world.start_rollout(&rollout(&[]));
    world.wait_for_task(started.id, "node-1", &["CONFIRMED"], LIMIT);
    load.stop().assert_no_loss("node-1");
    for backend in [Backend::Legacy, Backend::Nft] {
        let left = kube_proxy::save(&node, backend, Family::V4);
        for gone in ["KUBE-SVC-", "KUBE-SERVICES", "KUBE-POSTROUTING"] {
            assert!(!left.contains(gone), "{backend:?} still has {gone}:\n{left}");
        }
    }
}

#[test]
fn a_node_whose_proxy_cannot_be_told_or_is_anothers_is_blocked_with_the_reason() {
    for (damage, mode, code) in [
        ("tables", "AMBIGUOUS", "proxy-mode-ambiguous"),
        ("link", "OTHER", "proxy-mode-unsupported"),
    ] {
        let mut world = World::new(&[NFT]);
        let node = world.lab.node(1).netns.clone();
        if damage == "link" {
            node.batch("link add cilium_host type veth peer name cilium_net");
        } else {
            install_nftables(&node, &manifests::all(), &[Family::V4]);
        }
        let before = node.pipe("nft", &["list", "ruleset"], "");
        world.start_agent(1, &[]);
        let told = world.run(async |api| {
            let told = async || {
                let nodes = api.nodes(CLUSTER).await.ok()?;
                nodes.into_iter().find(|node| node.proxy_mode.is_some())
            };
            wait::until("a report", LIMIT, told).await
        });
        assert_eq!(told.proxy_mode.map(|mode| mode.mode).as_deref(), Some(mode));
        assert_eq!(told.readiness.verdict, Verdict::Blocked);
        assert_eq!(told.readiness.reasons[0].code, code);
        let started = world.start_rollout(&rollout(&[]));
        let (_, tasks) = world.wait_for_end(started.id, LIMIT);
        assert_eq!(tasks[0].state, "REJECTED", "{tasks:#?}");
        let without_counters = |text: &str| {
            let lines = text
                .lines()
                .map(|line| line.split("counter packets").next().unwrap_or_default().to_owned());
            lines.collect::<Vec<_>>()
        };
        let after = node.pipe("nft", &["list", "ruleset"], "");
        assert_eq!(without_counters(&after), without_counters(&before), "untouched");
    }
}
