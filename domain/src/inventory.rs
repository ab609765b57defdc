//! The facts that a node told us. No judgement is made here: [`crate::readiness`] does that.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A fact, or why it is missing. A missing fact is a fact too: it is never taken for a good one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact<T> {
    /// What the node saw.
    Known(T),
    /// Why the node could not tell, in words for a person.
    Missing(String),
}

impl<T> Fact<T> {
    /// The value, if the node could tell.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Missing(_) => None,
        }
    }
}

/// Everything that an agent says of its node, as a whole: a newer report replaces an older one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// When the facts were collected, by the node's clock.
    pub taken_at: Timestamp,
    /// Version of the agent.
    pub agent_version: String,
    /// `uname -r`.
    pub kernel: Fact<KernelRelease>,
    /// `/etc/os-release`.
    pub os: Fact<OsRelease>,
    /// Version of the `nft` binary on the node, whose reader must understand our table.
    pub nft: Fact<Version>,
    /// What shows which Service proxy is at work.
    pub proxy: ProxyEvidence,
    /// Names of the CNI plugins found in `/etc/cni/net.d`; empty if there is no configuration.
    pub cni: Fact<Vec<String>>,
}

/// A dotted version of up to three numbers; missing ones count as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

impl Version {
    /// The version `major.minor.patch`.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// The first dotted number at the start of `text`, after an optional `v`: `6.1.0-56-amd64` is 6.1.0.
    pub fn at_start_of(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let mut numbers = text[..end].trim_end_matches('.').split('.').map(str::parse::<u32>);
        let major = numbers.next()?.ok()?;
        let minor = numbers.next().transpose().ok()?.unwrap_or(0);
        let patch = numbers.next().transpose().ok()?.unwrap_or(0);
        Some(Self { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A kernel release as `uname -r` prints it, with the version at its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRelease {
    /// The whole text.
    pub release: String,
    /// The version at its start.
    pub version: Version,
}

impl KernelRelease {
    /// Reads `uname -r`; none if it does not start with a version.
    pub fn parse(release: &str) -> Option<Self> {
        let release = release.trim();
        Some(Self {
            release: release.to_owned(),
            version: Version::at_start_of(release)?,
        })
    }
}

/// What `/etc/os-release` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsRelease {
    /// `ID`, for example `debian`.
    pub id: String,
    /// `VERSION_ID`, for example `12`; empty if the distribution has none.
    pub version_id: String,
    /// `PRETTY_NAME`, for people.
    pub pretty_name: String,
}

/// What shows which Service proxy is at work on the node. No single sign is enough (docs/OPERATIONS.md).
///
/// Facts that older agents do not tell are missing in their reports, and then nothing is told by the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyEvidence {
    /// kube-proxy's chains in the legacy iptables backend, both families.
    pub iptables_legacy: Fact<IptablesEvidence>,
    /// kube-proxy's chains in the nft iptables backend, both families.
    pub iptables_nft: Fact<IptablesEvidence>,
    /// Virtual servers in the kernel's IPVS table; 0 when IPVS is not loaded.
    pub ipvs_services: Fact<u32>,
    /// Whether there is a link `kube-ipvs0`, on which kube-proxy's IPVS mode has the Services' addresses.
    #[serde(default = "untold")]
    pub ipvs_link: Fact<bool>,
    /// kube-proxy's own nftables tables, for example `ip kube-proxy`.
    pub kube_proxy_tables: Fact<Vec<String>>,
    /// Those of them that answer for Services: their chains are hooked in, and there are Services in their maps.
    #[serde(default = "untold")]
    pub live_kube_proxy_tables: Fact<Vec<String>>,
    /// What kube-proxy itself says its mode is: `iptables`, `ipvs`, `nftables`. Missing if none answers.
    #[serde(default = "untold")]
    pub kube_proxy_says: Fact<String>,
    /// Links that only other Service proxies make ([`crate::readiness::owner_of_link`]).
    #[serde(default = "untold")]
    pub foreign_links: Fact<Vec<String>>,
    /// Our own table.
    pub nftfleet_table: Fact<TableState>,
}

fn untold<T>() -> Fact<T> {
    Fact::Missing("the agent is too old to tell".to_owned())
}

/// kube-proxy's chains in one iptables backend. Chains of kubelet (KUBE-FIREWALL, KUBE-KUBELET-CANARY,
/// KUBE-IPTABLES-HINT) are not counted: they stand on every node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IptablesEvidence {
    /// Rules in `PREROUTING` and `OUTPUT` of the nat table that jump to `KUBE-SERVICES`.
    pub dispatch_jumps: u32,
    /// Chains `KUBE-SVC-*`: one per Service port with endpoints.
    pub service_chains: u32,
    /// Those of them to which a packet comes that enters by a dispatch jump.
    #[serde(default)]
    pub reached_service_chains: u32,
    /// Chains `KUBE-SEP-*`: one per endpoint of a Service port.
    pub endpoint_chains: u32,
    /// Rules of kube-proxy's nat chains that look into an ipset, as those of its IPVS mode do.
    #[serde(default)]
    pub ipset_rules: u32,
}

impl IptablesEvidence {
    /// Whether kube-proxy's rules carry traffic in this backend: something jumps to them, and they lead to Services. Rules that
    /// only mark for IPVS are not at work by themselves.
    pub fn is_at_work(&self) -> bool {
        self.reached_service_chains > 0
    }

    /// Whether anything of kube-proxy's is there at all.
    pub fn is_present(&self) -> bool {
        *self != Self::default()
    }
}

/// State of the table `inet nftfleet` on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableState {
    /// There is none.
    Absent,
    /// It is loaded, and hooks nothing.
    Dormant,
    /// It answers for Services.
    Active,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_distributions_print() {
        let cases = [
            ("6.1.0-56-amd64", (6, 1, 0)),
            ("5.10.134-16.1.al8.x86_64", (5, 10, 134)),
            ("6.18", (6, 18, 0)),
            ("5.14.0-503.el9", (5, 14, 0)),
            ("v1.0.6", (1, 0, 6)),
            ("6.6.126.1-1.azl3", (6, 6, 126)),
        ];
        for (text, (major, minor, patch)) in cases {
            assert_eq!(
                Version::at_start_of(text),
                Some(Version::new(major, minor, patch)),
                "{text}"
            );
        }
        for bad in ["", "linux", "v", ".5", "99999999999.1"] {
            assert_eq!(Version::at_start_of(bad), None, "{bad}");
        }
    }
}
