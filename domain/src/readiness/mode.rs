//! Which Service proxy is at work on a node, told from its evidence.

use serde::{Deserialize, Serialize};

use crate::inventory::{Fact, IptablesEvidence, ProxyEvidence, TableState};

/// The Service proxy that answers new connections on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyMode {
    /// None of the known ones: no rule of kube-proxy's and no table of ours at work.
    None,
    /// kube-proxy's iptables mode in the legacy backend.
    IptablesLegacy,
    /// kube-proxy's iptables mode in the nft backend.
    IptablesNft,
    /// kube-proxy's IPVS mode.
    Ipvs,
    /// kube-proxy's nftables mode.
    KubeProxyNftables,
    /// Our own data plane. It hooks in before kube-proxy's rules, so it answers even while they still stand.
    Nftfleet,
    /// Signs of more than one proxy; the text names them.
    Ambiguous(String),
    /// A sign could not be read; the text says which and why.
    Unknown(String),
}

impl ProxyMode {
    /// What the evidence says. Anything unread or contradictory is `Unknown` or `Ambiguous`, never a guess.
    pub fn told_by(evidence: &ProxyEvidence) -> Self {
        if evidence.nftfleet_table.known() == Some(&TableState::Active) {
            return Self::Nftfleet;
        }
        let unread = [
            ("our table", missing(&evidence.nftfleet_table)),
            ("iptables-legacy", missing(&evidence.iptables_legacy)),
            ("iptables-nft", missing(&evidence.iptables_nft)),
            ("IPVS", missing(&evidence.ipvs_services)),
            ("nftables tables", missing(&evidence.kube_proxy_tables)),
        ];
        if let Some((what, Some(why))) = unread.iter().find(|(_, why)| why.is_some()) {
            return Self::Unknown(format!("{what} could not be read: {why}"));
        }
        let at_work = |fact: &Fact<IptablesEvidence>| fact.known().is_some_and(IptablesEvidence::is_at_work);
        let signs = [
            (
                at_work(&evidence.iptables_legacy),
                Self::IptablesLegacy,
                "iptables-legacy",
            ),
            (at_work(&evidence.iptables_nft), Self::IptablesNft, "iptables-nft"),
            (
                evidence.ipvs_services.known().is_some_and(|n| *n > 0),
                Self::Ipvs,
                "IPVS",
            ),
            (
                evidence.kube_proxy_tables.known().is_some_and(|t| !t.is_empty()),
                Self::KubeProxyNftables,
                "kube-proxy's nftables tables",
            ),
        ];
        let mut seen: Vec<_> = signs.into_iter().filter(|(seen, ..)| *seen).collect();
        match seen.len() {
            0 => Self::None,
            1 => seen.remove(0).1,
            _ => Self::Ambiguous(seen.iter().map(|(_, _, name)| *name).collect::<Vec<_>>().join(" and ")),
        }
    }
}

fn missing<T>(fact: &Fact<T>) -> Option<&str> {
    match fact {
        Fact::Known(_) => None,
        Fact::Missing(why) => Some(why),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A node on which kube-proxy's iptables rules in the legacy backend carry the traffic.
    pub(crate) fn legacy() -> ProxyEvidence {
        ProxyEvidence {
            iptables_legacy: Fact::Known(IptablesEvidence {
                dispatch_jumps: 2,
                service_chains: 3,
                endpoint_chains: 9,
            }),
            iptables_nft: Fact::Known(IptablesEvidence::default()),
            ipvs_services: Fact::Known(0),
            kube_proxy_tables: Fact::Known(vec![]),
            nftfleet_table: Fact::Known(TableState::Absent),
        }
    }

    #[test]
    fn one_sign_is_a_mode() {
        assert_eq!(ProxyMode::told_by(&legacy()), ProxyMode::IptablesLegacy);
        let nft = ProxyEvidence {
            iptables_nft: legacy().iptables_legacy,
            iptables_legacy: legacy().iptables_nft,
            ..legacy()
        };
        assert_eq!(ProxyMode::told_by(&nft), ProxyMode::IptablesNft);
    }

    #[test]
    fn two_signs_are_ambiguous() {
        let both = ProxyEvidence {
            ipvs_services: Fact::Known(4),
            ..legacy()
        };
        assert_eq!(
            ProxyMode::told_by(&both),
            ProxyMode::Ambiguous("iptables-legacy and IPVS".to_owned())
        );
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
    fn chains_that_nothing_jumps_to_are_left_overs() {
        let stale = IptablesEvidence {
            dispatch_jumps: 0,
            service_chains: 3,
            endpoint_chains: 9,
        };
        let evidence = ProxyEvidence {
            iptables_legacy: Fact::Known(stale),
            ..legacy()
        };
        assert_eq!(ProxyMode::told_by(&evidence), ProxyMode::None);
    }

    #[test]
    fn our_active_table_answers_while_old_rules_stand() {
        let moved = ProxyEvidence {
            nftfleet_table: Fact::Known(TableState::Active),
            ..legacy()
        };
        assert_eq!(ProxyMode::told_by(&moved), ProxyMode::Nftfleet);
        let dormant = ProxyEvidence {
            nftfleet_table: Fact::Known(TableState::Dormant),
            ..legacy()
        };
        assert_eq!(ProxyMode::told_by(&dormant), ProxyMode::IptablesLegacy);
    }
}
