//! Clusters.

pub(super) mod create;
pub(super) mod get;
pub(super) mod list;

use nftfleet_web_api_spec::types;

use crate::store::Cluster;

fn view(cluster: Cluster) -> types::Cluster {
    types::Cluster {
        id: cluster.id.0,
        name: cluster.name.into(),
        created_at: cluster.created_at,
        nodes: cluster.nodes,
    }
}
