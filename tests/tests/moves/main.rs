//! Moves of whole nodes: shipped server, shipped agents, real kernel, real packets.

mod crash;
mod database;
mod foreign;
mod from;
mod guard;
mod guard_alone;
mod ledger;
mod reboot;
mod rollout;
mod services;
