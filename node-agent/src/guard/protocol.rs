//! What is said to a guard and what it answers: one line of JSON each way, then the conversation is over.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The name of the guard's socket, among the abstract ones: those belong to a network namespace as tables do, so there is one
/// guard for each table, no file to be left behind, and nothing that needs a disk.
pub const NAME: &[u8] = b"nftfleet-guard";

/// The longest line, in bytes. An identity is some 40.
pub const LONGEST_LINE: usize = 1024;

/// Where the guard of the calling thread's network namespace listens.
///
/// # Errors
/// The system has no abstract sockets.
pub fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// What is asked of a guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// To put the table to sleep when the time is over, unless it is disarmed before. Asked again for the same attempt, the
    /// sooner of both ends counts.
    Arm {
        /// The attempt.
        id: String,
        /// How long it waits, in milliseconds.
        left_ms: u64,
    },
    /// Not to do so any more.
    Disarm {
        /// The attempt.
        id: String,
    },
    /// What its state is.
    Query,
}

/// The state of a guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It was never armed, or it was disarmed.
    Idle,
    /// It waits.
    Armed {
        /// The attempt.
        id: String,
        /// For so many milliseconds yet.
        left_ms: u64,
    },
    /// The time is over.
    Fired {
        /// The attempt.
        id: String,
        /// Whether the kernel has said that the table is asleep, or gone. Until then it is tried again and again.
        asleep: bool,
    },
}

impl State {
    /// Whether the time of this attempt is over.
    pub fn has_fired(&self, attempt: &str) -> bool {
        matches!(self, Self::Fired { id, .. } if id == attempt)
    }
}

/// Why a guard does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// It waits for the end of another attempt, or tries to end it.
    #[error("it is armed for another attempt, {id}")]
    Other {
        /// That attempt.
        id: String,
    },
    /// The attempt's time is over: it can't be had again.
    #[error("it has fired for this attempt")]
    Fired,
    /// It could not put the table to sleep now, so it may not be able to later.
    #[error("it could not put the table to sleep: {why}")]
    Unable {
        /// Why not, in words.
        why: String,
    },
    /// The request makes no sense to it.
    #[error("it does not understand: {why}")]
    Unread {
        /// Why not, in words.
        why: String,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Why it did not do what it was asked, if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
    /// Its state now.
    pub state: State,
}

/// A line for the wire, with its end.
///
/// # Errors
/// The value can't be written as JSON.
pub fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_as_documented() {
        let id = "task/1".to_owned();
        let arm = Request::Arm {
            id: id.clone(),
            left_ms: 1500,
        };
        assert_eq!(line(&arm).unwrap(), b"{\"arm\":{\"id\":\"task/1\",\"left_ms\":1500}}\n");
        assert_eq!(line(&Request::Query).unwrap(), b"\"query\"\n");
        let refused = Reply {
            refused: Some(Refusal::Fired),
            state: State::Fired { id, asleep: true },
        };
        let text = String::from_utf8(line(&refused).unwrap()).unwrap();
        assert_eq!(
            text,
            "{\"refused\":\"fired\",\"state\":{\"fired\":{\"id\":\"task/1\",\"asleep\":true}}}\n"
        );
        assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), refused);
        serde_json::from_str::<Request>(r#"{"arm":{"id":"a","seconds":1}}"#).unwrap_err();
    }
}
