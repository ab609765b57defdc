//! Kubernetes' side: watches Services and EndpointSlices, and keeps what they mean for the data plane.

pub mod index;
pub mod object;
pub mod watch;

pub use index::{Index, View};
