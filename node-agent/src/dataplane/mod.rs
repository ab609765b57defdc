//! The Service data plane: what the table should hold, what it holds, and one transaction from one to the other.

pub mod actor;
pub mod desired;
pub mod diff;
pub mod explain;
pub mod expression;
pub mod flows;
pub mod kernel;
pub mod layout;
pub mod leaving;
pub mod netlink;
pub mod place;
pub mod programmed;
pub mod reconcile;

pub use actor::{Actor, Status};
pub use desired::{Desired, Key, Update};
pub use kernel::{Kernel, KernelError};
pub use layout::{Layout, LayoutSettings};
pub use netlink::{Listener, Netlink};
pub use reconcile::Dataplane;
