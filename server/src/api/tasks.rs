//! A rollout's nodes.

pub(super) mod list;
