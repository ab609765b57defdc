//! One file per check: report and policy in, finding out.

pub mod cni;
pub mod kernel;
pub mod left_overs;
pub mod nft;
pub mod outdated;
pub mod proxy_mode;
pub mod silence;

pub use super::verdict::Finding;
