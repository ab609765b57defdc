//! What happened to a stream of attempts.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// How many failures are kept in full: the first ones tell the story, the others only say how long it lasted.
const KEPT: usize = 20;

/// The outcome of all attempts that have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Attempts that ended, well or not. Those still under way are not counted.
    pub made: u64,
    /// Those among them that failed.
    pub failed: u64,
    /// The answers by the identity of the backend that gave them; with `failed` they add up to `made`.
    pub answered: BTreeMap<String, u64>,
    /// The first 20 failures, in the order in which they were noticed.
    pub failures: Vec<Failure>,
}

/// One attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When the attempt began, counted from the start of the stream.
    pub began: Duration,
    /// When it was given up, counted from the start of the stream.
    pub ended: Duration,
    /// Where it went.
    pub target: SocketAddr,
    /// What went wrong, in words.
    pub error: String,
}

impl Counts {
    /// Panics with the first failures if there were any, or if nothing was tried at all.
    pub fn assert_no_loss(&self) {
        assert!(self.made > 0, "nothing was tried, so nothing is proven");
        assert_eq!(
            self.failed, 0,
            "{} of {} attempts failed: {:#?}",
            self.failed, self.made, self.failures
        );
    }

    pub(super) fn note(&mut self, target: SocketAddr, began: Duration, ended: Duration, outcome: io::Result<String>) {
        self.made += 1;
        match outcome {
            Ok(identity) => *self.answered.entry(identity).or_default() += 1,
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < KEPT {
                    self.failures.push(Failure {
                        began,
                        ended,
                        target,
                        error: error.to_string(),
                    });
                }
            }
        }
    }
}
