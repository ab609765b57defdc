//! The one thread that talks to the kernel: it keeps the table in step with the Services while the switchover probes, waits
//! and asks for flips.
//!
//! Service changes and requests arrive on one queue. Whatever Service changes have piled up during a commit go into the next
//! one together; there is no fixed delay.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use jiff::Timestamp;
use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::{Endpoint, Protocol, Vip};
use tokio::sync::{oneshot, watch};

use super::desired::{Desired, Key, Update};
use super::kernel::{Kernel, KernelError};
use super::leaving::Grace;
use super::reconcile::Dataplane;
use crate::clock::Clock;

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
    /// When the table last held what was desired.
    pub synced: Option<Timestamp>,
    /// Since when it does not.
    pub pending: Option<Timestamp>,
}

/// UDP VIPs whose endpoints have changed, with those whose flows may go on.
pub type ServingUdp = BTreeMap<Vip, BTreeSet<Endpoint>>;

/// What the thread needs besides the kernel.
pub struct Surroundings {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Hears of UDP VIPs whose flows may have lost their endpoint.
    pub flows: Box<dyn FnMut(ServingUdp) + Send>,
    /// Returns when every packet that is on its way through the table at the call has left it.
    pub wait_for_packets: Box<dyn Fn() + Send>,
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
    Update(Update),
    ForeignEdit,
    Load(Reply),
    LoadActive(Reply),
    SetDormant(bool, Reply),
    Compare(Reply),
    Over(Grace),
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
        } = surroundings;
        let graces = start_waiting(wait_for_packets, requests.clone())?;
        let thread = Thread {
            dataplane,
            clock,
            flows,
            graces,
            desired: None,
            behind: Behind::default(),
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

    /// The status, for those who wait for its changes.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Tells what has changed of what is desired. If there is a table, it follows; if there is none, none is made.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn update(&self, update: Update) -> Result<(), RequestError> {
        let sent = self.requests.send(Request::Update(update));
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

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, RequestError>>) -> Request,
    ) -> Result<T, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).map_err(|_| RequestError::Gone)?;
        answer.await.map_err(|_| RequestError::Gone)?
    }
}

/// What the table may not hold yet.
#[derive(Default)]
struct Behind {
    /// These keys.
    keys: BTreeSet<Key>,
    /// Anything.
    all: bool,
    /// Whether the last try failed.
    failed: bool,
}

impl Behind {
    fn is_nothing(&self) -> bool {
        self.keys.is_empty() && !self.all
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

struct Thread<K> {
    dataplane: Dataplane<K>,
    clock: Arc<dyn Clock>,
    flows: Box<dyn FnMut(ServingUdp) + Send>,
    graces: Sender<Grace>,
    desired: Option<Desired>,
    behind: Behind,
    /// Whether the node has nothing else: a table that is gone or asleep is made and woken again.
    keep_active: bool,
    publish: watch::Sender<Status>,
}

impl<K: Kernel> Thread<K> {
    fn run(mut self, inbox: &Receiver<Request>) {
        self.publish_state();
        loop {
            let first = match inbox.recv_timeout(if self.behind.failed { RETRY } else { AUDIT }) {
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
            if !self.behind.is_nothing() {
                self.follow();
            }
            if let Some(grace) = self.dataplane.begin_grace() {
                // That thread ends only when this one does.
                self.graces.send(grace).ok();
            }
            self.note_synced();
            self.publish_state();
        }
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Update(update) => {
                // How pods are told apart is in rules, which every follow-up compares.
                self.behind.all |= update.pods.is_some();
                let keys = self.desired.get_or_insert_default().apply(update);
                self.behind.keys.extend(keys);
                self.note_pending();
            }
            Request::ForeignEdit => {
                tracing::warn!("somebody else may have written into the table; reading it");
                self.dataplane.forget();
                self.behind.all = true;
                self.note_pending();
            }
            Request::Load(reply) => {
                let done = self.load(true);
                self.answer(reply, done);
            }
            Request::LoadActive(reply) => {
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
            Request::Over(grace) => self.leave(grace),
            Request::State(reply) => {
                let state = self.dataplane.state().map_err(|error| self.failed(error));
                drop(reply.send(state));
            }
        }
    }

    fn note_pending(&self) {
        let now = self.clock.now();
        self.publish
            .send_modify(|status| status.pending = status.pending.or(Some(now)));
    }

    /// Whoever hears the answer may look at the status next, so that is told first. Nobody waiting any more is no error.
    fn answer(&mut self, reply: Reply, done: Result<(), RequestError>) {
        self.publish_state();
        drop(reply.send(done));
    }

    /// Looks whether the table is as it was left.
    fn audit(&mut self) {
        match self.dataplane.state() {
            Ok(state) => self.behind.all |= self.keep_active && state != TableState::Active,
            Err(error) => {
                tracing::error!(%error, "the table could not be looked at");
                self.failed(error);
            }
        }
    }

    /// Brings an existing table up to date, and makes it anew where the node has nothing else.
    fn follow(&mut self) {
        let done = match &self.desired {
            None => return,
            Some(desired) if !self.behind.all => {
                let done = self.dataplane.follow(desired, &self.behind.keys);
                self.committed(done)
            }
            Some(_) => {
                self.dataplane.note_changed(&self.behind.keys);
                self.follow_all()
            }
        };
        match done {
            Ok(()) => self.behind = Behind::default(),
            Err(error) => self.fell_behind(&error),
        }
    }

    fn fell_behind(&mut self, error: &RequestError) {
        // What is wrong may be more than what was being written.
        self.behind.all = true;
        self.behind.failed = true;
        tracing::error!(%error, "the table does not follow the Services; trying again");
    }

    /// Takes away what packets no longer look for.
    fn leave(&mut self, grace: Grace) {
        // What has changed since waits for the next grace period.
        if !self.behind.is_nothing() {
            self.follow();
        }
        let Some(desired) = &self.desired else { return };
        let done = self.dataplane.leave(desired, grace);
        if let Err(error) = self.committed(done) {
            self.fell_behind(&error);
        }
    }

    /// The table holds what is desired and nothing else, if so.
    fn note_synced(&mut self) {
        let is_pending = self.publish.borrow().pending.is_some();
        if !is_pending || !self.behind.is_nothing() || !self.dataplane.is_settled() {
            return;
        }
        let now = self.clock.now();
        self.publish.send_modify(|status| {
            status.synced = Some(now);
            status.pending = None;
        });
    }

    fn follow_all(&mut self) -> Result<(), RequestError> {
        if self.keep_active {
            return self.load(false).and_then(|()| self.set_dormant(false));
        }
        match self.dataplane.state() {
            Ok(TableState::Absent) => Ok(()),
            Ok(_) => self.load(true),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn load(&mut self, dormant: bool) -> Result<(), RequestError> {
        let desired = self.desired.as_ref().ok_or(RequestError::NotSynced)?;
        let done = self.dataplane.load(desired, dormant);
        self.committed(done)
    }

    /// Counts what was committed, and has flows of UDP that it left behind cut off.
    fn committed(&mut self, done: Result<usize, KernelError>) -> Result<(), RequestError> {
        let commits = done.map_err(|error| self.failed(error))?;
        self.publish.send_modify(|status| status.commits += commits as u64);
        let changed = self.dataplane.take_changed_udp();
        if self.dataplane.is_active() {
            self.cut_flows(changed.iter());
        }
        Ok(())
    }

    fn cut_flows<'a>(&mut self, vips: impl Iterator<Item = &'a Vip>) {
        let Some(desired) = &self.desired else { return };
        let serving = |vip: &Vip| {
            let frontend = desired.frontends.get(vip)?;
            Some((*vip, frontend.serving.iter().copied().collect()))
        };
        let serving: ServingUdp = vips.filter_map(serving).collect();
        if !serving.is_empty() {
            (self.flows)(serving);
        }
    }

    fn set_dormant(&mut self, dormant: bool) -> Result<(), RequestError> {
        let was_active = self.dataplane.is_active();
        self.dataplane
            .set_dormant(dormant)
            .map_err(|error| self.failed(error))?;
        if !dormant && !was_active {
            // Until now that was the old proxy's business.
            let udp = self.desired.iter().flat_map(|desired| desired.frontends.keys());
            let udp: Vec<Vip> = udp.filter(|vip| vip.protocol == Protocol::Udp).copied().collect();
            self.cut_flows(udp.iter());
        }
        Ok(())
    }

    fn compare(&mut self) -> Result<(), RequestError> {
        // What arrived with the question is no difference.
        if !self.behind.is_nothing() {
            self.follow();
        }
        let desired = self.desired.as_ref().ok_or(RequestError::NotSynced)?;
        let differences = self.dataplane.compare(desired).map_err(|error| self.failed(error))?;
        if differences.is_empty() {
            return Ok(());
        }
        self.behind.all = true;
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
        let table = match self.dataplane.known_state() {
            Some(table) => Ok(table),
            None => self.dataplane.state(),
        };
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
