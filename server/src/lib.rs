//! The central service of nftfleet: inventory, readiness and staged rollouts over REST, with a Postgres store.
//!
//! - [`config`]: flags and environment
//! - [`service`]: everything wired together, started and stopped
//! - [`api`]: one file per endpoint, mounted from the list in `web-api-spec`; `api::problem` alone makes errors into
//!   answers
//! - [`store`]: the SQL, one file per table; takes and returns domain values
//! - [`tasks`]: what runs in the background, on a period and on a nudge
//! - [`embedded`]: a private Postgres for a server without a database of its own
//! - [`telemetry`]: logs and metrics
//! - [`clock`]: time, identities and secrets, handed in by `main`
//!
//! Decisions are not made here but in `nftfleet-domain`.

pub mod api;
pub mod app;
pub mod clock;
pub mod config;
pub mod embedded;
pub mod secret;
pub mod service;
pub mod store;
pub mod tasks;
pub mod telemetry;
#[cfg(test)]
mod testing;
