//! Clients that notice when something is lost: new connections, queries and long-lived connections.
//!
//! They stand for users during a move of the data plane. None of them ever tries anything twice: a retry would hide
//! exactly the loss that a test looks for.

mod ask;
mod counts;
mod long_lived;
mod stream_of;

pub use ask::{tcp_identity, tcp_identity_from, udp_identity, udp_identity_from};
pub use counts::{Counts, Failure};
pub use long_lived::{LongLived, LongLivedStatus};
pub use stream_of::{NewConnections, UdpQueries};
