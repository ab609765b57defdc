//! What a person on the node asks of the agent that runs there, over a Unix socket in its state folder: no server is needed.
//!
//! - [`protocol`]: what is asked and answered
//! - [`serve`]: the agent's side
//! - [`ask`]: the side of `nftfleet-agent switch`, `rollback` and `status`

pub mod ask;
pub mod protocol;
pub mod serve;
