//! Nodes, their agents and their readiness.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::report::Report;

/// A node of a cluster, with its newest report and what follows from it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// Its identity.
    pub id: Uuid,
    /// Its cluster's name.
    pub cluster: String,
    /// Its name in the cluster.
    pub name: String,
    /// When its agent enrolled first.
    pub enrolled_at: Timestamp,
    /// When its agent last spoke to the server.
    pub last_seen_at: Timestamp,
    /// Which Service proxy is at work; absent before the first report.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub proxy_mode: Option<ProxyMode>,
    /// Whether it may be moved now.
    pub readiness: Readiness,
    /// Its newest report; absent before the first, and in lists.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub report: Option<Report>,
}

/// A page of nodes, by cluster and name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodePage {
    /// The nodes.
    pub items: Vec<Node>,
    /// Give it as `pageToken` to get the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_page_token: Option<String>,
}

/// Whether a node may be moved now, and why not.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Readiness {
    /// The verdict.
    pub verdict: Verdict,
    /// What stands in the way; empty when READY.
    pub reasons: Vec<ReadinessReason>,
    /// What should be known although it does not stand in the way.
    #[serde(default)]
    pub warnings: Vec<ReadinessReason>,
}

/// A verdict on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Verdict {
    /// Nothing stands in the way.
    Ready,
    /// Moving it would break something.
    Blocked,
    /// Can't be told; never treated as ready.
    Unknown,
}

/// What stands in the way or should be known, and what to do about it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReadinessReason {
    /// Stable code.
    #[schema(example = "kernel-too-old")]
    pub code: String,
    /// The finding with its evidence.
    pub message: String,
    /// What would clear it.
    pub remedy: String,
}

/// The Service proxy at work on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyMode {
    /// `NONE`, `IPTABLES_LEGACY`, `IPTABLES_NFT`, `IPTABLES_BOTH`, `IPVS`, `KUBE_PROXY_NFTABLES`, `NFTFLEET`, `OTHER`,
    /// `AMBIGUOUS` or `UNKNOWN`.
    #[schema(example = "IPTABLES_NFT")]
    pub mode: String,
    /// For `OTHER` its name, for `AMBIGUOUS` the signs, for `UNKNOWN` why.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

/// An enrolled agent.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Agent {
    /// Its node's identity.
    pub node_id: Uuid,
    /// Its cluster's name.
    pub cluster: String,
    /// Its node's name.
    pub node: String,
    /// Its version.
    pub version: String,
    /// When it got its present credential.
    pub enrolled_at: Timestamp,
    /// When it last spoke to the server.
    pub last_seen_at: Timestamp,
}

/// A page of agents, by cluster and node.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentPage {
    /// The agents.
    pub items: Vec<Agent>,
    /// Give it as `pageToken` to get the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_page_token: Option<String>,
}
