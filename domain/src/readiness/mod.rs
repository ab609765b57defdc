//! Facts to a verdict. One file per check, each a pure function from report and policy to its finding.

pub mod check;
pub mod mode;
mod verdict;

pub use mode::{ProxyMode, left_overs, owner_of_link};
pub use verdict::{Policy, Reason, Reported, Verdict, assess, warnings};
