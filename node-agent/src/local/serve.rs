//! The agent's side: answers from what the switchover publishes, and hands orders to it.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::protocol::{Answer, LONGEST, Question, Status, socket};
use crate::pause::Pause;
use crate::switchover::decide::Order;
use crate::switchover::position::{By, End, Job, Position};

/// How long a question may take to come in.
const ASKED_WITHIN: Duration = Duration::from_secs(5);

/// How much longer than its hold a person's move may take until the dead-man's switch takes it back, in seconds: for the
/// rounds of the probe, and an agent that is started again meanwhile.
const CONFIRM_AFTER_HOLD: u32 = 60;

/// What is known of the move, for those who ask.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Where it stands.
    pub position: Position,
    /// What the present step waits for.
    pub waiting_for: Option<String>,
    /// Why the ledger can't be trusted, if it can't.
    pub lost: Option<String>,
}

/// Where orders go and what is known.
#[derive(Clone, Debug)]
pub struct Desk {
    /// The order that was accepted last; none when it has been taken.
    pub order: Arc<watch::Sender<Option<Order>>>,
    /// What the switchover publishes.
    pub known: watch::Receiver<Known>,
    /// The kernel's word on the table.
    pub dataplane: crate::dataplane::Actor,
}

/// Listens until the process ends. A folder that takes no socket is logged: the agent does without.
pub async fn serve(state_dir: &Path, desk: Desk) {
    let mut pause = Pause::default();
    let listener = loop {
        match listen(state_dir) {
            Ok(listener) => break listener,
            Err(error) => tracing::error!(%error, "nobody on the node can speak to this agent; trying again"),
        }
        pause.wait().await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = desk.clone();
                tokio::spawn(async move {
                    match tokio::time::timeout(ASKED_WITHIN, converse(stream, &desk)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::warn!(%error, "a conversation on the agent's socket broke off"),
                        Err(_) => tracing::warn!("a conversation on the agent's socket took too long"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the agent's socket failed");
                pause.wait().await;
            }
        }
    }
}

fn listen(state_dir: &Path) -> io::Result<UnixListener> {
    let path = socket(state_dir);
    // The lock on the folder is ours: whoever made this socket has gone.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn converse(stream: UnixStream, desk: &Desk) -> io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reading.take(LONGEST)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(question) => answer(question, desk).await,
        Err(error) => Answer::Refused {
            why: format!("this is no question that the agent understands: {error}"),
        },
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    writing.write_all(&text).await
}

async fn answer(question: Question, desk: &Desk) -> Answer {
    // In this order: an order that is taken is forgotten only after the position that it led to is published.
    let is_ordered = desk.order.borrow().is_some();
    let known = desk.known.borrow().clone();
    let order = match question {
        Question::Status => {
            let table = desk.dataplane.state().await.ok();
            let status = status(&known);
            // An order that is not taken yet is under way for who gave it.
            let at_rest = status.at_rest && !is_ordered;
            return Answer::Status(Status {
                table,
                at_rest,
                ..status
            });
        }
        Question::Switch {
            task,
            hold_seconds,
            probe,
        } => Order::Switch(Job {
            task,
            attempt: 1,
            by: By::Person { hold_seconds },
            confirm_within_seconds: hold_seconds.saturating_add(CONFIRM_AFTER_HOLD),
            probe,
        }),
        Question::Rollback { now } => Order::Rollback { now },
    };
    if let Some(why) = refusal(&order, &known) {
        return Answer::Refused { why };
    }
    let mut taken = false;
    desk.order.send_if_modified(|waiting| {
        // Two at the same time: the one to go back counts.
        taken = waiting.is_none() || matches!(order, Order::Rollback { .. });
        if taken {
            *waiting = Some(order);
        }
        taken
    });
    if taken {
        Answer::Accepted
    } else {
        Answer::Refused {
            why: "another order is being taken".to_owned(),
        }
    }
}

/// Why an order is not taken, if it is not.
fn refusal(order: &Order, known: &Known) -> Option<String> {
    if let Some(why) = &known.lost {
        return Some(format!("the ledger can't be trusted: {why}"));
    }
    let position = &known.position;
    match order {
        Order::Switch(_) if position.is_moved() => {
            Some("already-moved: the node is on nftfleet's data plane".to_owned())
        }
        Order::Switch(_) if !position.is_at_rest() => Some(format!("a move is under way: {}", position.name())),
        Order::Switch(_) if position.is_untold() => {
            Some("the server has not heard yet how the last move ended".to_owned())
        }
        Order::Rollback { .. } if matches!(position, Position::Idle | Position::Ended { .. }) => {
            Some("the node is not on nftfleet's data plane, nor on its way to it".to_owned())
        }
        Order::Switch(_) | Order::Rollback { .. } => None,
    }
}

/// What is said of a position. The table is asked of the kernel by who calls.
pub fn status(known: &Known) -> Status {
    let position = &known.position;
    let (end, reasons) = match position {
        Position::Ended { end, .. } => match end {
            End::Rejected(blockers) => (Some("rejected"), blockers.clone()),
            End::Reverted(why) => (Some("reverted"), vec![why.clone()]),
            End::NeedsAttention(why) => (Some("needs-attention"), vec![why.clone()]),
        },
        Position::Moved { trouble: Some(why), .. } => (Some("needs-attention"), vec![why.clone()]),
        Position::Returning { why, .. } | Position::Reverting { why, .. } => (None, vec![why.clone()]),
        _ => (None, vec![]),
    };
    let (end, reasons) = match &known.lost {
        Some(why) => (Some("needs-attention"), vec![why.clone()]),
        None => (end, reasons),
    };
    Status {
        position: position.name().to_owned(),
        end: end.map(str::to_owned),
        reasons,
        waiting_for: known.waiting_for.clone(),
        goes_back_at: position.armed().map(|armed| armed.deadline),
        table: None,
        at_rest: position.is_at_rest(),
        moved: position.is_moved(),
    }
}
