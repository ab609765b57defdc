//! The node's facts: collected from the host, and parsed by pure functions.

pub mod collect;
pub mod holes;
pub mod iptables;
pub mod parse;
pub mod proxy_mode;

pub use collect::{Paths, collect};
