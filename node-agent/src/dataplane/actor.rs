//! The one thread that talks to the kernel: it keeps the table in step with the Services while the switchover probes, waits
//! and asks for flips.
//!
//! Service changes and requests arrive on one queue. Whatever Service changes have piled up during a commit go into the next
//! one together; there is no fixed delay.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use nftfleet_domain::inventory::TableState;
use tokio::sync::{oneshot, watch};

use super::desired::Desired;
use super::kernel::{Kernel, KernelError};
use super::reconcile::Dataplane;

/// How long after a refused commit it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often the kernel is asked whether the table is still there and hooked in as it was left.
const AUDIT: Duration = Duration::from_secs(10);

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
    Services(Arc<Desired>),
    Load(Arc<Desired>, Reply),
    LoadActive(Arc<Desired>, Reply),
    SetDormant(bool, Reply),
    Compare(Reply),
    State(oneshot::Sender<Result<TableState, RequestError>>),
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
    pub fn start(dataplane: Dataplane<impl Kernel + Send + 'static>) -> std::io::Result<Self> {
        let (requests, inbox) = channel();
        let start = Status {
            table: TableState::Absent,
            elements: 0,
            commits: 0,
            failures: 0,
        };
        let (publish, status) = watch::channel(start);
        let thread = Thread {
            dataplane,
            desired: None,
            behind: false,
            keep_active: false,
            publish,
        };
        std::thread::Builder::new()
            .name("dataplane".to_owned())
            .spawn(move || thread.run(&inbox))?;
        Ok(Self { requests, status })
    }

    /// What the data plane is doing.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Tells all Services anew. If there is a table, it follows; if there is none, none is made.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn services(&self, desired: Arc<Desired>) -> Result<(), RequestError> {
        let sent = self.requests.send(Request::Services(desired));
        sent.map_err(|_| RequestError::Gone)
    }

    /// Waits until the thread ends, which it never does by itself.
    pub async fn ended(&self) {
        let mut status = self.status.clone();
        while status.changed().await.is_ok() {}
    }

    /// Makes the table hold all Services, dormant if there was none: those given, or newer ones if they were told already.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn load(&self, desired: Arc<Desired>) -> Result<(), RequestError> {
        self.ask(|reply| Request::Load(desired, reply)).await
    }

    /// The same, and makes the table active, and keeps it so from now on whatever others do to it.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn load_active(&self, desired: Arc<Desired>) -> Result<(), RequestError> {
        self.ask(|reply| Request::LoadActive(desired, reply)).await
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

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, RequestError>>) -> Request,
    ) -> Result<T, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).map_err(|_| RequestError::Gone)?;
        answer.await.map_err(|_| RequestError::Gone)?
    }
}

struct Thread<K> {
    dataplane: Dataplane<K>,
    desired: Option<Arc<Desired>>,
    /// Whether the table may not hold what is desired.
    behind: bool,
    /// Whether the node has nothing else: a table that is gone or asleep is made and woken again.
    keep_active: bool,
    publish: watch::Sender<Status>,
}

impl<K: Kernel> Thread<K> {
    fn run(mut self, inbox: &Receiver<Request>) {
        self.publish_state();
        loop {
            let first = match inbox.recv_timeout(if self.behind { RETRY } else { AUDIT }) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if first.is_none() {
                self.audit();
            }
            for request in first.into_iter().chain(inbox.try_iter()) {
                self.handle(request);
            }
            if self.behind {
                self.follow();
            }
            self.publish_state();
        }
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Services(desired) => {
                self.desired = Some(desired);
                self.behind = true;
            }
            Request::Load(desired, reply) => {
                self.desired.get_or_insert(desired);
                let done = self.load(true);
                self.answer(reply, done);
            }
            Request::LoadActive(desired, reply) => {
                self.desired.get_or_insert(desired);
                self.keep_active = true;
                let done = self.load(false).and_then(|()| self.set_dormant(false));
                self.answer(reply, done);
            }
            Request::SetDormant(dormant, reply) => {
                self.keep_active &= !dormant;
                let done = self.set_dormant(dormant);
                self.answer(reply, done);
            }
            Request::Compare(reply) => {
                let done = self.compare();
                self.answer(reply, done);
            }
            Request::State(reply) => {
                let state = self.dataplane.state().map_err(|error| self.failed(error));
                drop(reply.send(state));
            }
        }
    }

    /// Whoever hears the answer may look at the status next, so that is told first. Nobody waiting any more is no error.
    fn answer(&mut self, reply: Reply, done: Result<(), RequestError>) {
        self.publish_state();
        drop(reply.send(done));
    }

    /// Looks whether the table is as it was left.
    fn audit(&mut self) {
        match self.dataplane.state() {
            Ok(state) => self.behind |= self.keep_active && state != TableState::Active,
            Err(error) => {
                tracing::error!(%error, "the table could not be looked at");
                self.failed(error);
            }
        }
    }

    /// Brings an existing table up to date, and makes it anew where the node has nothing else.
    fn follow(&mut self) {
        let done = match self.dataplane.state() {
            Ok(_) if self.keep_active => self.load(false).and_then(|()| self.set_dormant(false)),
            Ok(TableState::Absent) => Ok(()),
            Ok(_) => self.load(true),
            Err(error) => Err(self.failed(error)),
        };
        match done {
            Ok(()) => self.behind = false,
            Err(RequestError::NotSynced) => {}
            Err(error) => tracing::error!(%error, "the table does not follow the Services; trying again"),
        }
    }

    fn load(&mut self, dormant: bool) -> Result<(), RequestError> {
        let desired = self.desired.clone().ok_or(RequestError::NotSynced)?;
        let commits = self
            .dataplane
            .load(&desired, dormant)
            .map_err(|error| self.failed(error))?;
        self.publish.send_modify(|status| status.commits += commits as u64);
        Ok(())
    }

    fn set_dormant(&mut self, dormant: bool) -> Result<(), RequestError> {
        self.dataplane.set_dormant(dormant).map_err(|error| self.failed(error))
    }

    fn compare(&mut self) -> Result<(), RequestError> {
        let desired = self.desired.clone().ok_or(RequestError::NotSynced)?;
        let differences = self.dataplane.compare(&desired).map_err(|error| self.failed(error))?;
        if differences.is_empty() {
            return Ok(());
        }
        self.behind = true;
        let shown: Vec<&str> = differences.iter().take(5).map(String::as_str).collect();
        Err(RequestError::Differs(format!(
            "{} differences, first {}",
            differences.len(),
            shown.join("; ")
        )))
    }

    fn failed(&self, error: KernelError) -> RequestError {
        self.publish.send_modify(|status| status.failures += 1);
        RequestError::Kernel(error)
    }

    fn publish_state(&mut self) {
        let table = self.dataplane.state();
        let elements = self.dataplane.elements();
        self.publish.send_modify(|status| {
            status.elements = elements;
            match table {
                Ok(table) => status.table = table,
                Err(_) => status.failures += 1,
            }
        });
    }
}
