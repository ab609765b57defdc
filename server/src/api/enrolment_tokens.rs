//! Tokens that let agents in.

pub(super) mod create;
