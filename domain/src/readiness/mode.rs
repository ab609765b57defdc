//! Which Service proxy is at work on a node, told from its evidence.
//!
//! What stands is not always at work: a proxy that crashes in its clean-up, or was stopped, leaves things behind. So each sign
//! counts only if packets are led by it. If kinds of more than one proxy are at work all the same, kube-proxy's own word
//! decides; without it nobody can tell which of them goes on following the Services, and the node is refused.

mod left_overs;
mod others;
#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod tests;

use serde::{Deserialize, Serialize};

pub use left_overs::left_overs;
pub use others::owner_of_link;

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
    /// kube-proxy's iptables mode with rules at work in both backends: it writes to one of them, and the other has those of
    /// a time before the node's iptables was changed. Both are nothing against ours, and both go after a move.
    IptablesBoth,
    /// kube-proxy's IPVS mode.
    Ipvs,
    /// kube-proxy's nftables mode.
    KubeProxyNftables,
    /// Our own data plane. It hooks in before kube-proxy's rules, so it answers even while they still stand.
    Nftfleet,
    /// Another project's Service proxy, with its name.
    Other(String),
    /// More than one proxy is at work, and kube-proxy does not say which is its; the text names them.
    Ambiguous(String),
    /// A sign could not be read, or contradicts what kube-proxy says; the text says which and why.
    Unknown(String),
}

/// What of kube-proxy's may be at work beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Iptables,
    Ipvs,
    Nftables,
}

impl Kind {
    /// How kube-proxy calls it.
    const fn word(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
        }
    }
}

impl ProxyMode {
    /// What the evidence says. Anything unread or contradictory is `Unknown` or `Ambiguous`, never a guess.
    pub fn told_by(evidence: &ProxyEvidence) -> Self {
        if evidence.nftfleet_table.known() == Some(&TableState::Active) {
            return Self::Nftfleet;
        }
        if let Some(why) = unread(evidence) {
            return Self::Unknown(why);
        }
        let at_work = Self::kinds_at_work(evidence);
        if let Some(name) = others::in_charge(evidence, !at_work.is_empty()) {
            return Self::Other(name);
        }
        let modes: Vec<Self> = at_work.iter().map(|kind| Self::of(*kind, evidence)).collect();
        let Some(word) = evidence.kube_proxy_says.known() else {
            return match modes.as_slice() {
                [] => Self::None,
                [mode] => mode.clone(),
                _ => Self::Ambiguous(modes.iter().map(Self::sign).collect::<Vec<_>>().join(" and ")),
            };
        };
        let said = at_work.iter().position(|kind| kind.word() == word);
        if let Some(mode) = said.and_then(|at| modes.get(at)) {
            return mode.clone();
        }
        let seen = match modes.as_slice() {
            [] => "nothing of kube-proxy's".to_owned(),
            _ => modes.iter().map(Self::sign).collect::<Vec<_>>().join(" and "),
        };
        Self::Unknown(format!(
            "kube-proxy says that its mode is {word}, and {seen} is at work"
        ))
    }

    /// What of kube-proxy's leads packets, as far as it could be read.
    fn kinds_at_work(evidence: &ProxyEvidence) -> Vec<Kind> {
        let iptables = [&evidence.iptables_legacy, &evidence.iptables_nft]
            .iter()
            .any(|backend| is_at_work(backend));
        // Virtual servers alone are somebody's load balancer.
        let ipvs = evidence.ipvs_services.known().is_some_and(|servers| *servers > 0)
            && evidence.ipvs_link.known() == Some(&true);
        let nftables = evidence
            .live_kube_proxy_tables
            .known()
            .is_some_and(|live| !live.is_empty());
        [
            (iptables, Kind::Iptables),
            (ipvs, Kind::Ipvs),
            (nftables, Kind::Nftables),
        ]
        .into_iter()
        .filter_map(|(at_work, kind)| at_work.then_some(kind))
        .collect()
    }

    fn of(kind: Kind, evidence: &ProxyEvidence) -> Self {
        match kind {
            Kind::Iptables if !is_at_work(&evidence.iptables_nft) => Self::IptablesLegacy,
            Kind::Iptables if !is_at_work(&evidence.iptables_legacy) => Self::IptablesNft,
            Kind::Iptables => Self::IptablesBoth,
            Kind::Ipvs => Self::Ipvs,
            Kind::Nftables => Self::KubeProxyNftables,
        }
    }

    /// Which kind of kube-proxy's it is, if it is one.
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::IptablesLegacy | Self::IptablesNft | Self::IptablesBoth => Some(Kind::Iptables),
            Self::Ipvs => Some(Kind::Ipvs),
            Self::KubeProxyNftables => Some(Kind::Nftables),
            _ => None,
        }
    }

    /// What is seen of it, in a sentence.
    fn sign(&self) -> &'static str {
        match self {
            Self::IptablesLegacy => "iptables-legacy",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesBoth => "iptables in both backends",
            Self::Ipvs => "IPVS",
            Self::KubeProxyNftables => "kube-proxy's nftables tables",
            _ => "something else",
        }
    }
}

fn is_at_work(backend: &Fact<IptablesEvidence>) -> bool {
    backend.known().is_some_and(IptablesEvidence::is_at_work)
}

/// The first sign that could not be read, and why. That kube-proxy does not answer is none: it may be stopped.
fn unread(evidence: &ProxyEvidence) -> Option<String> {
    let signs = [
        ("our table", missing(&evidence.nftfleet_table)),
        ("iptables-legacy", missing(&evidence.iptables_legacy)),
        ("iptables-nft", missing(&evidence.iptables_nft)),
        ("IPVS", missing(&evidence.ipvs_services)),
        ("the link kube-ipvs0", missing(&evidence.ipvs_link)),
        ("nftables tables", missing(&evidence.kube_proxy_tables)),
        (
            "kube-proxy's nftables tables",
            missing(&evidence.live_kube_proxy_tables),
        ),
        ("links of other proxies", missing(&evidence.foreign_links)),
    ];
    signs
        .into_iter()
        .find_map(|(what, why)| why.map(|why| format!("{what} could not be read: {why}")))
}

fn missing<T>(fact: &Fact<T>) -> Option<&str> {
    match fact {
        Fact::Known(_) => None,
        Fact::Missing(why) => Some(why),
    }
}
