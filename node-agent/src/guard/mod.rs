//! The dead-man's switch as a process of its own: it puts the table to sleep when nobody disarms it in time, whatever has become
//! of the agent. It needs no server, no Kubernetes, no disk, and nothing of the agent.
//!
//! One guard listens in a network namespace: a container of the agent's pod, or one that the agent has started
//! because nobody listened.
//!
//! - [`protocol`]: what is asked and answered
//! - [`switch`]: when the table is to be put to sleep; pure
//! - [`process`]: the guard, one thread without a runtime
//! - [`conversation`]: who asks it, line by line
//! - [`client`]: how the agent asks

pub mod client;
mod conversation;
pub mod lines;
pub mod process;
pub mod protocol;
pub mod switch;

use std::path::PathBuf;
use std::time::Duration;

use client::{Client, GuardError};
use protocol::State;

/// The guard of this network namespace, for asynchronous callers. Every call ends within some five seconds.
#[derive(Clone, Debug)]
pub struct Guard {
    client: Client,
}

impl Guard {
    /// A guard that is started from this program if nobody listens.
    pub const fn new(program: PathBuf) -> Self {
        Self {
            client: Client::new(program),
        }
    }

    /// Arms it for an attempt, or sees that it is armed; starts one if nobody listens. It is armed when this returns.
    ///
    /// # Errors
    /// See [`GuardError`]; [`GuardError::Refused`] if it has fired for this attempt.
    pub async fn arm(&self, attempt: String, left: Duration) -> Result<(), GuardError> {
        self.blocking(move |client| client.arm(&attempt, left)).await
    }

    /// Sees that no guard is armed for an attempt. Where nobody listens, none is.
    ///
    /// # Errors
    /// See [`GuardError`]; then it may still fire.
    pub async fn disarm(&self, attempt: String) -> Result<(), GuardError> {
        self.blocking(move |client| client.disarm(&attempt)).await
    }

    /// Its state; none if nobody listens.
    ///
    /// # Errors
    /// See [`GuardError`].
    pub async fn query(&self) -> Result<Option<State>, GuardError> {
        self.blocking(Client::query).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Client) -> Result<T, GuardError> + Send + 'static,
    ) -> Result<T, GuardError> {
        let client = self.client.clone();
        let called = tokio::task::spawn_blocking(move || call(&client)).await;
        called.map_err(GuardError::Panicked)?
    }
}
