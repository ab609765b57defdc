//! A node's move from kube-proxy's rules to our table, and back.
//!
//! - [`position`]: where the move stands, as it is kept on disk
//! - [`decide`]: what comes next, purely from position, assignment and time
//! - [`steps`]: the effects, each of which may be repeated without harm
//! - [`guarded`]: the dead-man's switch of another process, armed and disarmed
//! - [`cleanup`]: what of the iptables rules is kube-proxy's to remove
//! - [`run`]: the loop around them

pub mod cleanup;
pub mod decide;
pub mod guarded;
pub mod position;
pub mod run;
pub mod steps;
