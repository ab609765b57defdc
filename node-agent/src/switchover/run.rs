//! The loop: decide, keep, do, tell.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nftfleet_web_api_spec::types::ProgressReport;
use serde::{Deserialize, Serialize};

use super::decide::{Next, decide};
use super::position::Position;
use super::steps::Tools;
use crate::control::session::Session;
use crate::disk::{self, DiskError};

/// The form of the ledger that this agent writes.
const LEDGER_VERSION: u32 = 1;

/// Between two tries to do what could not be done.
const RETRY: Duration = Duration::from_secs(1);

/// The ledger's file.
#[derive(Debug, Serialize, Deserialize)]
struct Ledger {
    version: u32,
    #[serde(flatten)]
    position: Position,
}

/// The ledger can't be used: the agent must not touch the node before a person has looked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It can't be read, or is damaged.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A newer agent wrote it.
    #[error("{path} is of version {version}, newer than {LEDGER_VERSION}: use the agent that wrote it")]
    Newer {
        /// The file.
        path: String,
        /// Its version.
        version: u32,
    },
}

/// Reads where the node's move stands.
///
/// # Errors
/// See [`LedgerError`].
pub fn read_ledger(file: &std::path::Path) -> Result<Position, LedgerError> {
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

/// A rehearsal of a crash: the agent kills itself with SIGKILL at one point of the move, as a power cut would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    /// The position at whose step it happens, by its name in the ledger.
    pub position: String,
    /// Whether it happens after the step's effects, before the ledger knows of them; else before the step.
    pub after_step: bool,
}

impl std::str::FromStr for Rehearsal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((position, "before")) => Ok(Self {
                position: position.to_owned(),
                after_step: false,
            }),
            Some((position, "after")) => Ok(Self {
                position: position.to_owned(),
                after_step: true,
            }),
            _ => Err(format!("{text:?} is not POSITION:before or POSITION:after")),
        }
    }
}

/// Everything that the loop needs.
pub struct Switchover {
    /// What the steps act on.
    pub tools: Tools,
    /// The conversation with the server.
    pub session: Arc<Session>,
    /// The ledger's file.
    pub ledger: PathBuf,
    /// A crash to rehearse.
    pub rehearsal: Option<Rehearsal>,
}

impl Switchover {
    /// Goes on from `position` until the process ends.
    pub async fn run(self, mut position: Position) {
        tracing::info!(position = position.name(), "the node's move stands here");
        let mut assignments = self.session.assignment.subscribe();
        let mut told = self.session.told.subscribe();
        if position.is_moved() {
            self.restore().await;
        }
        loop {
            self.tell(&position);
            let is_told = *told.borrow_and_update() == position.progress();
            let after_telling = position.clone().after_telling();
            if is_told && after_telling != position {
                position = self.enter(position, after_telling).await;
                continue;
            }
            let assignment = assignments.borrow_and_update().clone();
            match decide(&position, assignment.as_ref(), self.tools.clock.now()) {
                Next::Wait => {
                    tokio::select! {
                        changed = assignments.changed() => if changed.is_err() { return },
                        changed = told.changed() => if changed.is_err() { return },
                    }
                }
                Next::Enter(next) => position = self.enter(position, next).await,
                Next::Step => {
                    self.rehearse(&position, false);
                    let next = self.tools.step(position.clone()).await;
                    self.rehearse(&position, true);
                    if next != position {
                        position = self.enter(position, next).await;
                    }
                }
            }
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
        let ledger = Ledger {
            version: LEDGER_VERSION,
            position: to,
        };
        let kept = disk::write(&self.ledger, &ledger);
        let to = ledger.position;
        tracing::info!(from = from.name(), to = to.name(), "the move goes on");
        if let Err(error) = kept {
            tracing::error!(%error, "the ledger can't be kept");
            match (&from, &to) {
                (_, Position::Flipping { job, .. }) => {
                    return Position::Reverting {
                        job: job.clone(),
                        why: format!("the ledger can't be kept: {error}"),
                    };
                }
                (_, Position::Confirming { .. }) => {
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
            self.session.report_now.notify_one();
        }
        to
    }

    fn tell(&self, position: &Position) {
        let Some(progress) = position.progress() else { return };
        self.session
            .progress
            .send_if_modified(|known: &mut Option<ProgressReport>| {
                let is_news = known.as_ref() != Some(&progress);
                if is_news {
                    *known = Some(progress);
                }
                is_news
            });
    }

    fn rehearse(&self, position: &Position, after_step: bool) {
        if let Some(rehearsal) = &self.rehearsal
            && rehearsal.position == position.name()
            && rehearsal.after_step == after_step
        {
            tracing::warn!(position = position.name(), after_step, "the rehearsed crash");
            // If the signal can't be sent the rehearsal is void, and its observer sees a living process.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        }
    }
}
