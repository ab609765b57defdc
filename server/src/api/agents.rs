//! Enrolled agents, as operators see them.

pub(super) mod list;
