//! Nodes without our server.

use std::time::Duration;

use nftfleet_tests::kube_proxy::{Backend, Family, Mode, remove_nftables, save};
use nftfleet_tests::rulesets::without_table;
use nftfleet_tests::standalone::{NodeStart, Standalone};

const LIMIT: Duration = Duration::from_secs(10);

/// A line of `iptables-save` that names a chain of kube-proxy's.
fn is_kube_proxys(line: &str) -> bool {
    let of_kubelet = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-FIREWALL"];
    line.contains("KUBE-") && !of_kubelet.iter().any(|chain| line.contains(chain))
}

#[test]
fn kube_proxys_rules_are_all_that_differs_from_before() {
    let starts = Mode::ALL.map(|mode| NodeStart { mode, ipv6: true });
    let mut world = Standalone::new(&starts);
    for (number, start) in (1..).zip(starts) {
        let before = world.rules_of_others(number).to_owned();
        for others in ["DOCKER", "CNI-HOSTPORT-DNAT", "KUBE-KUBELET-CANARY", "inet firewalld"] {
            assert!(before.contains(others), "{others}: {before}");
        }
        assert!(!before.contains("KUBE-SERVICES") && !before.contains("kube-proxy"));
        let with = world.rulesets(number);
        assert_ne!(with, before, "{start:?}");

        let expected: &[Backend] = start.mode.backends();
        for (backend, title) in [
            (Backend::Legacy, "==== iptables-legacy"),
            (Backend::Nft, "==== iptables-nft"),
        ] {
            let rules = world.rulesets(number);
            let part = rules
                .split("==== ")
                .find(|part| title.ends_with(part.lines().next().unwrap_or("-")));
            let has_rules = part.expect("a part per backend").contains("-j KUBE-SERVICES");
            assert_eq!(has_rules, expected.contains(&backend), "{start:?} {backend:?}");
        }

        // By hand what a clean-up does.
        world.kube_proxy_mut(number).stop();
        let netns = &world.node(number).netns;
        for (backend, program) in [(Backend::Legacy, "legacy"), (Backend::Nft, "nft")] {
            for (family, tool) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
                let saved = save(netns, backend, family);
                let kept: Vec<&str> = saved.lines().filter(|line| !is_kube_proxys(line)).collect();
                netns.pipe(
                    &format!("{tool}-{program}-restore"),
                    &["--wait", "30"],
                    &(kept.join("\n") + "\n"),
                );
            }
        }
        remove_nftables(netns, &Family::BOTH);
        assert_eq!(world.rulesets(number), before, "{start:?}");

        world.break_probe(number, [10, 96, 10, 1].into());
        assert!(
            world.rulesets(number).contains("--mark 0x8000/0x8000 -j DROP"),
            "{start:?}"
        );
    }
}

#[test]
fn a_command_runs_on_the_node_and_says_what_it_has_to() {
    let world = Standalone::new(&[NodeStart {
        mode: Mode::Nftables,
        ipv6: false,
    }]);
    let version = world.command(1, &["--version"], LIMIT).expect_success("--version");
    assert!(version.stdout.starts_with("nftfleet-agent"), "{version:?}");
    let refused = world.command(1, &["--no-such-flag"], LIMIT);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("--no-such-flag"), "{refused:?}");
    let refused = world.command_on_state(1, "no-such-verb", &["--json"], LIMIT);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert_eq!(world.ledger(1), None);
}

#[test]
fn a_strangers_flush_is_what_it_says() {
    let world = Standalone::new(&[NodeStart {
        mode: Mode::IptablesNft,
        ipv6: false,
    }]);
    let table =
        "table inet nftfleet {\n\tset a { type ipv4_addr; elements = { 192.0.2.1 } }\n\tchain b { accept; }\n}\n";
    let netns = &world.node(1).netns;
    netns.pipe("nft", &["-f", "-"], table);
    world.flush_table(1);
    let left = netns.pipe("nft", &["list", "table", "inet", "nftfleet"], "");
    assert!(left.contains("192.0.2.1") && !left.contains("accept"), "{left}");
    let without = without_table(&world.rulesets(1), "inet nftfleet");
    world.delete_table(1);
    assert_eq!(world.rulesets(1), without);
    assert!(!world.rulesets(1).contains("nftfleet"));
    assert!(world.rulesets(1).contains("KUBE-SERVICES"));
    world.flush_ruleset(1);
    assert!(!world.rulesets(1).contains("KUBE-SERVICES"));
}

#[test]
fn an_agent_on_a_full_disk_can_keep_nothing() {
    let mut world = Standalone::new(&[NodeStart {
        mode: Mode::IptablesNft,
        ipv6: false,
    }]);
    // With a server that is not there, as long as there must be one.
    let mut arguments = world.agent_arguments(1);
    arguments.extend(["--server".to_owned(), "http://192.168.50.250:8640".to_owned()]);
    world.start_agent_with(1, &arguments, &[]);
    nftfleet_tests::wait::until_blocking("the agent to log", LIMIT, || (!world.log(1).is_empty()).then_some(()));
    assert!(!world.agent(1).has_ended(), "{}", world.log(1));
    world.disk(1).fill();
    let state = world.state_folder(1);
    let seen = std::fs::write(state.join("more"), "text").unwrap_err();
    assert_eq!(seen.kind(), std::io::ErrorKind::StorageFull);
    let script = format!("echo text > {}/more", state.display());
    let in_the_node = world
        .node(1)
        .netns
        .command("sh")
        .args(["-c", &script])
        .output()
        .unwrap();
    assert!(!in_the_node.status.success(), "the node sees the same disk");
    world.disk(1).free();
    std::fs::write(state.join("more"), "text").unwrap();
}

#[test]
fn an_api_that_refuses_or_is_silent_is_noticed_and_returns() {
    let world = Standalone::new(&[NodeStart {
        mode: Mode::IptablesNft,
        ipv6: false,
    }]);
    let netns = &world.node(1).netns;
    let request = || {
        let url = format!("{}/api/v1/nodes/node-1", world.kubernetes.url());
        netns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let request = super::kube_sim::client().get(url).bearer_auth(world.kubernetes.token());
                let answer = request.timeout(Duration::from_millis(500)).send().await;
                answer.ok().map(|answer| answer.status().as_u16())
            })
        })
    };
    assert_eq!(request(), Some(200));
    world.refuse_api(true);
    assert_eq!(request(), Some(503));
    world.refuse_api(false);
    world.silence_api(true);
    assert_eq!(request(), None);
    world.silence_api(false);
    assert_eq!(request(), Some(200));
}
