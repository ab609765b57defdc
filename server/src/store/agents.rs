//! Table `agents`: who may speak for a node.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use nftfleet_domain::ids::{ClusterName, NodeId, NodeName};

use super::{NodeKey, Store, StoreError, parsed};
use crate::secret::SecretHash;

/// An agent that enrols.
#[derive(Clone, Debug)]
pub struct NewAgent {
    /// The node's name.
    pub node: NodeName,
    /// The node's identity, if it is new.
    pub id_if_new: NodeId,
    /// The agent's version.
    pub version: String,
    /// Its credential.
    pub credential: SecretHash,
}

/// Why an agent could not enrol.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token is not known or has expired.
    #[error("the enrolment token is not known or has expired")]
    Refused,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An enrolled agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its node's identity.
    pub node_id: NodeId,
    /// Its cluster and node.
    pub key: NodeKey,
    /// Its version.
    pub version: String,
    /// When it got its present credential.
    pub enrolled_at: Timestamp,
    /// When it last spoke to the server.
    pub last_seen_at: Timestamp,
}

/// Whose credential it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The node that it speaks for.
    pub node: NodeId,
    /// When the node last spoke to the server.
    pub last_seen_at: Timestamp,
}

impl Store {
    /// Makes or finds the node and gives it the credential in place of any that it had.
    pub async fn enrol(
        &self,
        token: SecretHash,
        agent: &NewAgent,
        now: Timestamp,
    ) -> Result<(NodeId, ClusterName), EnrolError> {
        let mut transaction = self.pool.begin().await.map_err(StoreError::from)?;
        let cluster = sqlx::query!(
            "SELECT c.cluster_id, c.name FROM enrolment_tokens t JOIN clusters c USING (cluster_id)
            WHERE t.token_hash = $1 AND t.expires_at > $2",
            &token.0,
            now.to_sqlx(),
        )
        .fetch_optional(&mut *transaction)
        .await
        .map_err(StoreError::from)?
        .ok_or(EnrolError::Refused)?;
        let node = sqlx::query_scalar!(
            "INSERT INTO nodes (node_id, cluster_id, name, enrolled_at, last_seen_at) VALUES ($1, $2, $3, $4, $4)
            ON CONFLICT ON CONSTRAINT nodes_cluster_id_name_key
            DO UPDATE SET last_seen_at = GREATEST(nodes.last_seen_at, excluded.last_seen_at)
            RETURNING node_id",
            agent.id_if_new.0,
            cluster.cluster_id,
            agent.node.as_str(),
            now.to_sqlx(),
        )
        .fetch_one(&mut *transaction)
        .await
        .map_err(StoreError::from)?;
        sqlx::query!(
            "INSERT INTO agents (node_id, credential_hash, version, enrolled_at) VALUES ($1, $2, $3, $4)
            ON CONFLICT ON CONSTRAINT agents_pkey DO UPDATE
            SET credential_hash = excluded.credential_hash, version = excluded.version, enrolled_at = excluded.enrolled_at",
            node,
            &agent.credential.0,
            agent.version,
            now.to_sqlx(),
        )
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::from)?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok((NodeId(node), parsed("clusters", "name", &cluster.name)?))
    }

    /// Whose credential this is, if anyone's.
    pub async fn credential(&self, credential: SecretHash) -> Result<Option<Credential>, StoreError> {
        let row = sqlx::query!(
            "SELECT node_id, last_seen_at FROM agents JOIN nodes USING (node_id) WHERE credential_hash = $1",
            &credential.0,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| Credential {
            node: NodeId(row.node_id),
            last_seen_at: row.last_seen_at.to_jiff(),
        }))
    }

    /// At most `limit` agents by cluster and node, those after `after`, of one cluster if given.
    pub async fn agents(
        &self,
        cluster: Option<&ClusterName>,
        after: Option<&NodeKey>,
        limit: u32,
    ) -> Result<Vec<Agent>, StoreError> {
        let rows = sqlx::query!(
            "SELECT a.node_id, c.name AS cluster, n.name AS node, a.version, a.enrolled_at, n.last_seen_at
            FROM agents a JOIN nodes n USING (node_id) JOIN clusters c USING (cluster_id)
            WHERE ($1::text IS NULL OR c.name = $1) AND (c.name, n.name) > ($2, $3)
            ORDER BY c.name, n.name LIMIT $4",
            cluster.map(ClusterName::as_str),
            after.map_or("", |key| key.cluster.as_str()),
            after.map_or("", |key| key.node.as_str()),
            i64::from(limit),
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(Agent {
                    node_id: NodeId(row.node_id),
                    key: NodeKey {
                        cluster: parsed("clusters", "name", &row.cluster)?,
                        node: parsed("nodes", "name", &row.node)?,
                    },
                    version: row.version,
                    enrolled_at: row.enrolled_at.to_jiff(),
                    last_seen_at: row.last_seen_at.to_jiff(),
                })
            })
            .collect()
    }
}
