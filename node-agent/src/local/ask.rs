//! The side of `nftfleet-agent switch`, `rollback` and `status`: asks the agent of the state folder, and follows what becomes
//! of the order. Where no agent runs, the ledger and the kernel are asked themselves.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nftfleet_domain::inventory::TableState;

use super::protocol::{Answer, Question, Status, socket};
use super::serve::{Known, status};
use crate::dataplane::kernel::Transaction;
use crate::dataplane::netlink::SocketError;
use crate::dataplane::{Kernel as _, KernelError, Netlink};
use crate::disk::{self, DiskError};
use crate::switchover::position::{End, Position};
use crate::switchover::run::{LedgerError, keep_ledger, ledger_of, read_ledger};

/// How long the agent may take to answer. It asks the kernel, whose lock a large load may hold.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Between two looks at a move under way.
const LOOK: Duration = Duration::from_millis(200);

/// Why a question was not answered or an order not done.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The agent can't be spoken to.
    #[error("the agent that runs on {folder} can't be spoken to: {source}")]
    Spoken {
        /// Its state folder.
        folder: String,
        /// Why.
        source: io::Error,
    },
    /// It answered something else than was asked.
    #[error("the agent gave an answer that makes no sense here: {0}")]
    Senseless(String),
    /// It will not do it.
    #[error("refused: {0}")]
    Refused(String),
    /// There is no agent.
    #[error("no agent runs on {0}: a move needs one, which goes on programming the Services")]
    NoAgent(String),
    /// There is no agent, and going back without one would be a risk.
    #[error(
        "no agent runs on {0}, and kube-proxy has left this node: start the agent and go back with it, or say --now to make the \
         table dormant at once, whatever the old rules are like"
    )]
    NeedsAgent(String),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The state folder.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The way to the kernel.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Asks the agent of this state folder; none if there is no agent.
///
/// # Errors
/// See [`AskError`].
pub fn ask(state_dir: &Path, question: &Question) -> Result<Option<Answer>, AskError> {
    let spoken = |source| AskError::Spoken {
        folder: state_dir.display().to_string(),
        source,
    };
    let mut stream = match UnixStream::connect(socket(state_dir)) {
        Ok(stream) => stream,
        // None was ever there, or one that has gone.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(spoken(error)),
    };
    let answered = (|| {
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    })();
    answered.map(Some).map_err(spoken)
}

/// Where the node is, by its agent's word or, where none runs, by the ledger and the kernel. Tells if an agent runs.
///
/// # Errors
/// See [`AskError`].
pub fn look(state_dir: &Path) -> Result<(Status, bool), AskError> {
    match ask(state_dir, &Question::Status)? {
        Some(Answer::Status(status)) => Ok((status, true)),
        Some(other) => Err(AskError::Senseless(format!("{other:?}"))),
        None => {
            let known = match read_ledger(&ledger_of(state_dir)) {
                Ok(position) => Known {
                    position,
                    ..Known::default()
                },
                Err(error) => Known {
                    lost: Some(error.to_string()),
                    ..Known::default()
                },
            };
            let table = Netlink::open().ok().and_then(|mut kernel| kernel.state().ok());
            Ok((
                Status {
                    table,
                    ..status(&known)
                },
                false,
            ))
        }
    }
}

/// Gives an order.
///
/// # Errors
/// See [`AskError`].
pub fn order(state_dir: &Path, question: &Question) -> Result<(), AskError> {
    match (ask(state_dir, question)?, question) {
        (Some(Answer::Accepted), _) => Ok(()),
        (Some(Answer::Refused { why }), _) => Err(AskError::Refused(why)),
        (Some(other), _) => Err(AskError::Senseless(format!("{other:?}"))),
        (None, Question::Rollback { now }) => go_back_alone(state_dir, *now),
        (None, _) => Err(AskError::NoAgent(state_dir.display().to_string())),
    }
}

/// Makes the table dormant where no agent runs, and says so in the ledger.
fn go_back_alone(state_dir: &Path, now: bool) -> Result<(), AskError> {
    let _only_one = disk::lock(&state_dir.join("lock"))?;
    let file = ledger_of(state_dir);
    let position = match (read_ledger(&file), now) {
        (Ok(position), _) => Some(position),
        // The kernel has to be put right first, whatever the ledger is worth.
        (Err(_), true) => None,
        (Err(error), false) => return Err(error.into()),
    };
    if !now && matches!(position, Some(Position::Idle | Position::Ended { .. })) {
        let why = "the node is not on nftfleet's data plane, nor on its way to it";
        return Err(AskError::Refused(why.to_owned()));
    }
    let gone = position.as_ref().is_some_and(Position::is_moved);
    if gone && !now {
        return Err(AskError::NeedsAgent(state_dir.display().to_string()));
    }
    let mut kernel = Netlink::open()?;
    if kernel.state()? == TableState::Active {
        kernel.commit(&Transaction {
            dormant: Some(true),
            ..Transaction::default()
        })?;
    }
    if matches!(position, Some(Position::Reverting { .. })) {
        // The agent goes on from there when it comes: it may have to let kube-proxy in.
        return Ok(());
    }
    if let Some(job) = position.as_ref().and_then(Position::job) {
        let next = if gone {
            // The agent lets kube-proxy in again when it comes.
            Position::Reverting {
                job: job.clone(),
                why: "a person on the node went back at once, without an agent".to_owned(),
                let_in: true,
            }
        } else {
            Position::Ended {
                job: job.clone(),
                end: End::Reverted("a person on the node went back, without an agent".to_owned()),
                told: false,
            }
        };
        keep_ledger(&file, next)?;
    }
    Ok(())
}

/// Looks until nothing is under way, and gives every state that differs from the one before to `each`. An agent that is gone
/// is waited for: it is started again.
///
/// # Errors
/// See [`AskError`].
pub fn follow(state_dir: &Path, mut each: impl FnMut(&Status)) -> Result<Status, AskError> {
    let mut last = None;
    loop {
        let (status, by_agent) = look(state_dir)?;
        if last.as_ref() != Some(&status) {
            each(&status);
        }
        if status.at_rest && by_agent {
            return Ok(status);
        }
        last = Some(status);
        std::thread::sleep(LOOK);
    }
}

/// A state in lines for a person.
pub fn describe(status: &Status) -> String {
    let table = match status.table {
        Some(TableState::Absent) => "absent",
        Some(TableState::Dormant) => "dormant",
        Some(TableState::Active) => "active",
        None => "unknown",
    };
    let mut text = format!("{}, table {table}", status.position);
    if let Some(end) = &status.end {
        let _ = write!(text, ", {end}");
    }
    if let Some(at) = status.goes_back_at {
        let _ = write!(text, ", goes back by itself at {at}");
    }
    if let Some(what) = &status.waiting_for {
        let _ = write!(text, "\n  waits for {what}");
    }
    for reason in &status.reasons {
        let _ = write!(text, "\n  {reason}");
    }
    text
}
