//! The server's side: the HTTP client, and the session that keeps reporting, asking and telling.

pub mod client;
pub mod session;

pub use client::{Client, ClientError};
