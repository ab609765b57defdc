//! A rollout as the tick sees it: rollout, requests, stages, tasks and nodes in one repeatable-read transaction.

use jiff::Timestamp;
use nftfleet_domain::ids::{Attempt, Generation, RolloutId, TaskId};
use nftfleet_domain::inventory::Report;
use nftfleet_domain::readiness::{Policy, ProxyMode, Reported, assess};
use nftfleet_domain::rollout::{Hold, Snapshot, TaskSnapshot};
use sqlx::PgConnection;

use super::{Store, StoreError, parsed, read_json, read_name, rollout_requests, stages, unsigned};

/// A snapshot, with what is needed to apply a tick to it.
#[derive(Clone, Debug)]
pub struct Read {
    /// What the tick sees.
    pub snapshot: Snapshot,
    /// What the rollout waited for.
    pub waiting_on: Vec<Hold>,
    /// The identities of the requests in the snapshot.
    pub requests: Vec<i64>,
}

impl Store {
    /// Reads a rollout, with the readiness of each node at `now`.
    pub async fn snapshot(&self, id: RolloutId, policy: &Policy, now: Timestamp) -> Result<Option<Read>, StoreError> {
        let mut transaction = self.reading().await?;
        let rollout = sqlx::query!(
            "SELECT generation, state, settings, waiting_on FROM rollouts WHERE rollout_id = $1",
            id.0,
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(rollout) = rollout else {
            return Ok(None);
        };
        let (request_ids, requests) = rollout_requests::open(&mut transaction, id).await?;
        let stages = stages::snapshot(&mut transaction, id).await?;
        let tasks = tasks(&mut transaction, id, policy, now).await?;
        Ok(Some(Read {
            snapshot: Snapshot {
                id,
                generation: Generation(rollout.generation),
                state: read_name("rollouts", "state", rollout.state)?,
                settings: read_json("rollouts", "settings", rollout.settings)?,
                requests,
                stages,
                tasks,
            },
            waiting_on: read_json("rollouts", "waiting_on", rollout.waiting_on)?,
            requests: request_ids,
        }))
    }
}

async fn tasks(
    connection: &mut PgConnection,
    rollout: RolloutId,
    policy: &Policy,
    now: Timestamp,
) -> Result<Vec<TaskSnapshot>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT t.task_id, t.generation, t.stage, n.name AS node, t.state, t.attempts, n.report, n.last_seen_at,
            n.reported_at,
            -- Needed only where a decision is still to be made.
            CASE WHEN t.state ->> 'state' = 'PENDING' THEN (
                SELECT max(e.at) FROM node_tasks other JOIN task_events e USING (task_id)
                WHERE other.node_id = t.node_id
                    AND other.state ->> 'state' IN ('CONFIRMED', 'REVERTED', 'TIMED_OUT', 'NEEDS_ATTENTION')
            ) END AS moved_at,
            EXISTS (
                SELECT FROM node_tasks other
                WHERE other.node_id = t.node_id AND other.under_way AND other.rollout_id <> t.rollout_id
            ) AS "busy_elsewhere!"
        FROM node_tasks t JOIN nodes n USING (node_id)
        WHERE t.rollout_id = $1 ORDER BY t.position"#,
        rollout.0,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let report: Option<Report> = row.report.map(|r| read_json("nodes", "report", r)).transpose()?;
            let mode = report.as_ref().map(|report| ProxyMode::told_by(&report.proxy));
            let last_seen_at = row.last_seen_at.to_jiff();
            let reported = report.map(|report| Reported {
                report,
                reported_at: row.reported_at.map_or(last_seen_at, jiff_sqlx::Timestamp::to_jiff),
                moved_at: row.moved_at.map(jiff_sqlx::Timestamp::to_jiff),
                last_seen_at,
            });
            Ok(TaskSnapshot {
                id: TaskId(row.task_id),
                generation: Generation(row.generation),
                stage: unsigned("node_tasks", "stage", row.stage)?,
                node: parsed("nodes", "name", &row.node)?,
                state: read_json("node_tasks", "state", row.state)?,
                attempts: Attempt(unsigned("node_tasks", "attempts", row.attempts)?),
                readiness: assess(reported.as_ref(), policy, now),
                mode,
                busy_elsewhere: row.busy_elsewhere,
            })
        })
        .collect()
}
