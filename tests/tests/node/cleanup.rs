//! kube-proxy's iptables rules go, and everybody else's stay, line by line.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use nftfleet_agent::switchover::cleanup;
use nftfleet_tests::kube_proxy::{self, Backend, Family};
use nftfleet_tests::manifests;
use nftfleet_tests::netns::{Netns, Prefix};
use proptest::prelude::*;

use crate::foreign::{self, Rule};

const PLACES: [(Backend, Family); 4] = [
    (Backend::Legacy, Family::V4),
    (Backend::Legacy, Family::V6),
    (Backend::Nft, Family::V4),
    (Backend::Nft, Family::V6),
];

/// What a backend holds, line by line, without the time and the packets counted.
fn lines(node: &Netns, backend: Backend, family: Family) -> Vec<String> {
    let saved = kube_proxy::save(node, backend, family);
    let lines = saved.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(
            |line| match line.strip_prefix(':').and_then(|chain| chain.rsplit_once(" [")) {
                Some((chain, _)) => format!(":{chain}"),
                None => line.to_owned(),
            },
        )
        .collect()
}

fn restore(node: &Netns, backend: Backend, family: Family, input: &str) {
    let tool = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let backend = match backend {
        Backend::Legacy => "legacy",
        Backend::Nft => "nft",
    };
    node.pipe(
        &format!("{tool}-{backend}-restore"),
        &["--noflush", "--wait", "30"],
        input,
    );
}

fn clean_up(node: &Netns, backend: Backend, family: Family) {
    if let Some(script) = cleanup::script(&kube_proxy::save(node, backend, family)) {
        restore(node, backend, family, &script);
    }
    // Read back: nothing is left to do.
    assert_eq!(cleanup::script(&kube_proxy::save(node, backend, family)), None);
}

/// The lines that are kube-proxy's: those of a node that has nothing else.
static KUBE_PROXYS: LazyLock<Vec<BTreeSet<String>>> = LazyLock::new(|| {
    let node = Netns::create(&Prefix::unique(), "alone");
    let of = |(backend, family)| {
        kube_proxy::install(&node, backend, &manifests::all(), &[family]);
        let lines = lines(&node, backend, family).into_iter();
        lines
            .filter(|line| line.starts_with(":KUBE-") || line.starts_with("-A "))
            .collect::<BTreeSet<_>>()
    };
    PLACES.map(of).into()
});

fn check(rules: &[Rule]) {
    let node = Netns::create(&Prefix::unique(), "node");
    // A rule that marks keeps what marks and what masquerades.
    let is_kept = |line: &str| {
        let chains = ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"];
        let is_of = |chain: &str| {
            line == format!(":{chain} -")
                || line.starts_with(&format!("-A {chain} "))
                || (line.starts_with("-A POSTROUTING ") && line.ends_with(&format!("-j {chain}")))
        };
        rules.iter().any(Rule::marks) && chains.into_iter().any(is_of)
    };
    for (place, (backend, family)) in PLACES.into_iter().enumerate() {
        let (early, late) = foreign::scripts(rules, family);
        restore(&node, backend, family, &early);
        kube_proxy::install(&node, backend, &manifests::all(), &[family]);
        restore(&node, backend, family, &late);
        let before = lines(&node, backend, family);
        let kube_proxys = &KUBE_PROXYS[place];
        let missing: Vec<&String> = kube_proxys.iter().filter(|line| !before.contains(line)).collect();
        assert!(
            kube_proxys.len() > 60 && missing.is_empty(),
            "{} lines of kube-proxy's; missing here: {missing:#?}",
            kube_proxys.len()
        );
        clean_up(&node, backend, family);
        let mut expected = before;
        expected.retain(|line| !kube_proxys.contains(line) || is_kept(line));
        let after = lines(&node, backend, family);
        assert_eq!(after, expected, "{backend:?} {family:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_others_have_stays_as_it_was(rules in foreign::rules()) {
        check(&rules);
    }
}
