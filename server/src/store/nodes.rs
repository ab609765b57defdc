//! Table `nodes`: what nodes told us of themselves and when.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use jiff_sqlx::ToSqlx;
use nftfleet_domain::ids::{ClusterName, NodeId, NodeName};
use nftfleet_domain::inventory::Report;
use nftfleet_domain::readiness::Reported;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Store, StoreError, parsed, read_json, to_json};

/// What a node is listed by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeKey {
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its name.
    pub node: NodeName,
}

/// A node with its newest report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its identity.
    pub id: NodeId,
    /// Its cluster and name.
    pub key: NodeKey,
    /// When its agent enrolled first.
    pub enrolled_at: Timestamp,
    /// When its agent last spoke to the server.
    pub last_seen_at: Timestamp,
    /// Its newest report, if it ever sent one.
    pub report: Option<Report>,
}

impl Node {
    /// What readiness is judged by.
    pub fn reported(&self) -> Option<Reported> {
        self.report.clone().map(|report| Reported {
            report,
            reported_at: self.last_seen_at,
            moved_at: None,
            last_seen_at: self.last_seen_at,
        })
    }
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is the newest now.
    New,
    /// It was the newest already.
    Duplicate,
    /// There is a newer one, of this sequence number.
    Stale(i64),
}

impl Store {
    /// Keeps `report` if no other of the same or a higher sequence number was kept before.
    pub async fn record_report(
        &self,
        node: NodeId,
        sequence: i64,
        report: &Report,
        now: Timestamp,
    ) -> Result<Recorded, StoreError> {
        let done = sqlx::query!(
            "UPDATE nodes SET report = $3, report_sequence = $2, reported_at = $4,
                last_seen_at = GREATEST(last_seen_at, $4)
            WHERE node_id = $1 AND report_sequence < $2",
            node.0,
            sequence,
            to_json(report),
            now.to_sqlx(),
        )
        .execute(&self.pool)
        .await?;
        if done.rows_affected() == 1 {
            // An agent that was upgraded need not enrol again.
            sqlx::query!(
                "UPDATE agents SET version = $2 WHERE node_id = $1 AND version <> $2",
                node.0,
                report.agent_version,
            )
            .execute(&self.pool)
            .await?;
            return Ok(Recorded::New);
        }
        let newest = sqlx::query_scalar!("SELECT report_sequence FROM nodes WHERE node_id = $1", node.0)
            .fetch_one(&self.pool)
            .await?;
        Ok(if newest == sequence {
            Recorded::Duplicate
        } else {
            Recorded::Stale(newest)
        })
    }

    /// Remembers that a node spoke, unless it did less than `at_most_every` before.
    pub async fn heard_of(
        &self,
        node: NodeId,
        now: Timestamp,
        at_most_every: SignedDuration,
    ) -> Result<(), StoreError> {
        let before = now.saturating_sub(at_most_every).unwrap_or(Timestamp::MIN);
        sqlx::query!(
            "UPDATE nodes SET last_seen_at = $2 WHERE node_id = $1 AND last_seen_at <= $3",
            node.0,
            now.to_sqlx(),
            before.to_sqlx(),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A node by its cluster and name.
    pub async fn node(&self, key: &NodeKey) -> Result<Option<Node>, StoreError> {
        let row = sqlx::query!(
            "SELECT n.node_id, n.enrolled_at, n.last_seen_at, n.report
            FROM nodes n JOIN clusters c USING (cluster_id) WHERE c.name = $1 AND n.name = $2",
            key.cluster.as_str(),
            key.node.as_str(),
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            Ok(Node {
                id: NodeId(row.node_id),
                key: key.clone(),
                enrolled_at: row.enrolled_at.to_jiff(),
                last_seen_at: row.last_seen_at.to_jiff(),
                report: row.report.map(|r| read_json("nodes", "report", r)).transpose()?,
            })
        })
        .transpose()
    }

    /// At most `limit` nodes by cluster and name, those after `after`, of one cluster if given.
    pub async fn nodes(
        &self,
        cluster: Option<&ClusterName>,
        after: Option<&NodeKey>,
        limit: u32,
    ) -> Result<Vec<Node>, StoreError> {
        let rows = sqlx::query!(
            "SELECT n.node_id, c.name AS cluster, n.name AS node, n.enrolled_at, n.last_seen_at, n.report
            FROM nodes n JOIN clusters c USING (cluster_id)
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
                Ok(Node {
                    id: NodeId(row.node_id),
                    key: NodeKey {
                        cluster: parsed("clusters", "name", &row.cluster)?,
                        node: parsed("nodes", "name", &row.node)?,
                    },
                    enrolled_at: row.enrolled_at.to_jiff(),
                    last_seen_at: row.last_seen_at.to_jiff(),
                    report: row.report.map(|r| read_json("nodes", "report", r)).transpose()?,
                })
            })
            .collect()
    }

    /// The newest reports of these nodes; those that never reported are not in the answer.
    pub async fn reported(&self, nodes: &[NodeId]) -> Result<BTreeMap<NodeId, Reported>, StoreError> {
        let ids: Vec<Uuid> = nodes.iter().map(|node| node.0).collect();
        let rows = sqlx::query!(
            r#"SELECT node_id, last_seen_at, report AS "report!" FROM nodes
            WHERE node_id = ANY($1) AND report IS NOT NULL"#,
            &ids,
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                let reported = Reported {
                    report: read_json("nodes", "report", row.report)?,
                    reported_at: row.last_seen_at.to_jiff(),
                    moved_at: None,
                    last_seen_at: row.last_seen_at.to_jiff(),
                };
                Ok((NodeId(row.node_id), reported))
            })
            .collect()
    }
}

/// The assignments of these nodes have changed: raises their generation and wakes those who wait for it. Rows are locked
/// in the order of their identity, so that two rollouts can't lock each other out.
pub(super) async fn assignments_changed(connection: &mut PgConnection, nodes: &[Uuid]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE nodes SET assignment_generation = assignment_generation + 1
        FROM (SELECT node_id FROM nodes WHERE node_id = ANY($1) ORDER BY node_id FOR NO KEY UPDATE) AS locked
        WHERE nodes.node_id = locked.node_id",
        nodes,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "SELECT pg_notify('nftfleet_assignment', node_id::text) FROM UNNEST($1::uuid[]) AS changed (node_id)",
        nodes,
    )
    .execute(&mut *connection)
    .await?;
    Ok(())
}
