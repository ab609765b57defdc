//! What holds of any evidence.

use proptest::prelude::*;

use super::{ProxyMode, left_overs};
use crate::inventory::{Fact, IptablesEvidence, ProxyEvidence, TableState};

fn fact<T: std::fmt::Debug + Clone + 'static>(known: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Fact<T>> {
    prop_oneof![
        12 => known.prop_map(Fact::Known),
        1 => Just(Fact::Missing("unread".to_owned())),
    ]
    .boxed()
}

fn rules() -> impl Strategy<Value = IptablesEvidence> {
    (0u32..3, 0u32..3, 0u32..3, 0u32..2).prop_map(|(jumps, chains, reached, ipsets)| IptablesEvidence {
        dispatch_jumps: jumps,
        service_chains: chains,
        reached_service_chains: if jumps == 0 { 0 } else { reached.min(chains) },
        endpoint_chains: chains,
        ipset_rules: ipsets,
    })
}

fn tables() -> impl Strategy<Value = Vec<String>> {
    prop::sample::subsequence(vec!["ip kube-proxy".to_owned(), "ip6 kube-proxy".to_owned()], 0..=2)
}

fn evidence() -> impl Strategy<Value = ProxyEvidence> {
    let word = prop_oneof![
        2 => Just(Fact::Missing("refused".to_owned())),
        3 => prop::sample::select(vec!["iptables", "ipvs", "nftables", "ebpf"]).prop_map(|w| Fact::Known(w.to_owned())),
    ];
    let links = prop_oneof![
        4 => Just(vec![]),
        1 => prop::sample::select(vec!["cilium_host", "kube-dummy-if", "antrea-gw0"]).prop_map(|l| vec![l.to_owned()]),
    ];
    let table = prop::sample::select(vec![TableState::Absent, TableState::Dormant, TableState::Active]);
    (
        (fact(rules()), fact(rules()), fact(0u32..3), fact(any::<bool>())),
        (fact(tables()), fact(tables()), word, fact(links), fact(table)),
    )
        .prop_map(
            |((legacy, nft, servers, link), (tables, live, word, links, ours))| ProxyEvidence {
                iptables_legacy: legacy,
                iptables_nft: nft,
                ipvs_services: servers,
                ipvs_link: link,
                kube_proxy_tables: tables,
                live_kube_proxy_tables: live,
                kube_proxy_says: word,
                foreign_links: links,
                nftfleet_table: ours,
            },
        )
}

/// Whether packets are led by this mode, read apart from the code under test.
fn is_borne_out(mode: &ProxyMode, evidence: &ProxyEvidence) -> bool {
    let reached = |fact: &Fact<IptablesEvidence>| fact.known().is_some_and(|rules| rules.reached_service_chains > 0);
    let (legacy, nft) = (reached(&evidence.iptables_legacy), reached(&evidence.iptables_nft));
    match mode {
        ProxyMode::IptablesLegacy => legacy && !nft,
        ProxyMode::IptablesNft => nft && !legacy,
        ProxyMode::IptablesBoth => legacy && nft,
        ProxyMode::Ipvs => evidence.ipvs_services.known() > Some(&0) && evidence.ipvs_link.known() == Some(&true),
        ProxyMode::KubeProxyNftables => evidence.live_kube_proxy_tables.known().is_some_and(|t| !t.is_empty()),
        _ => true,
    }
}

const ALL: [ProxyMode; 5] = [
    ProxyMode::IptablesLegacy,
    ProxyMode::IptablesNft,
    ProxyMode::IptablesBoth,
    ProxyMode::Ipvs,
    ProxyMode::KubeProxyNftables,
];

fn word_of(mode: &ProxyMode) -> Option<&'static str> {
    Some(match mode {
        ProxyMode::IptablesLegacy | ProxyMode::IptablesNft | ProxyMode::IptablesBoth => "iptables",
        ProxyMode::Ipvs => "ipvs",
        ProxyMode::KubeProxyNftables => "nftables",
        _ => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn a_mode_of_kube_proxys_is_borne_out_and_not_denied(evidence in evidence()) {
        let mode = ProxyMode::told_by(&evidence);
        if let Some(word) = word_of(&mode) {
            prop_assert!(is_borne_out(&mode, &evidence));
            if let Fact::Known(said) = &evidence.kube_proxy_says {
                prop_assert_eq!(said, word);
            } else {
                let at_work = ALL.iter().filter(|mode| is_borne_out(mode, &evidence)).count();
                prop_assert_eq!(at_work, 1);
            }
        }
    }

    #[test]
    fn an_unread_sign_never_gives_a_mode_that_is_moved_from(evidence in evidence(), which in 0usize..7) {
        let mut evidence = evidence;
        let gone = "unread".to_owned();
        match which {
            0 => evidence.iptables_legacy = Fact::Missing(gone),
            1 => evidence.iptables_nft = Fact::Missing(gone),
            2 => evidence.ipvs_services = Fact::Missing(gone),
            3 => evidence.ipvs_link = Fact::Missing(gone),
            4 => evidence.kube_proxy_tables = Fact::Missing(gone),
            5 => evidence.live_kube_proxy_tables = Fact::Missing(gone),
            _ => evidence.foreign_links = Fact::Missing(gone),
        }
        let mode = ProxyMode::told_by(&evidence);
        prop_assert!(matches!(mode, ProxyMode::Nftfleet | ProxyMode::Unknown(_)), "{:?}", mode);
    }

    #[test]
    fn kube_proxys_word_can_only_settle_or_refuse(evidence in evidence()) {
        // Whatever it says never makes a mode of what is not at work; without it the same or a refusal comes out.
        let silent = ProxyEvidence { kube_proxy_says: Fact::Missing("refused".to_owned()), ..evidence.clone() };
        let (with, without) = (ProxyMode::told_by(&evidence), ProxyMode::told_by(&silent));
        let settles = matches!(without, ProxyMode::Ambiguous(_)) && word_of(&with).is_some();
        let refuses = matches!(with, ProxyMode::Unknown(_));
        prop_assert!(with == without || settles || refuses, "{:?} {:?}", with, without);
    }

    #[test]
    fn left_overs_are_told_only_where_the_mode_is(evidence in evidence()) {
        let mode = ProxyMode::told_by(&evidence);
        if word_of(&mode).is_none() && mode != ProxyMode::None {
            prop_assert!(left_overs(&evidence).is_empty());
        }
    }
}
