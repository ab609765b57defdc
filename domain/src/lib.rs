//! What nftfleet's things mean and what to do next.
//!
//! Nothing here does I/O, reads a clock or draws a random number: time and identities come in as arguments, so the same
//! input always gives the same answer. The server and the agent are thin shells around these decisions.
//!
//! - [`ids`]: names and identities, parsed once and valid ever after
//! - [`inventory`]: the facts that a node told us, without judgement
//! - [`readiness`]: facts to a verdict that names its reasons
//! - [`rollout`]: plan, snapshot and the pure `tick` that decides what a rollout does next
//! - [`assignment`]: the state machine of one node's piece of work
//! - [`service`]: Services and endpoints as plain values

pub mod assignment;
pub mod ids;
pub mod inventory;
pub mod readiness;
pub mod rollout;
pub mod service;
