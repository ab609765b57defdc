//! Table `clusters`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use nftfleet_domain::ids::{ClusterId, ClusterName, NodeId};
use nftfleet_domain::rollout::Member;

use super::{Store, StoreError, counted, parsed};

/// A registered cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its identity.
    pub id: ClusterId,
    /// Its name.
    pub name: ClusterName,
    /// When it was registered.
    pub created_at: Timestamp,
    /// How many nodes have enrolled.
    pub nodes: u64,
}

/// Why a cluster could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum CreateClusterError {
    /// The name is taken.
    #[error("there is a cluster {0} already")]
    Exists(ClusterName),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Registers a cluster.
    pub async fn create_cluster(
        &self,
        id: ClusterId,
        name: &ClusterName,
        now: Timestamp,
    ) -> Result<Cluster, CreateClusterError> {
        let done = sqlx::query!(
            "INSERT INTO clusters (cluster_id, name, created_at) VALUES ($1, $2, $3)",
            id.0,
            name.as_str(),
            now.to_sqlx(),
        )
        .execute(&self.pool)
        .await;
        match done {
            Ok(_) => Ok(Cluster {
                id,
                name: name.clone(),
                created_at: now,
                nodes: 0,
            }),
            Err(sqlx::Error::Database(error)) if error.constraint() == Some("clusters_name_key") => {
                Err(CreateClusterError::Exists(name.clone()))
            }
            Err(error) => Err(StoreError::from(error).into()),
        }
    }

    /// A cluster by its name.
    pub async fn cluster(&self, name: &ClusterName) -> Result<Option<Cluster>, StoreError> {
        let row = sqlx::query!(
            r#"SELECT cluster_id, created_at, (SELECT count(*) FROM nodes n WHERE n.cluster_id = c.cluster_id) AS "nodes!"
            FROM clusters c WHERE name = $1"#,
            name.as_str(),
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| Cluster {
            id: ClusterId(row.cluster_id),
            name: name.clone(),
            created_at: row.created_at.to_jiff(),
            nodes: counted(row.nodes),
        }))
    }

    /// At most `limit` clusters by name, those after `after`.
    pub async fn clusters(&self, after: Option<&ClusterName>, limit: u32) -> Result<Vec<Cluster>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT cluster_id, name, created_at,
                (SELECT count(*) FROM nodes n WHERE n.cluster_id = c.cluster_id) AS "nodes!"
            FROM clusters c WHERE name > $1 ORDER BY name LIMIT $2"#,
            after.map_or("", ClusterName::as_str),
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(Cluster {
                    id: ClusterId(row.cluster_id),
                    name: parsed("clusters", "name", &row.name)?,
                    created_at: row.created_at.to_jiff(),
                    nodes: counted(row.nodes),
                })
            })
            .collect()
    }

    /// The nodes of these clusters; those that do not exist are not in the answer.
    pub async fn fleet(&self, clusters: &[ClusterName]) -> Result<BTreeMap<ClusterName, Vec<Member>>, StoreError> {
        let names: Vec<String> = clusters.iter().map(ToString::to_string).collect();
        let rows = sqlx::query!(
            r#"SELECT c.name AS cluster, n.name AS "node?", n.node_id AS "node_id?"
            FROM clusters c LEFT JOIN nodes n USING (cluster_id)
            WHERE c.name = ANY($1) ORDER BY c.name, n.name"#,
            &names,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut fleet = BTreeMap::<ClusterName, Vec<Member>>::new();
        for row in rows {
            let cluster: ClusterName = parsed("clusters", "name", &row.cluster)?;
            let members = fleet.entry(cluster.clone()).or_default();
            if let (Some(node), Some(id)) = (row.node, row.node_id) {
                members.push(Member {
                    cluster,
                    node: parsed("nodes", "name", &node)?,
                    id: NodeId(id),
                });
            }
        }
        Ok(fleet)
    }
}
