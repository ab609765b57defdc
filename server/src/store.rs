//! The SQL: one file per table, taking and returning domain values.
//!
//! Queries are checked at compile time against the migrations; `scripts/sqlx-prepare` writes what the compiler needs for
//! that into `.sqlx`, so that a build needs no database. Every change of a state names the generation that was read and
//! loses if it moved ([`Applied::Stale`]).

mod agents;
mod apply;
mod clusters;
mod enrolment_tokens;
mod leases;
mod node_tasks;
mod nodes;
mod rollout_requests;
mod rollouts;
mod snapshot;
mod stages;
#[cfg(test)]
mod tests;

pub use agents::{Agent, Credential, EnrolError, NewAgent};
pub use clusters::{Cluster, CreateClusterError};
pub use node_tasks::{Assigned, ListedTask, NodeTask, UnderWay};
pub use nodes::{Node, NodeKey, Recorded};
pub use rollouts::{Head, Rollout, Stage};
pub use snapshot::Read;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::migrate::Migrator;
use sqlx::{PgPool, Postgres, Transaction};

/// Every migration, in order.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// Whether the store can be used, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    /// The migrations have run.
    Yes,
    /// Not yet.
    No(String),
}

impl Default for Ready {
    fn default() -> Self {
        Self::No("the database has not been reached yet".to_owned())
    }
}

/// Why the store could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres can't be reached or is going down: trying again may help.
    #[error("Postgres can't be reached")]
    Unreachable(#[source] sqlx::Error),
    /// A query failed.
    #[error("a query failed")]
    Query(#[source] sqlx::Error),
    /// A row holds what no version of this service writes.
    #[error("{table}.{column} holds what it can't: {why}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let unreachable = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            // Connection exceptions, too many connections, and a server that shuts down or starts up.
            sqlx::Error::Database(database) => database
                .code()
                .is_some_and(|code| code.starts_with("08") || code.starts_with("57P") || code == "53300"),
            _ => false,
        };
        if unreachable {
            Self::Unreachable(error)
        } else {
            Self::Query(error)
        }
    }
}

/// Whether a change was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was.
    Yes,
    /// Something had changed since it was read; nothing was done.
    Stale,
}

/// The data. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
}

impl Store {
    /// The store behind `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Whether Postgres answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query_scalar!("SELECT 1").fetch_one(&self.pool).await?;
        Ok(())
    }

    /// Where Postgres is, for people.
    pub fn place(&self) -> String {
        let options = self.pool.connect_options();
        match options.get_socket() {
            Some(socket) => format!("the socket in {}", socket.display()),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        }
    }

    /// The connections, for listening to notifications.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Ends every connection.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A transaction that sees one state of the database throughout.
    async fn reading(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        Ok(self.pool.begin_with(begin).await?)
    }
}

/// A value as text read from a column.
fn parsed<T>(table: &'static str, column: &'static str, text: &str) -> Result<T, StoreError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse().map_err(|error: T::Err| StoreError::Inconsistent {
        table,
        column,
        why: error.to_string(),
    })
}

/// A value as JSON read from a column.
fn read_json<T: DeserializeOwned>(
    table: &'static str,
    column: &'static str,
    value: serde_json::Value,
) -> Result<T, StoreError> {
    serde_json::from_value(value).map_err(|error| StoreError::Inconsistent {
        table,
        column,
        why: error.to_string(),
    })
}

/// A unit variant read from a text column.
fn read_name<T: DeserializeOwned>(table: &'static str, column: &'static str, name: String) -> Result<T, StoreError> {
    read_json(table, column, serde_json::Value::String(name))
}

/// A value as JSON for a column.
fn to_json<T: Serialize>(value: &T) -> serde_json::Value {
    serde_json::to_value(value).expect("domain values have text keys only")
}

/// A unit variant's name for a text column.
fn to_name<T: Serialize>(value: &T) -> String {
    match to_json(value) {
        serde_json::Value::String(name) => name,
        other => other.to_string(),
    }
}

/// A whole number read from a column that never holds a negative one.
fn unsigned<N>(table: &'static str, column: &'static str, number: N) -> Result<u32, StoreError>
where
    N: Copy + std::fmt::Display + TryInto<u32>,
{
    number.try_into().map_err(|_| StoreError::Inconsistent {
        table,
        column,
        why: format!("{number} is not a count"),
    })
}

/// A count from `count(*)`, which is never negative.
fn counted(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}
