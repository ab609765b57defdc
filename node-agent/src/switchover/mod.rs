//! A node's move from kube-proxy's rules to our table, and back.
//!
//! - [`position`]: where the move stands, as it is kept on disk
//! - [`decide`]: what comes next, purely from position, orders and time
//! - [`steps`]: the effects, each of which may be repeated without harm
//! - [`snapshot`]: a copy of the old rules
//! - [`old_rules`]: whether kube-proxy's rules are whole and of now
//! - [`cleanup`]: what of the iptables rules is kube-proxy's to remove, and its removal
//! - [`guarded`]: the dead-man's switch of another process, armed and disarmed
//! - [`run`]: the loop around them

pub mod cleanup;
pub mod decide;
pub mod guarded;
pub mod old_rules;
pub mod position;
pub mod run;
pub mod snapshot;
pub mod steps;
