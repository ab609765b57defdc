//! What an agent says of its node.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A fact, or why the node could not tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Fact<T> {
    /// What the node saw.
    Known(T),
    /// Why it could not tell.
    Missing(String),
}

/// All facts of a node. A newer report replaces an older one as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    /// When the facts were collected, by the node's clock.
    pub taken_at: Timestamp,
    /// Version of the agent.
    pub agent_version: String,
    /// `uname -r`.
    pub kernel: Fact<KernelRelease>,
    /// `/etc/os-release`.
    pub os: Fact<OsRelease>,
    /// Version of the `nft` binary on the node.
    pub nft: Fact<Version>,
    /// What shows which Service proxy is at work.
    pub proxy: ProxyEvidence,
    /// CNI plugins found in `/etc/cni/net.d`.
    pub cni: Fact<Vec<String>>,
}

/// A version of three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

/// A kernel release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KernelRelease {
    /// As `uname -r` prints it.
    #[schema(example = "6.1.0-56-amd64")]
    pub release: String,
    /// The version at its start.
    pub version: Version,
}

/// What `/etc/os-release` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OsRelease {
    /// `ID`.
    #[schema(example = "debian")]
    pub id: String,
    /// `VERSION_ID`; empty if the distribution has none.
    #[schema(example = "12")]
    pub version_id: String,
    /// `PRETTY_NAME`.
    pub pretty_name: String,
}

/// What shows which Service proxy is at work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyEvidence {
    /// kube-proxy's chains in the legacy iptables backend, both families together.
    pub iptables_legacy: Fact<IptablesEvidence>,
    /// kube-proxy's chains in the nft iptables backend, both families together.
    pub iptables_nft: Fact<IptablesEvidence>,
    /// Virtual servers in the kernel's IPVS table.
    pub ipvs_services: Fact<u32>,
    /// Whether there is a link `kube-ipvs0`.
    #[serde(default = "untold")]
    pub ipvs_link: Fact<bool>,
    /// kube-proxy's own nftables tables.
    pub kube_proxy_tables: Fact<Vec<String>>,
    /// Those of them that are hooked in and have Services.
    #[serde(default = "untold")]
    pub live_kube_proxy_tables: Fact<Vec<String>>,
    /// What kube-proxy answers when it is asked for its mode.
    #[serde(default = "untold")]
    pub kube_proxy_says: Fact<String>,
    /// Links that only other Service proxies make.
    #[serde(default = "untold")]
    pub foreign_links: Fact<Vec<String>>,
    /// State of the table `inet nftfleet`.
    pub nftfleet_table: Fact<TableState>,
}

fn untold<T>() -> Fact<T> {
    Fact::Missing("the agent is too old to tell".to_owned())
}

/// kube-proxy's chains in one iptables backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IptablesEvidence {
    /// Rules of the nat table's built-in chains that jump to KUBE-SERVICES.
    pub dispatch_jumps: u32,
    /// Chains KUBE-SVC-*.
    pub service_chains: u32,
    /// Those of them that a packet can come to.
    #[serde(default)]
    pub reached_service_chains: u32,
    /// Chains KUBE-SEP-*.
    pub endpoint_chains: u32,
    /// Rules of kube-proxy's that look into an ipset, as in its IPVS mode.
    #[serde(default)]
    pub ipset_rules: u32,
}

/// State of the table `inet nftfleet`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TableState {
    /// There is none.
    Absent,
    /// Loaded, hooks nothing.
    Dormant,
    /// Answers for Services.
    Active,
}
