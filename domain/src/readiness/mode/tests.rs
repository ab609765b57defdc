use super::*;

/// kube-proxy's rules of a small cluster, in one backend.
pub(crate) const RULES: IptablesEvidence = IptablesEvidence {
    dispatch_jumps: 2,
    service_chains: 3,
    reached_service_chains: 3,
    endpoint_chains: 9,
    ipset_rules: 0,
};

/// What kube-proxy's IPVS mode has in iptables.
const IPVS_RULES: IptablesEvidence = IptablesEvidence {
    dispatch_jumps: 2,
    service_chains: 0,
    reached_service_chains: 0,
    endpoint_chains: 0,
    ipset_rules: 2,
};

/// A node on which nothing is at work, and where no kube-proxy answers.
pub(crate) fn nothing() -> ProxyEvidence {
    ProxyEvidence {
        iptables_legacy: Fact::Known(IptablesEvidence::default()),
        iptables_nft: Fact::Known(IptablesEvidence::default()),
        ipvs_services: Fact::Known(0),
        ipvs_link: Fact::Known(false),
        kube_proxy_tables: Fact::Known(vec![]),
        live_kube_proxy_tables: Fact::Known(vec![]),
        kube_proxy_says: Fact::Missing("connection refused".to_owned()),
        foreign_links: Fact::Known(vec![]),
        nftfleet_table: Fact::Known(TableState::Absent),
    }
}

/// A node on which kube-proxy's iptables rules in the legacy backend carry the traffic.
pub(crate) fn legacy() -> ProxyEvidence {
    ProxyEvidence {
        iptables_legacy: Fact::Known(RULES),
        ..nothing()
    }
}

/// A node in kube-proxy's IPVS mode.
pub(crate) fn ipvs() -> ProxyEvidence {
    ProxyEvidence {
        iptables_nft: Fact::Known(IPVS_RULES),
        ipvs_services: Fact::Known(12),
        ipvs_link: Fact::Known(true),
        ..nothing()
    }
}

/// A node in kube-proxy's nftables mode.
pub(crate) fn nftables() -> ProxyEvidence {
    let tables = ["ip kube-proxy", "ip6 kube-proxy"].map(str::to_owned).to_vec();
    ProxyEvidence {
        kube_proxy_tables: Fact::Known(tables.clone()),
        live_kube_proxy_tables: Fact::Known(tables),
        ..nothing()
    }
}

fn saying(word: &str, evidence: ProxyEvidence) -> ProxyEvidence {
    ProxyEvidence {
        kube_proxy_says: Fact::Known(word.to_owned()),
        ..evidence
    }
}

#[test]
fn each_mode_is_told_by_its_evidence_with_kube_proxys_word_and_without() {
    let nft = ProxyEvidence {
        iptables_nft: Fact::Known(RULES),
        ..nothing()
    };
    let both = ProxyEvidence {
        iptables_nft: Fact::Known(RULES),
        ..legacy()
    };
    for (evidence, word, mode) in [
        (legacy(), "iptables", ProxyMode::IptablesLegacy),
        (nft, "iptables", ProxyMode::IptablesNft),
        (both, "iptables", ProxyMode::IptablesBoth),
        (ipvs(), "ipvs", ProxyMode::Ipvs),
        (nftables(), "nftables", ProxyMode::KubeProxyNftables),
    ] {
        assert_eq!(ProxyMode::told_by(&evidence), mode);
        assert_eq!(left_overs(&evidence), [] as [String; 0], "{mode:?}");
        assert_eq!(ProxyMode::told_by(&saying(word, evidence)), mode);
    }
    assert_eq!(ProxyMode::told_by(&nothing()), ProxyMode::None);
}

#[test]
fn of_two_at_work_kube_proxys_word_decides_and_the_other_is_a_left_over() {
    let two = ProxyEvidence {
        iptables_legacy: Fact::Known(RULES),
        ..nftables()
    };
    assert_eq!(
        ProxyMode::told_by(&two),
        ProxyMode::Ambiguous("iptables-legacy and kube-proxy's nftables tables".to_owned())
    );
    let (old, new) = (saying("iptables", two.clone()), saying("nftables", two.clone()));
    assert_eq!(ProxyMode::told_by(&old), ProxyMode::IptablesLegacy);
    assert_eq!(
        left_overs(&old),
        ["the nftables tables ip kube-proxy and ip6 kube-proxy"]
    );
    assert_eq!(ProxyMode::told_by(&new), ProxyMode::KubeProxyNftables);
    assert_eq!(left_overs(&new), ["rules of its iptables mode in iptables-legacy"]);
    let third = ProxyMode::told_by(&saying("ipvs", two));
    assert!(
        matches!(&third, ProxyMode::Unknown(why) if why.contains("ipvs")),
        "{third:?}"
    );
}

#[test]
fn a_word_that_nothing_bears_out_is_unknown() {
    for (word, evidence) in [
        ("nftables", legacy()),
        ("iptables", ipvs()),
        ("iptables", nothing()),
        ("kernelspace", legacy()),
    ] {
        let mode = ProxyMode::told_by(&saying(word, evidence));
        assert!(matches!(mode, ProxyMode::Unknown(_)), "{word}: {mode:?}");
    }
}

#[test]
fn an_unread_sign_is_unknown_even_when_another_speaks() {
    let unread = ProxyEvidence {
        iptables_nft: Fact::Missing("no such file".to_owned()),
        ..legacy()
    };
    assert!(matches!(ProxyMode::told_by(&unread), ProxyMode::Unknown(_)));
}

#[test]
fn what_leads_no_packet_is_a_left_over() {
    let unreached = IptablesEvidence {
        dispatch_jumps: 0,
        reached_service_chains: 0,
        ..RULES
    };
    let evidence = ProxyEvidence {
        iptables_legacy: Fact::Known(unreached),
        ipvs_link: Fact::Known(true),
        live_kube_proxy_tables: Fact::Known(vec![]),
        ..nftables()
    };
    assert_eq!(ProxyMode::told_by(&evidence), ProxyMode::None);
    assert_eq!(left_overs(&evidence).len(), 3, "{:?}", left_overs(&evidence));
    let live = ProxyEvidence {
        iptables_nft: Fact::Known(RULES),
        ..evidence
    };
    assert_eq!(ProxyMode::told_by(&live), ProxyMode::IptablesNft);
    assert_eq!(left_overs(&live).len(), 3, "{:?}", left_overs(&live));
}

#[test]
fn somebodys_virtual_servers_are_no_sign() {
    let balancer = ProxyEvidence {
        ipvs_services: Fact::Known(2),
        ..legacy()
    };
    assert_eq!(ProxyMode::told_by(&balancer), ProxyMode::IptablesLegacy);
    assert_eq!(left_overs(&balancer), [] as [String; 0]);
}

#[test]
fn another_proxy_is_told_by_its_link() {
    let with = |link: &str, evidence| ProxyEvidence {
        foreign_links: Fact::Known(vec![link.to_owned()]),
        ..evidence
    };
    for evidence in [nothing(), legacy(), saying("iptables", legacy())] {
        let mode = ProxyMode::told_by(&with("cilium_host", evidence));
        assert_eq!(mode, ProxyMode::Other("Cilium".to_owned()));
    }
    // kube-router has virtual servers as well.
    let router = ProxyEvidence {
        ipvs_services: Fact::Known(7),
        ..nothing()
    };
    assert_eq!(
        ProxyMode::told_by(&with("kube-dummy-if", router)),
        ProxyMode::Other("kube-router".to_owned())
    );
    // Antrea works beside kube-proxy, unless it does all by itself.
    assert_eq!(
        ProxyMode::told_by(&with("antrea-gw0", legacy())),
        ProxyMode::IptablesLegacy
    );
    assert_eq!(
        ProxyMode::told_by(&with("antrea-gw0", nothing())),
        ProxyMode::Other("Antrea".to_owned())
    );
}

#[test]
fn our_active_table_answers_while_old_rules_stand() {
    let moved = ProxyEvidence {
        nftfleet_table: Fact::Known(TableState::Active),
        ..legacy()
    };
    assert_eq!(ProxyMode::told_by(&moved), ProxyMode::Nftfleet);
    assert_eq!(left_overs(&moved), [] as [String; 0], "they stand by");
    let dormant = ProxyEvidence {
        nftfleet_table: Fact::Known(TableState::Dormant),
        ..legacy()
    };
    assert_eq!(ProxyMode::told_by(&dormant), ProxyMode::IptablesLegacy);
}

#[test]
fn a_report_of_an_older_agent_is_read_and_tells_nothing() {
    let mut old = serde_json::to_value(legacy()).unwrap();
    for fact in [
        "ipvs_link",
        "live_kube_proxy_tables",
        "kube_proxy_says",
        "foreign_links",
    ] {
        old.as_object_mut().unwrap().remove(fact);
    }
    for count in ["reached_service_chains", "ipset_rules"] {
        old["iptables_legacy"]["known"].as_object_mut().unwrap().remove(count);
    }
    let mode = ProxyMode::told_by(&serde_json::from_value(old).unwrap());
    assert!(
        matches!(&mode, ProxyMode::Unknown(why) if why.contains("too old")),
        "{mode:?}"
    );
}
