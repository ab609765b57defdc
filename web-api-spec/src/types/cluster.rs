//! Clusters and the tokens that let agents in.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A cluster to register.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewCluster {
    /// Unique name: 1-63 characters of a-z, 0-9, '-' and '.'.
    #[schema(example = "eu-west-1")]
    pub name: String,
}

/// A registered cluster.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// Its identity.
    pub id: Uuid,
    /// Its unique name.
    pub name: String,
    /// When it was registered.
    pub created_at: Timestamp,
    /// How many nodes have enrolled.
    pub nodes: u64,
}

/// A page of clusters, by name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterPage {
    /// The clusters.
    pub items: Vec<Cluster>,
    /// Give it as `pageToken` to get the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_page_token: Option<String>,
}

/// An enrolment token to make.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewEnrolmentToken {
    /// How long agents may enrol with it, in seconds, 60-2592000. One hour if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(minimum = 60, maximum = 2_592_000)]
    pub expires_in_seconds: Option<u32>,
}

/// An enrolment token: any agent of the cluster may enrol with it until it expires. Shown once, stored hashed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnrolmentToken {
    /// The secret.
    pub token: String,
    /// When it stops working.
    pub expires_at: Timestamp,
}
