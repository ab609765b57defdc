//! The state machine of one node's piece of work.
//!
//! Two parties move it: the server (grant, confirm, revert, time out) and the agent (how far it came). Messages are levels,
//! not events: an agent that was cut off reports only where it is now, so a report may jump forward over phases, repeats
//! are harmless, and what is older than the state is told apart from what is illegal.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::Attempt;

/// How far a node under way has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    /// Granted by the server; the agent has not answered yet.
    Offered,
    /// The agent checks that the node can be moved, and that the probe succeeds through the old rules.
    Preflight,
    /// The table is being loaded dormant and read back.
    Applying,
    /// The table is active and the probe runs through it. The old rules stand by.
    Verifying,
    /// The probe succeeded and goes on; the server waits for the soak to end.
    Soaking,
    /// The server confirmed: the agent removes kube-proxy's rules.
    Confirming,
    /// The node goes back to its old rules.
    Reverting,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 7] = [
        Self::Offered,
        Self::Preflight,
        Self::Applying,
        Self::Verifying,
        Self::Soaking,
        Self::Confirming,
        Self::Reverting,
    ];
}

/// Where one node's piece of work stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", tag = "state")]
pub enum TaskState {
    /// Waits for its turn.
    Pending,
    /// The node's turn has come.
    UnderWay {
        /// Which try this is.
        attempt: Attempt,
        /// How far it came.
        phase: Phase,
        /// When it came there, by the server's clock.
        since: Timestamp,
        /// When the whole attempt is given up.
        deadline: Timestamp,
    },
    /// The kernel shows our table active, its probes passed, and still did after the soak; the old rules are gone.
    Confirmed {
        /// The attempt that succeeded.
        attempt: Attempt,
    },
    /// The node was on our data plane before its turn came.
    AlreadyDone,
    /// The node is back on its old rules.
    Reverted {
        /// The attempt that was taken back.
        attempt: Attempt,
        /// What went wrong, in the agent's words.
        why: String,
    },
    /// Refused before anything was touched, by the server's readiness verdict or the agent's preflight.
    Rejected {
        /// What stood in the way.
        blockers: Vec<String>,
    },
    /// No end within the deadline. The agent goes back by itself unless it was confirmed.
    TimedOut {
        /// The attempt that was given up.
        attempt: Attempt,
        /// How far it had come.
        phase: Phase,
    },
    /// A step failed and the node needs a person: its final mode is not proven.
    NeedsAttention {
        /// The attempt that failed.
        attempt: Attempt,
        /// What went wrong, in the agent's words.
        why: String,
    },
    /// Never granted, because its rollout ended before.
    Skipped,
}

impl TaskState {
    /// Whether the node may be changing now.
    pub fn is_under_way(&self) -> bool {
        matches!(self, Self::UnderWay { .. })
    }

    /// Whether nothing will change any more.
    pub fn is_ended(&self) -> bool {
        !matches!(self, Self::Pending | Self::UnderWay { .. })
    }

    /// Whether the work ended otherwise than wanted. A skipped node was never tried.
    pub fn is_failure(&self) -> bool {
        matches!(
            self,
            Self::Reverted { .. } | Self::Rejected { .. } | Self::TimedOut { .. } | Self::NeedsAttention { .. }
        )
    }

    /// The state's name in the API.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::UnderWay { phase, .. } => match phase {
                Phase::Offered => "OFFERED",
                Phase::Preflight => "PREFLIGHT",
                Phase::Applying => "APPLYING",
                Phase::Verifying => "VERIFYING",
                Phase::Soaking => "SOAKING",
                Phase::Confirming => "CONFIRMING",
                Phase::Reverting => "REVERTING",
            },
            Self::Confirmed { .. } => "CONFIRMED",
            Self::AlreadyDone => "ALREADY_DONE",
            Self::Reverted { .. } => "REVERTED",
            Self::Rejected { .. } => "REJECTED",
            Self::TimedOut { .. } => "TIMED_OUT",
            Self::NeedsAttention { .. } => "NEEDS_ATTENTION",
            Self::Skipped => "SKIPPED",
        }
    }
}

/// What an agent says of its work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", tag = "progress")]
pub enum Progress {
    /// It is in this phase. Never `Offered` or `Confirming`, which only the server says.
    In {
        /// The phase.
        phase: AgentPhase,
    },
    /// Preflight refused; nothing was touched.
    Rejected {
        /// What stood in the way.
        blockers: Vec<String>,
    },
    /// The node is back on its old rules.
    Reverted {
        /// What went wrong.
        why: String,
    },
    /// After the server's confirmation: the old rules are gone, the table is active, the probe passes.
    Confirmed,
    /// A step failed and the agent can't put it right.
    NeedsAttention {
        /// What went wrong.
        why: String,
    },
}

/// A phase that an agent can report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AgentPhase {
    /// Checks before anything is touched.
    Preflight,
    /// The table is being loaded dormant and read back.
    Applying,
    /// The table is active, the probe runs.
    Verifying,
    /// The probe succeeded.
    Soaking,
    /// On the way back.
    Reverting,
}

impl From<AgentPhase> for Phase {
    fn from(phase: AgentPhase) -> Self {
        match phase {
            AgentPhase::Preflight => Self::Preflight,
            AgentPhase::Applying => Self::Applying,
            AgentPhase::Verifying => Self::Verifying,
            AgentPhase::Soaking => Self::Soaking,
            AgentPhase::Reverting => Self::Reverting,
        }
    }
}

/// Why a report of progress was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgressRefused {
    /// The report speaks of an older or a later attempt than the one that is granted.
    #[error("attempt {} is not the granted one: the task is {now}", .said.0)]
    WrongAttempt {
        /// The attempt of the report.
        said: Attempt,
        /// The state's name.
        now: &'static str,
    },
    /// The report is not possible in this state.
    #[error("a task that is {now} cannot become {said}")]
    Illegal {
        /// What was reported.
        said: String,
        /// The state's name.
        now: &'static str,
    },
}

/// What to do with a report of progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The task moves to this state.
    Moved(TaskState),
    /// Known already, or older than what is known: nothing changes.
    Known,
}

impl TaskState {
    /// The server grants the node its turn.
    ///
    /// # Errors
    /// Only a pending task can be granted.
    pub fn grant(&self, attempt: Attempt, now: Timestamp, deadline: Timestamp) -> Result<Self, ProgressRefused> {
        match self {
            Self::Pending => Ok(Self::UnderWay {
                attempt,
                phase: Phase::Offered,
                since: now,
                deadline,
            }),
            _ => Err(ProgressRefused::Illegal {
                said: "granted".to_owned(),
                now: self.name(),
            }),
        }
    }

    /// The server moves a task under way to `phase`: [`Phase::Confirming`] from soaking, [`Phase::Reverting`] from any phase
    /// before that. A confirmed node can't be asked back: its old rules are being removed.
    ///
    /// # Errors
    /// Refused from every other state.
    pub fn steer(&self, to: Phase, now: Timestamp) -> Result<Self, ProgressRefused> {
        let may = |from: Phase| match to {
            Phase::Confirming => from == Phase::Soaking,
            Phase::Reverting => from < Phase::Confirming,
            _ => false,
        };
        match self {
            Self::UnderWay {
                attempt,
                phase,
                deadline,
                ..
            } if may(*phase) => Ok(Self::UnderWay {
                attempt: *attempt,
                phase: to,
                since: now,
                deadline: *deadline,
            }),
            _ => Err(ProgressRefused::Illegal {
                said: format!("{to:?}"),
                now: self.name(),
            }),
        }
    }

    /// An agent says how far `attempt` came.
    ///
    /// # Errors
    /// Another attempt than the granted one, or a report that is not possible in this state, is refused.
    pub fn hear(&self, said_attempt: Attempt, said: &Progress, now: Timestamp) -> Result<Heard, ProgressRefused> {
        let illegal = || ProgressRefused::Illegal {
            said: said.name().to_owned(),
            now: self.name(),
        };
        let Self::UnderWay {
            attempt,
            phase,
            deadline,
            ..
        } = self
        else {
            return if self.is_what_was_said(said_attempt, said) {
                Ok(Heard::Known)
            } else {
                Err(ProgressRefused::WrongAttempt {
                    said: said_attempt,
                    now: self.name(),
                })
            };
        };
        let attempt = *attempt;
        if attempt != said_attempt {
            return Err(ProgressRefused::WrongAttempt {
                said: said_attempt,
                now: self.name(),
            });
        }
        let moved = match said {
            Progress::In { phase: said_phase } => {
                let said_phase = Phase::from(*said_phase);
                if said_phase <= *phase {
                    return Ok(Heard::Known);
                }
                Self::UnderWay {
                    attempt,
                    phase: said_phase,
                    since: now,
                    deadline: *deadline,
                }
            }
            Progress::Rejected { blockers } if *phase <= Phase::Applying || *phase == Phase::Reverting => {
                Self::Rejected {
                    blockers: blockers.clone(),
                }
            }
            Progress::Reverted { why } => Self::Reverted {
                attempt,
                why: why.clone(),
            },
            Progress::Confirmed if *phase == Phase::Confirming => Self::Confirmed { attempt },
            Progress::NeedsAttention { why } => Self::NeedsAttention {
                attempt,
                why: why.clone(),
            },
            Progress::Rejected { .. } | Progress::Confirmed => return Err(illegal()),
        };
        Ok(Heard::Moved(moved))
    }

    /// Whether an ended task already says what the agent says again.
    fn is_what_was_said(&self, said_attempt: Attempt, said: &Progress) -> bool {
        match (self, said) {
            (Self::Confirmed { attempt }, Progress::Confirmed)
            | (Self::Reverted { attempt, .. }, Progress::Reverted { .. })
            | (Self::NeedsAttention { attempt, .. }, Progress::NeedsAttention { .. }) => *attempt == said_attempt,
            (Self::Rejected { .. }, Progress::Rejected { .. }) => true,
            _ => false,
        }
    }
}

impl Progress {
    /// The name of the state that this report asks for.
    pub fn name(&self) -> &'static str {
        match self {
            Self::In { phase } => match phase {
                AgentPhase::Preflight => "PREFLIGHT",
                AgentPhase::Applying => "APPLYING",
                AgentPhase::Verifying => "VERIFYING",
                AgentPhase::Soaking => "SOAKING",
                AgentPhase::Reverting => "REVERTING",
            },
            Self::Rejected { .. } => "REJECTED",
            Self::Reverted { .. } => "REVERTED",
            Self::Confirmed => "CONFIRMED",
            Self::NeedsAttention { .. } => "NEEDS_ATTENTION",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn under_way(phase: Phase) -> TaskState {
        TaskState::UnderWay {
            attempt: Attempt(1),
            phase,
            since: NOW,
            deadline: NOW,
        }
    }

    fn every_state() -> Vec<TaskState> {
        let why = || "why".to_owned();
        let mut states: Vec<_> = Phase::ALL.into_iter().map(under_way).collect();
        states.extend([
            TaskState::Pending,
            TaskState::Confirmed { attempt: Attempt(1) },
            TaskState::AlreadyDone,
            TaskState::Reverted {
                attempt: Attempt(1),
                why: why(),
            },
            TaskState::Rejected { blockers: vec![why()] },
            TaskState::TimedOut {
                attempt: Attempt(1),
                phase: Phase::Soaking,
            },
            TaskState::NeedsAttention {
                attempt: Attempt(1),
                why: why(),
            },
            TaskState::Skipped,
        ]);
        states
    }

    fn every_report() -> Vec<Progress> {
        let why = || "why".to_owned();
        let phases = [
            AgentPhase::Preflight,
            AgentPhase::Applying,
            AgentPhase::Verifying,
            AgentPhase::Soaking,
            AgentPhase::Reverting,
        ];
        let mut reports: Vec<_> = phases.into_iter().map(|phase| Progress::In { phase }).collect();
        reports.extend([
            Progress::Rejected { blockers: vec![why()] },
            Progress::Reverted { why: why() },
            Progress::Confirmed,
            Progress::NeedsAttention { why: why() },
        ]);
        reports
    }

    /// The transition table: a line per state, a column per report in the order of `every_report`.
    /// `=` known already, `!` refused, else the first letters of the new state.
    const TABLE: &[(&str, &str)] = &[
        ("OFFERED", "PRE APP VER SOA RVG REJ REV ! NEE"),
        ("PREFLIGHT", "= APP VER SOA RVG REJ REV ! NEE"),
        ("APPLYING", "= = VER SOA RVG REJ REV ! NEE"),
        ("VERIFYING", "= = = SOA RVG ! REV ! NEE"),
        ("SOAKING", "= = = = RVG ! REV ! NEE"),
        ("CONFIRMING", "= = = = RVG ! REV CON NEE"),
        ("REVERTING", "= = = = = REJ REV ! NEE"),
        ("PENDING", "! ! ! ! ! ! ! ! !"),
        ("CONFIRMED", "! ! ! ! ! ! ! = !"),
        ("ALREADY_DONE", "! ! ! ! ! ! ! ! !"),
        ("REVERTED", "! ! ! ! ! ! = ! !"),
        ("REJECTED", "! ! ! ! ! = ! ! !"),
        ("TIMED_OUT", "! ! ! ! ! ! ! ! !"),
        ("NEEDS_ATTENTION", "! ! ! ! ! ! ! ! ="),
        ("SKIPPED", "! ! ! ! ! ! ! ! !"),
    ];

    #[test]
    fn every_report_in_every_state_does_what_the_table_says() {
        let shown: Vec<(String, String)> = every_state()
            .iter()
            .map(|state| {
                let row: Vec<String> = every_report()
                    .iter()
                    .map(|report| match state.hear(Attempt(1), report, NOW) {
                        Ok(Heard::Known) => "=".to_owned(),
                        Ok(Heard::Moved(to)) if to.name() == "REVERTING" => "RVG".to_owned(),
                        Ok(Heard::Moved(to)) => to.name()[..3].to_owned(),
                        Err(_) => "!".to_owned(),
                    })
                    .collect();
                (state.name().to_owned(), row.join(" "))
            })
            .collect();
        let table: Vec<(String, String)> = TABLE.iter().map(|(s, r)| ((*s).to_owned(), (*r).to_owned())).collect();
        assert_eq!(shown, table);
    }

    #[test]
    fn another_attempt_is_refused_in_every_state() {
        for state in every_state() {
            for report in every_report() {
                let heard = state.hear(Attempt(2), &report, NOW);
                let repeat_of_rejection = matches!(
                    (&state, &report),
                    (TaskState::Rejected { .. }, Progress::Rejected { .. })
                );
                assert!(heard.is_err() || repeat_of_rejection, "{state:?} heard {report:?}");
            }
        }
    }

    #[test]
    fn only_soaking_can_be_confirmed_and_what_is_not_confirmed_be_taken_back() {
        for state in every_state() {
            let not_confirmed = Phase::ALL
                .into_iter()
                .filter(|phase| *phase < Phase::Confirming)
                .map(under_way);
            let soaking = state == under_way(Phase::Soaking);
            assert_eq!(state.steer(Phase::Confirming, NOW).is_ok(), soaking, "{state:?}");
            assert_eq!(
                state.steer(Phase::Reverting, NOW).is_ok(),
                not_confirmed.into_iter().any(|phase| phase == state),
                "{state:?}"
            );
            assert_eq!(
                state.grant(Attempt(1), NOW, NOW).is_ok(),
                state == TaskState::Pending,
                "{state:?}"
            );
        }
    }
}
