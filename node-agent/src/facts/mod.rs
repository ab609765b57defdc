//! The node's facts: collected from the host, and parsed by pure functions.

pub mod collect;
pub mod iptables;
pub mod parse;

pub use collect::{Paths, collect};
