//! Table `leases`.

use jiff::{SignedDuration, Timestamp};
use jiff_sqlx::ToSqlx;
use uuid::Uuid;

use super::{Store, StoreError};

impl Store {
    /// Takes or renews the lease of `task` for `holder`; false if another holds it.
    pub async fn hold_lease(
        &self,
        task: &str,
        holder: Uuid,
        now: Timestamp,
        how_long: SignedDuration,
    ) -> Result<bool, StoreError> {
        let until = now.saturating_add(how_long).unwrap_or(Timestamp::MAX);
        let done = sqlx::query!(
            "INSERT INTO leases AS l (task, holder, until) VALUES ($1, $2, $4)
            ON CONFLICT ON CONSTRAINT leases_pkey DO UPDATE SET holder = excluded.holder, until = excluded.until
            WHERE l.holder = excluded.holder OR l.until <= $3",
            task,
            holder,
            now.to_sqlx(),
            until.to_sqlx(),
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}
