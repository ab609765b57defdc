//! What the thread does: takes requests in turn, and keeps the table in step.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::{Protocol, Vip};
use tokio::sync::watch;

use super::{Flows, Reply, Request, RequestError, Round, ServingUdp, Status};
use crate::clock::Clock;
use crate::dataplane::desired::{Desired, Heard, Key};
use crate::dataplane::kernel::{Kernel, KernelError};
use crate::dataplane::leaving::Grace;
use crate::dataplane::reconcile::Dataplane;

/// How long after a refused commit it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often the kernel is asked whether the table is still there and hooked in as it was left.
const AUDIT: Duration = Duration::from_secs(10);

/// What the table may not hold yet.
#[derive(Default)]
struct Behind {
    /// These keys.
    keys: BTreeSet<Key>,
    /// Anything.
    all: bool,
    /// Whether the last try failed.
    failed: bool,
    /// Since when something waits.
    since: Option<Instant>,
    /// What was heard from Kubernetes and is not in the table yet.
    heard: Heard,
}

impl Behind {
    fn is_nothing(&self) -> bool {
        self.keys.is_empty() && !self.all
    }
}

/// Who hears what the thread does; see [`super::Surroundings`].
pub(super) struct Hearers {
    /// Of UDP VIPs whose flows may have lost their endpoint.
    pub flows: Box<dyn FnMut(Flows) + Send>,
    /// Of every round of writing.
    pub rounds: Box<dyn FnMut(Round) + Send>,
}

/// The thread's own.
pub(super) struct Thread<K> {
    dataplane: Dataplane<K>,
    clock: Arc<dyn Clock>,
    hearers: Hearers,
    graces: Sender<Grace>,
    desired: Option<Desired>,
    behind: Behind,
    /// Whether somebody else may have written while this thread did.
    disturbed: bool,
    /// Whether the node has nothing else: a table that is gone or asleep is made and woken again.
    keep_active: bool,
    publish: watch::Sender<Status>,
}

impl<K: Kernel> Thread<K> {
    /// A thread that knows of no Service yet.
    pub fn new(
        dataplane: Dataplane<K>,
        clock: Arc<dyn Clock>,
        hearers: Hearers,
        graces: Sender<Grace>,
        publish: watch::Sender<Status>,
    ) -> Self {
        Self {
            dataplane,
            clock,
            hearers,
            graces,
            desired: None,
            behind: Behind::default(),
            disturbed: false,
            keep_active: false,
            publish,
        }
    }

    /// Handles requests until nobody can send any more.
    pub fn run(mut self, inbox: &Receiver<Request>) {
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
            loop {
                if !self.behind.is_nothing() {
                    self.follow();
                }
                if !std::mem::take(&mut self.disturbed) {
                    break;
                }
                self.read_again();
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
            Request::Update(mut update, told) => {
                self.behind.since.get_or_insert(told);
                self.behind.heard.extend(std::mem::take(&mut update.heard));
                // How pods are told apart is in rules, which every follow-up compares.
                self.behind.all |= update.pods.is_some();
                let keys = self.desired.get_or_insert_default().apply(*update);
                self.behind.keys.extend(keys);
                self.note_pending();
            }
            Request::ForeignEdit => self.read_again(),
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
            Request::Desired(reply) => {
                drop(reply.send(self.desired.clone().ok_or(RequestError::NotSynced)));
            }
        }
    }

    /// Somebody else wrote into the table, or may have.
    fn read_again(&mut self) {
        tracing::warn!("somebody else may have written into the table; reading it");
        self.dataplane.forget();
        self.behind.all = true;
        self.note_pending();
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
        self.tell_coming();
        let done = match &self.desired {
            None => return,
            Some(desired) if !self.behind.all => {
                let begun = Instant::now();
                let done = self.dataplane.follow(desired, &self.behind.keys);
                self.committed(done, begun, false)
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
        let begun = Instant::now();
        let done = self.dataplane.leave(desired, grace);
        if let Err(error) = self.committed(done, begun, false) {
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
            Ok(TableState::Absent) => self.committed(Ok(0), Instant::now(), true),
            Ok(_) => self.load(true),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn load(&mut self, dormant: bool) -> Result<(), RequestError> {
        let desired = self.desired.as_ref().ok_or(RequestError::NotSynced)?;
        let begun = Instant::now();
        let done = self.dataplane.load(desired, dormant);
        self.committed(done, begun, true)
    }

    /// Tells what was committed, and has flows of UDP that it left behind cut off.
    fn committed(&mut self, done: Result<usize, KernelError>, begun: Instant, full: bool) -> Result<(), RequestError> {
        let written = self.dataplane.take_written();
        self.publish.send_modify(|status| status.commits += written.commits);
        done.map_err(|error| self.failed(error))?;
        let mut heard = std::mem::take(&mut self.behind.heard);
        if self.dataplane.known_state() == Some(TableState::Absent) {
            heard.triggers.clear();
        }
        (self.hearers.rounds)(Round {
            took: begun.elapsed(),
            queued: self.behind.since.take().map_or(Duration::ZERO, |since| begun - since),
            full,
            written,
            heard,
        });
        self.disturbed |= written.disturbed;
        let changed = self.dataplane.take_changed_udp();
        if self.dataplane.is_active() {
            self.cut_flows(changed.iter());
        }
        Ok(())
    }

    /// Tells to whom flows of UDP may go once what waits is written.
    fn tell_coming(&mut self) {
        let of_key = |key: &Key| match key {
            Key::Vip(vip) if vip.protocol == Protocol::Udp => Some(*vip),
            _ => None,
        };
        let vips: Vec<Vip> = self.behind.keys.iter().filter_map(of_key).collect();
        let coming = self.serving(vips.iter());
        if !coming.is_empty() {
            (self.hearers.flows)(Flows::Coming(coming));
        }
    }

    fn cut_flows<'a>(&mut self, vips: impl Iterator<Item = &'a Vip>) {
        let changed = self.serving(vips);
        if !changed.is_empty() {
            (self.hearers.flows)(Flows::Changed(changed));
        }
    }

    fn serving<'a>(&self, vips: impl Iterator<Item = &'a Vip>) -> ServingUdp {
        let serving = |vip: &Vip| {
            let frontend = self.desired.as_ref()?.frontends.get(vip)?;
            Some((*vip, frontend.serving.iter().copied().collect()))
        };
        vips.filter_map(serving).collect()
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
