//! The one thread that talks to the kernel: it keeps the table in step with the Services while the switchover probes, waits
//! and asks for flips.
//!
//! Service changes and requests arrive on one queue. Whatever Service changes have piled up during a commit go into the next
//! one together; there is no fixed delay.

mod thread;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::{Endpoint, Vip};
use tokio::sync::{oneshot, watch};

use super::desired::{Desired, Heard, Update};
use super::kernel::{Kernel, KernelError};
use super::leaving::Grace;
use super::reconcile::{Dataplane, Written};
use crate::clock::Clock;
use thread::{Hearers, Thread};

/// What the data plane is doing, for reports and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Whether the table is there and hooked in.
    pub table: TableState,
    /// How many elements it holds.
    pub elements: usize,
    /// Commits since the start.
    pub commits: u64,
    /// Failed commits and reads since the start.
    pub failures: u64,
    /// When the table last held what was desired.
    pub synced: Option<Timestamp>,
    /// Since when it does not.
    pub pending: Option<Timestamp>,
}

/// UDP VIPs whose endpoints have changed, with those whose flows may go on.
pub type ServingUdp = BTreeMap<Vip, BTreeSet<Endpoint>>;

/// What is told of UDP VIPs whose endpoints change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flows {
    /// Before it is written: from now on a flow may go to one of these, and a look that is under way must leave it alone.
    Coming(ServingUdp),
    /// After: flows to any other are to be cut off.
    Changed(ServingUdp),
}

/// One round of writing that came to its end.
#[derive(Clone, Debug)]
pub struct Round {
    /// From the look at what differs to the kernel's last word.
    pub took: Duration,
    /// For how long the first of the changes had waited before.
    pub queued: Duration,
    /// Whether everything was looked at, or only what had changed.
    pub full: bool,
    /// What was written.
    pub written: Written,
    /// What was heard from Kubernetes and is in the table now.
    pub heard: Heard,
}

/// What the thread needs besides the kernel.
pub struct Surroundings {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Hears of UDP VIPs whose flows may have lost their endpoint.
    pub flows: Box<dyn FnMut(Flows) + Send>,
    /// Returns when every packet that is on its way through the table at the call has left it.
    pub wait_for_packets: Box<dyn Fn() + Send>,
    /// Hears of every round of writing.
    pub rounds: Box<dyn FnMut(Round) + Send>,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").finish_non_exhaustive()
    }
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The Services are not all known yet: writing now would wipe those that are missing.
    #[error("the Services are not all known yet")]
    NotSynced,
    /// The table does not hold what is desired; the text names the first differences.
    #[error("the table that was read back differs: {0}")]
    Differs(String),
    /// The thread has ended.
    #[error("the data plane's thread has ended")]
    Gone,
}

type Reply = oneshot::Sender<Result<(), RequestError>>;

enum Request {
    Update(Box<Update>, Instant),
    ForeignEdit,
    Load(Reply),
    LoadActive(Reply),
    SetDormant(bool, Reply),
    Compare(Reply),
    Over(Grace),
    State(oneshot::Sender<Result<TableState, RequestError>>),
    Desired(oneshot::Sender<Result<Desired, RequestError>>),
}

/// A handle to the thread.
#[derive(Clone, Debug)]
pub struct Actor {
    requests: Sender<Request>,
    status: watch::Receiver<Status>,
}

impl Actor {
    /// Starts the thread. The kernel must have been opened in the network namespace that is meant.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(
        dataplane: Dataplane<impl Kernel + Send + 'static>,
        surroundings: Surroundings,
    ) -> std::io::Result<Self> {
        let (requests, inbox) = channel();
        let start = Status {
            table: TableState::Absent,
            elements: 0,
            commits: 0,
            failures: 0,
            synced: None,
            pending: None,
        };
        let (publish, status) = watch::channel(start);
        let Surroundings {
            clock,
            flows,
            wait_for_packets,
            rounds,
        } = surroundings;
        let graces = start_waiting(wait_for_packets, requests.clone())?;
        let thread = Thread::new(dataplane, clock, Hearers { flows, rounds }, graces, publish);
        std::thread::Builder::new()
            .name("dataplane".to_owned())
            .spawn(move || thread.run(&inbox))?;
        Ok(Self { requests, status })
    }

    /// What the data plane is doing.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The status, for those who wait for its changes.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Tells what has changed of what is desired. If there is a table, it follows; if there is none, none is made.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn update(&self, update: Update) -> Result<(), RequestError> {
        let sent = self.requests.send(Request::Update(Box::new(update), Instant::now()));
        sent.map_err(|_| RequestError::Gone)
    }

    /// Tells that somebody else wrote into the table, or may have.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn foreign_edit(&self) -> Result<(), RequestError> {
        let sent = self.requests.send(Request::ForeignEdit);
        sent.map_err(|_| RequestError::Gone)
    }

    /// Waits until the thread ends, which it never does by itself.
    pub async fn ended(&self) {
        let mut status = self.status.clone();
        while status.changed().await.is_ok() {}
    }

    /// Makes the table hold all Services, dormant if there was none.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn load(&self) -> Result<(), RequestError> {
        self.ask(Request::Load).await
    }

    /// The same, and makes the table active, and keeps it so from now on whatever others do to it.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn load_active(&self) -> Result<(), RequestError> {
        self.ask(Request::LoadActive).await
    }

    /// Flips the table, in one transaction.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn set_dormant(&self, dormant: bool) -> Result<(), RequestError> {
        self.ask(|reply| Request::SetDormant(dormant, reply)).await
    }

    /// Reads the table back and compares it with the Services.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn compare(&self) -> Result<(), RequestError> {
        self.ask(Request::Compare).await
    }

    /// Whether the table is there and hooked in, asked of the kernel.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn state(&self) -> Result<TableState, RequestError> {
        self.ask(Request::State).await
    }

    /// What the Services mean now.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn desired(&self) -> Result<Desired, RequestError> {
        self.ask(Request::Desired).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, RequestError>>) -> Request,
    ) -> Result<T, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).map_err(|_| RequestError::Gone)?;
        answer.await.map_err(|_| RequestError::Gone)?
    }
}

/// Starts the thread that waits for packets while the other one goes on writing. It ends with that one.
fn start_waiting(wait_for_packets: Box<dyn Fn() + Send>, requests: Sender<Request>) -> std::io::Result<Sender<Grace>> {
    let (graces, begun) = channel();
    std::thread::Builder::new().name("grace".to_owned()).spawn(move || {
        for grace in begun {
            wait_for_packets();
            if requests.send(Request::Over(grace)).is_err() {
                return;
            }
        }
    })?;
    Ok(graces)
}
