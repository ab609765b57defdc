//! Table `enrolment_tokens`.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use nftfleet_domain::ids::ClusterName;

use super::{Store, StoreError, counted};
use crate::secret::SecretHash;

impl Store {
    /// Keeps a token of `cluster`; false if there is no such cluster.
    pub async fn create_enrolment_token(
        &self,
        cluster: &ClusterName,
        token: SecretHash,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "INSERT INTO enrolment_tokens (token_hash, cluster_id, created_at, expires_at)
            SELECT $2, cluster_id, $3, $4 FROM clusters WHERE name = $1",
            cluster.as_str(),
            &token.0,
            now.to_sqlx(),
            expires_at.to_sqlx(),
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Deletes the tokens that have expired, and says how many there were.
    pub async fn delete_expired_tokens(&self, now: Timestamp) -> Result<u64, StoreError> {
        let deleted = sqlx::query_scalar!(
            r#"WITH gone AS (DELETE FROM enrolment_tokens WHERE expires_at <= $1 RETURNING 1)
            SELECT count(*) AS "count!" FROM gone"#,
            now.to_sqlx(),
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(counted(deleted))
    }
}
