//! The loop: decide, keep, do, tell.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nftfleet_web_api_spec::types::{Assignment, ProgressKind, ProgressReport};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::decide::{Next, Order, Orders, decide};
use super::position::{By, Position};
use super::steps::Tools;
use crate::control::session::Link;
use crate::disk::{self, DiskError};
use crate::local::serve::Known;

/// The form of the ledger that this agent writes: 2 has more positions than 1, and what answered before a move in another form.
const LEDGER_VERSION: u32 = 2;

/// Between two tries to do what could not be done.
const RETRY: Duration = Duration::from_secs(1);

/// The ledger's file.
#[derive(Debug, Serialize, Deserialize)]
struct Ledger {
    version: u32,
    #[serde(flatten)]
    position: Position,
}

/// The ledger can't be used: nothing is moved before a person has looked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It can't be read, or is damaged.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Writing it panicked.
    #[error("writing the ledger panicked: {0}")]
    Panicked(#[source] tokio::task::JoinError),
    /// A newer agent wrote it.
    #[error("{path} is of version {version}, newer than {LEDGER_VERSION}: use the agent that wrote it")]
    Newer {
        /// The file.
        path: String,
        /// Its version.
        version: u32,
    },
}

/// The ledger's file in a state folder.
pub fn ledger_of(state_dir: &Path) -> PathBuf {
    state_dir.join("ledger.json")
}

/// Writes where the node's move stands.
///
/// # Errors
/// See [`LedgerError`].
pub fn keep_ledger(file: &Path, position: Position) -> Result<(), LedgerError> {
    let version = LEDGER_VERSION;
    Ok(disk::write(file, &Ledger { version, position })?)
}

/// Reads where the node's move stands.
///
/// # Errors
/// See [`LedgerError`].
pub fn read_ledger(file: &Path) -> Result<Position, LedgerError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    match disk::read::<Version>(file)? {
        None => Ok(Position::Idle),
        Some(Version { version }) if version > LEDGER_VERSION => Err(LedgerError::Newer {
            path: file.display().to_string(),
            version,
        }),
        Some(_) => Ok(disk::read::<Ledger>(file)?.map_or(Position::Idle, |ledger| ledger.position)),
    }
}

/// A drill at one point of the move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    /// The position at whose step it happens, by its name in the ledger.
    pub position: String,
    /// What happens there.
    pub drill: Drill,
}

/// What is rehearsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drill {
    /// The agent kills itself with SIGKILL before the step, as a power cut would.
    CrashBefore,
    /// The same after the step's effects, before the ledger knows of them.
    CrashAfter,
    /// The agent does not take the step until a person asks to go back.
    Hold,
}

impl std::str::FromStr for Rehearsal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (position, drill) = text.split_once(':').unwrap_or((text, ""));
        let drill = match drill {
            "before" => Drill::CrashBefore,
            "after" => Drill::CrashAfter,
            "hold" => Drill::Hold,
            _ => {
                return Err(format!(
                    "{text:?} is not POSITION:before, POSITION:after or POSITION:hold"
                ));
            }
        };
        Ok(Self {
            position: position.to_owned(),
            drill,
        })
    }
}

/// The second line of the dead-man's switch, should the guard fail: on two clocks, the wall clock, which survives a restart, and one that nobody can set back.
#[derive(Debug, Default)]
struct DeadMan {
    /// The deadline on the wall clock, and when it was or will be by the other.
    armed: Option<(Timestamp, Instant)>,
}

impl DeadMan {
    /// The time to decide by: `now`, or the deadline if that has passed by either clock.
    fn time(&mut self, position: &Position, now: Timestamp, steady: Instant) -> Timestamp {
        let (Some(armed), Some(job)) = (position.armed(), position.job()) else {
            self.armed = None;
            return now;
        };
        let until = match self.armed {
            Some((deadline, until)) if deadline == armed.deadline => until,
            _ => {
                // Never longer than it was armed for, whatever the wall clock says now.
                let left = armed.deadline.duration_since(now).try_into().unwrap_or(Duration::ZERO);
                steady + Duration::min(left, Duration::from_secs(u64::from(job.confirm_within_seconds)))
            }
        };
        self.armed = Some((armed.deadline, until));
        if steady >= until { armed.deadline.max(now) } else { now }
    }
}

/// Everything that the loop needs.
pub struct Switchover {
    /// What the steps act on.
    pub tools: Tools,
    /// What is heard from the server and told to it.
    pub link: Arc<Link>,
    /// A person's order that was accepted, until it is taken.
    pub order: Arc<watch::Sender<Option<Order>>>,
    /// What is told to those who ask on the node.
    pub known: watch::Sender<Known>,
    /// The ledger's file.
    pub ledger: PathBuf,
    /// A drill.
    pub rehearsal: Option<Rehearsal>,
}

impl Switchover {
    /// Goes on from what the ledger says until the process ends. With a ledger that can't be trusted nothing is moved, and the
    /// file is left for a person to look at: a table that is active is kept so and in step with the Services, and whoever wants
    /// something of the node hears that it needs attention.
    pub async fn run(self, ledger: Result<Position, LedgerError>) {
        match ledger {
            Ok(position) => self.go_on(position).await,
            Err(error) => self.hold_still(&error.to_string()).await,
        }
    }

    async fn hold_still(&self, why: &str) {
        tracing::error!(
            why,
            "the ledger can't be trusted: nothing is moved until a person has looked"
        );
        self.known.send_modify(|known| known.lost = Some(why.to_owned()));
        let tools = self.tools.clone();
        // It ends with this set.
        let mut serving = JoinSet::new();
        serving.spawn(async move { tools.serve_on().await });
        let mut assignments = self.link.assignment.subscribe();
        loop {
            let work = assignments.borrow_and_update().as_ref().and_then(|a| a.work.clone());
            self.tell(work.map(|work| ProgressReport {
                task_id: work.task_id,
                attempt: work.attempt,
                progress: ProgressKind::NeedsAttention,
                reasons: vec![format!("ledger-lost: {why}")],
            }));
            if assignments.changed().await.is_err() {
                return;
            }
        }
    }

    async fn go_on(self, mut position: Position) {
        let tools = self.tools.clone();
        // It ends with this set.
        let mut settling = JoinSet::new();
        settling.spawn(async move { tools.settle_ipvs().await });
        tracing::info!(position = position.name(), "the node's move stands here");
        let mut assignments = self.link.assignment.subscribe();
        let mut told = self.link.told.subscribe();
        let mut orders = self.order.subscribe();
        if position.is_moved() {
            if let Some(job) = position.job()
                && let Err(why) = self.tools.disarm_guard(job).await
            {
                // The confirmation's step sees to it, with the old rules still there.
                tracing::warn!(why, "the node was confirmed, and may be put back all the same");
            }
            self.publish(&position);
            tokio::select! {
                () = self.restore() => {}
                // What is wanted may be just that the table goes.
                () = called_back(&mut orders) => {}
            }
        }
        let mut is_proven = false;
        let mut switch = DeadMan::default();
        loop {
            self.publish(&position);
            self.tell(position.progress());
            let is_told = match position.job() {
                // A person asks.
                Some(job) if job.by != By::Server => true,
                _ => *told.borrow_and_update() == position.progress(),
            };
            let after_telling = position.clone().after_telling();
            if is_told && after_telling != position {
                position = self.enter(position, after_telling).await;
                continue;
            }
            let assignment = assignments.borrow_and_update().clone();
            let order = orders.borrow_and_update().clone();
            let now = switch.time(&position, self.tools.clock.now(), Instant::now());
            let wanted = Orders {
                server: assignment.as_ref(),
                person: order.as_ref(),
            };
            let next = decide(&position, wanted, is_proven, now);
            is_proven = false;
            match next {
                Next::Wait => {
                    self.wait(&position, order.as_ref(), &mut assignments, &mut told, &mut orders)
                        .await;
                }
                Next::Tell(progress) => {
                    self.tell(Some(progress));
                    self.wait(&position, order.as_ref(), &mut assignments, &mut told, &mut orders)
                        .await;
                }
                Next::Enter(next) => {
                    position = self.enter(position, next).await;
                    self.take_order(&position, order.as_ref());
                }
                Next::Step => {
                    if self.is_rehearsed(&position, Drill::Hold) {
                        called_back(&mut orders).await;
                        continue;
                    }
                    self.rehearse(&position, Drill::CrashBefore);
                    let next = tokio::select! {
                        next = self.tools.step(position.clone()) => next,
                        // Most steps wait somewhere, and each may be repeated: a person need not wait with them.
                        () = called_back(&mut orders), if position.is_interruptible() => continue,
                    };
                    self.rehearse(&position, Drill::CrashAfter);
                    if next == position {
                        is_proven = matches!(position, Position::Soaking { .. } | Position::StandingBy { .. });
                    } else {
                        position = self.enter(position, next).await;
                    }
                    self.take_order(&position, order.as_ref());
                }
            }
        }
    }

    /// Forgets an order that the position has taken in. What is published says so first.
    fn take_order(&self, position: &Position, order: Option<&Order>) {
        let Some(order) = order else { return };
        let taken = match order {
            Order::Switch(job) => position.job() == Some(job),
            Order::Rollback { now: false } => matches!(
                position,
                Position::Returning { .. } | Position::Reverting { .. } | Position::Ended { .. }
            ),
            Order::Rollback { now: true } => {
                matches!(position, Position::Reverting { .. } | Position::Ended { .. })
            }
        };
        if taken {
            self.forget(order, position);
        }
    }

    fn forget(&self, order: &Order, position: &Position) {
        self.publish(position);
        self.order.send_if_modified(|waiting| {
            let is_it = waiting.as_ref() == Some(order);
            if is_it {
                *waiting = None;
            }
            is_it
        });
    }

    fn publish(&self, position: &Position) {
        let waiting_for = self
            .tools
            .waiting_for
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        self.known.send_if_modified(|known| {
            let is_news = known.position != *position || known.waiting_for != waiting_for;
            if is_news {
                known.position = position.clone();
                known.waiting_for = waiting_for;
            }
            is_news
        });
    }

    /// Waits until somebody wants something else, or the server has heard something. No sender ever goes: they are ours. An order
    /// that changed nothing is void: there was nothing to do.
    async fn wait(
        &self,
        position: &Position,
        order: Option<&Order>,
        assignments: &mut watch::Receiver<Option<Assignment>>,
        told: &mut watch::Receiver<Option<ProgressReport>>,
        orders: &mut watch::Receiver<Option<Order>>,
    ) {
        if let Some(order) = order {
            self.forget(order, position);
        }
        tokio::select! {
            _ = assignments.changed() => {}
            _ = told.changed() => {}
            _ = orders.changed() => {}
        }
    }

    /// A node that was moved answers through our table as soon as its Services are known again, server or not.
    async fn restore(&self) {
        while let Err(error) = self.tools.restore().await {
            tracing::error!(error, "the moved node's table is not active; trying again");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Keeps the new position before anything follows from it. Two positions must not be entered unkept: a flip without a
    /// deadline on disk would never be taken back after a crash, and a clean-up would be forgotten half done.
    async fn enter(&self, from: Position, to: Position) -> Position {
        if let Position::Reverting { .. } = &to {
            // The way back waits for no disk: the ledger has the deadline already, and after a crash leads here again.
            if let Err(error) = self.tools.dataplane.set_dormant(true).await {
                tracing::error!(%error, "the table could not be made dormant at once");
            }
        }
        let kept = self.keep(to.clone()).await;
        let why = to.why();
        tracing::info!(from = from.name(), to = to.name(), why, "the move goes on");
        if let Err(error) = kept {
            tracing::error!(%error, "the ledger can't be kept");
            match (&from, &to) {
                (_, Position::Flipping { job, .. }) => {
                    return Position::Reverting {
                        job: job.clone(),
                        why: format!("the ledger can't be kept: {error}"),
                        let_in: false,
                    };
                }
                (_, Position::Parking { .. } | Position::StandingBy { .. } | Position::Confirming { .. }) => {
                    tokio::time::sleep(RETRY).await;
                    return from;
                }
                _ => {}
            }
        }
        if matches!(
            to,
            Position::Moved { .. } | Position::Ended { .. } | Position::Verifying { .. }
        ) {
            self.link.report_now.notify_one();
        }
        to
    }

    /// Writes the ledger. A disk may take its time: nothing else waits for it.
    async fn keep(&self, position: Position) -> Result<(), LedgerError> {
        let file = self.ledger.clone();
        let written = tokio::task::spawn_blocking(move || keep_ledger(&file, position)).await;
        written.map_err(LedgerError::Panicked)?
    }

    fn tell(&self, progress: Option<ProgressReport>) {
        let Some(progress) = progress else { return };
        self.link
            .progress
            .send_if_modified(|known: &mut Option<ProgressReport>| {
                let is_news = known.as_ref() != Some(&progress);
                if is_news {
                    *known = Some(progress);
                }
                is_news
            });
    }

    fn is_rehearsed(&self, position: &Position, drill: Drill) -> bool {
        let fits = |rehearsal: &Rehearsal| rehearsal.position == position.name() && rehearsal.drill == drill;
        self.rehearsal.as_ref().is_some_and(fits)
    }

    fn rehearse(&self, position: &Position, drill: Drill) {
        if self.is_rehearsed(position, drill) {
            tracing::warn!(position = position.name(), ?drill, "the rehearsed crash");
            // If the signal can't be sent the rehearsal is void, and its observer sees a living process.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Until a person wants to go back. The sender never goes.
async fn called_back(orders: &mut watch::Receiver<Option<Order>>) {
    let back = |order: &Option<Order>| matches!(order, Some(Order::Rollback { .. }));
    if orders.wait_for(back).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switchover::position::{Armed, By, Job};
    use jiff::SignedDuration;
    use uuid::Uuid;

    fn soaking(deadline: Timestamp) -> Position {
        let job = Job {
            task: Uuid::nil(),
            attempt: 1,
            by: By::Server,
            confirm_within_seconds: 60,
            probe: vec![],
        };
        let armed = Armed {
            baseline: vec![],
            deadline,
        };
        Position::Soaking { job, armed }
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_hold_the_switch_up() {
        let (start, steady) = (Timestamp::UNIX_EPOCH, Instant::now());
        let position = soaking(start + SignedDuration::from_secs(60));
        let an_hour_back = start - SignedDuration::from_hours(1);
        let mut switch = DeadMan::default();
        assert_eq!(switch.time(&position, start, steady), start);
        assert_eq!(
            switch.time(&position, an_hour_back, steady + Duration::from_secs(59)),
            an_hour_back
        );
        let late = switch.time(&position, an_hour_back, steady + Duration::from_mins(1));
        assert_eq!(late, position.armed().unwrap().deadline);
        // The same after a restart with the clock already set back: at most as long as it was armed for.
        let mut restarted = DeadMan::default();
        restarted.time(&position, an_hour_back, steady);
        let late = restarted.time(&position, an_hour_back, steady + Duration::from_mins(1));
        assert_eq!(late, position.armed().unwrap().deadline);
    }
}
