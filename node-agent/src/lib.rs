//! The agent of one node.
//!
//! - [`facts`]: what the node is, collected and parsed
//! - [`control`]: the conversation with the server
//! - [`kube`]: what the Services of the cluster mean
//! - [`dataplane`]: the table in the kernel
//! - [`guard`]: the dead-man's switch, a process of its own
//! - [`ipvs`]: what kube-proxy's IPVS mode left in the kernel, and how it is taken over and removed
//! - [`local`]: what a person on the node asks
//! - [`switchover`]: the node's move, and the way back
//! - [`node_addresses`]: the node's own addresses
//! - [`probe`]: does the data plane answer
//! - [`health`]: what load balancers ask a node for
//! - [`host`], [`clock`], [`disk`]: the outside world, as arguments
//! - [`pause`]: between two tries
//! - [`memory`]: how the heap is kept

pub mod clock;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod disk;
pub mod facts;
pub mod guard;
pub mod health;
pub mod host;
pub mod ipvs;
pub mod kube;
pub mod local;
pub mod memory;
pub mod node_addresses;
pub mod pause;
pub mod probe;
pub mod switchover;
pub mod telemetry;
