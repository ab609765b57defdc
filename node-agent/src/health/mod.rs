//! What load balancers ask a node's service proxy for, answered as kube-proxy does.
//!
//! - [`state`]: the answers (pure)
//! - [`serve()`]: the ports that give them

mod serve;
pub mod state;

pub use serve::serve;
pub use state::{Answer, HealthInput};
