//! Kubernetes' side: watches Services, EndpointSlices, the node and `ServiceCIDR`s, and keeps what they mean for the data
//! plane.

mod choice;
mod conflicts;
mod few;
mod id;
pub mod index;
pub mod known;
pub mod kube_proxy;
pub mod meaning;
pub mod object;
mod objects;
pub mod place;
pub mod watch;

pub use index::{Conflict, Index, IndexSettings, Kind};
pub use known::Event;
pub use meaning::{HealthCheck, NoLocal};
pub use object::Object;
pub use place::{LocalTraffic, NodePortAddresses};
pub use watch::Services;
