//! Table `rollout_requests`: what people asked for.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use nftfleet_domain::ids::{Generation, RolloutId};
use nftfleet_domain::rollout::{Request, Underway};
use sqlx::PgConnection;

use super::{Applied, Store, StoreError, read_name, to_name};

impl Store {
    /// Adds a request for the next tick, if the rollout is still of the generation that was read.
    pub async fn add_request(
        &self,
        rollout: RolloutId,
        read_at: Generation,
        request: Request,
        reason: &str,
        now: Timestamp,
    ) -> Result<Applied, StoreError> {
        let (kind, underway) = match request {
            Request::Start => ("START", None),
            Request::Pause => ("PAUSE", None),
            Request::Resume => ("RESUME", None),
            Request::Abort(underway) => ("ABORT", Some(to_name(&underway))),
        };
        let done = sqlx::query!(
            "INSERT INTO rollout_requests (rollout_id, kind, underway, reason, at)
            SELECT rollout_id, $3, $4, $5, $6 FROM rollouts WHERE rollout_id = $1 AND generation = $2",
            rollout.0,
            read_at.0,
            kind,
            underway,
            reason,
            now.to_sqlx(),
        )
        .execute(&self.pool)
        .await?;
        Ok(if done.rows_affected() == 1 {
            Applied::Yes
        } else {
            Applied::Stale
        })
    }
}

/// The requests that were not acted on yet, oldest first, with their identities.
pub(super) async fn open(
    connection: &mut PgConnection,
    rollout: RolloutId,
) -> Result<(Vec<i64>, Vec<Request>), StoreError> {
    let rows = sqlx::query!(
        "SELECT request_id, kind, underway FROM rollout_requests
        WHERE rollout_id = $1 AND acted_on_at IS NULL ORDER BY request_id",
        rollout.0,
    )
    .fetch_all(connection)
    .await?;
    let mut ids = Vec::with_capacity(rows.len());
    let mut requests = Vec::with_capacity(rows.len());
    for row in rows {
        let wrong = |why: String| StoreError::Inconsistent {
            table: "rollout_requests",
            column: "kind",
            why,
        };
        ids.push(row.request_id);
        requests.push(match (row.kind.as_str(), row.underway) {
            ("START", None) => Request::Start,
            ("PAUSE", None) => Request::Pause,
            ("RESUME", None) => Request::Resume,
            ("ABORT", Some(underway)) => {
                Request::Abort(read_name::<Underway>("rollout_requests", "underway", underway)?)
            }
            (kind, underway) => return Err(wrong(format!("{kind} with {underway:?}"))),
        });
    }
    Ok((ids, requests))
}

/// Marks exactly these as acted on: one that came after the snapshot stays open.
pub(super) async fn acted_on(connection: &mut PgConnection, ids: &[i64], now: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE rollout_requests SET acted_on_at = $2 WHERE request_id = ANY($1) AND acted_on_at IS NULL",
        ids,
        now.to_sqlx(),
    )
    .execute(connection)
    .await?;
    Ok(())
}
