//! What comes next. Pure: the same position, assignment and time give the same answer.

use jiff::Timestamp;
use nftfleet_web_api_spec::types::{Assignment, ProgressKind, ProgressReport, Wanted, Work};

use super::position::{Armed, End, Job, Position};

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until something changes.
    Wait,
    /// The server is told this of work that is not, or no longer, under way here; then as with `Wait`.
    Tell(ProgressReport),
    /// The position changes, without any effect on the node.
    Enter(Position),
    /// The position's step is done, and says what comes after.
    Step,
}

/// Decides what comes next. `assignment` is none until the server was reached for the first time since the start: until
/// then nothing new is flipped, and what is flipped goes on towards its dead-man's switch. `is_proven` says whether the last
/// thing that this process did was a round of the soak's probe that passed: without one, no old rule is removed.
pub fn decide(position: &Position, assignment: Option<&Assignment>, is_proven: bool, now: Timestamp) -> Next {
    let work = assignment.and_then(|a| a.work.as_ref());
    match position {
        Position::Idle | Position::Moved { told: true, .. } | Position::Ended { told: true, .. } => {
            match (work, position.job()) {
                (None, _) => Next::Wait,
                (Some(work), Some(job)) if job.is(work) => again(position, work),
                (Some(work), _) => begin(position, work),
            }
        }
        // Until the server has heard the end, nothing else begins.
        Position::Moved { told: false, .. } | Position::Ended { told: false, .. } => Next::Wait,
        Position::Preflight { job } | Position::Loading { job, .. } => {
            // What was begun long ago may not be wanted any more: the server is asked first.
            if assignment.is_none() {
                return Next::Wait;
            }
            withdrawn(job, assignment).map_or(Next::Step, |why| revert(job, why))
        }
        Position::Flipping { job, armed } | Position::Verifying { job, armed } => {
            taken_back(job, armed, assignment, now).map_or(Next::Step, |why| revert(job, why))
        }
        Position::Soaking { job, armed } => {
            if let Some(why) = taken_back(job, armed, assignment, now) {
                return revert(job, why);
            }
            match work.map(|work| work.wanted) {
                Some(Wanted::Confirm) if is_proven => Next::Enter(Position::Confirming {
                    job: job.clone(),
                    baseline: armed.baseline.clone(),
                }),
                _ => Next::Step,
            }
        }
        Position::Confirming { .. } | Position::Reverting { .. } => Next::Step,
    }
}

fn revert(job: &Job, why: String) -> Next {
    Next::Enter(Position::Reverting { job: job.clone(), why })
}

/// What to do with work that is new to us.
fn begin(position: &Position, work: &Work) -> Next {
    let job = Job::from(work);
    let end = match work.wanted {
        // A node that is moved stays so.
        _ if position.is_moved() => {
            let reasons = vec!["already-moved: the node is on nftfleet's data plane".to_owned()];
            return Next::Tell(ProgressReport {
                task_id: job.task,
                attempt: job.attempt,
                progress: ProgressKind::Rejected,
                reasons,
            });
        }
        Wanted::Move => return Next::Enter(Position::Preflight { job }),
        Wanted::Revert => End::Reverted("taken back before it began".to_owned()),
        Wanted::Confirm => {
            End::NeedsAttention("the node's ledger knows nothing of this work, which was under way".to_owned())
        }
    };
    Next::Enter(Position::Ended { job, end, told: false })
}

/// What to tell when the server asks for work that has ended here and was told: it was put back to an older state.
fn again(position: &Position, work: &Work) -> Next {
    match (position.progress_untold(), work.wanted) {
        // The server must hear of the soak before it can confirm, and confirm before it can hear the end.
        (Some(progress), Wanted::Move) if position.is_moved() => Next::Tell(ProgressReport {
            progress: ProgressKind::Soaking,
            reasons: vec![],
            ..progress
        }),
        (Some(progress), _) => Next::Tell(progress),
        (None, _) => Next::Wait,
    }
}

/// Why the server does not want the work to go on, if it does not.
fn withdrawn(job: &Job, assignment: Option<&Assignment>) -> Option<String> {
    let assignment = assignment?;
    match assignment.work.as_ref().filter(|work| job.is(work)) {
        None => Some("the server has withdrawn the work".to_owned()),
        Some(work) if work.wanted == Wanted::Revert => Some("the server asked to go back".to_owned()),
        Some(_) => None,
    }
}

/// Why an unconfirmed flip is taken back, if it is: the dead-man's switch, or the server.
fn taken_back(job: &Job, armed: &Armed, assignment: Option<&Assignment>, now: Timestamp) -> Option<String> {
    if now >= armed.deadline {
        return Some(format!(
            "not confirmed within {} s of the flip",
            job.confirm_within_seconds
        ));
    }
    withdrawn(job, assignment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use nftfleet_web_api_spec::types::RolloutAction;
    use uuid::Uuid;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn work(wanted: Wanted) -> Work {
        Work {
            task_id: Uuid::nil(),
            rollout_id: Uuid::nil(),
            attempt: 1,
            action: RolloutAction::MoveToNftfleet,
            wanted,
            confirm_within_seconds: 60,
            probe: vec![],
        }
    }

    fn wants(wanted: Wanted) -> Assignment {
        Assignment {
            generation: 1,
            work: Some(work(wanted)),
        }
    }

    fn nothing() -> Assignment {
        Assignment {
            generation: 2,
            work: None,
        }
    }

    fn job() -> Job {
        Job::from(&work(Wanted::Move))
    }

    fn armed() -> Armed {
        Armed {
            baseline: vec![],
            deadline: NOW + SignedDuration::from_secs(60),
        }
    }

    fn all() -> Vec<Position> {
        let job = job();
        vec![
            Position::Idle,
            Position::Preflight { job: job.clone() },
            Position::Loading {
                job: job.clone(),
                baseline: vec![],
            },
            Position::Flipping {
                job: job.clone(),
                armed: armed(),
            },
            Position::Verifying {
                job: job.clone(),
                armed: armed(),
            },
            Position::Soaking {
                job: job.clone(),
                armed: armed(),
            },
            Position::Confirming {
                job: job.clone(),
                baseline: vec![],
            },
            Position::Moved {
                job: job.clone(),
                trouble: None,
                told: false,
            },
            Position::Moved {
                job: job.clone(),
                trouble: None,
                told: true,
            },
            Position::Reverting {
                job: job.clone(),
                why: String::new(),
            },
            Position::Ended {
                job: job.clone(),
                end: End::Reverted(String::new()),
                told: false,
            },
            Position::Ended {
                job,
                end: End::Reverted(String::new()),
                told: true,
            },
        ]
    }

    /// A letter per position in the order of `all`: w wait, t tell, s step, and the first letter of the position that is entered.
    fn row(assignment: Option<&Assignment>, is_proven: bool, now: Timestamp) -> String {
        all()
            .iter()
            .map(|position| match decide(position, assignment, is_proven, now) {
                Next::Wait => "w".to_owned(),
                Next::Tell(_) => "t".to_owned(),
                Next::Step => "s".to_owned(),
                Next::Enter(next) => next.name()[..1].to_uppercase(),
            })
            .collect()
    }

    #[test]
    fn every_position_and_every_wish() {
        let late = NOW + SignedDuration::from_secs(60);
        assert_eq!(row(None, true, NOW), "wwwsssswwsww", "the server was not reached yet");
        assert_eq!(row(Some(&wants(Wanted::Move)), true, NOW), "Psssssswtswt");
        assert_eq!(row(Some(&wants(Wanted::Confirm)), true, NOW), "EssssCswtswt");
        assert_eq!(
            row(Some(&wants(Wanted::Confirm)), false, NOW),
            "Esssssswtswt",
            "not without a probe that passed"
        );
        assert_eq!(row(Some(&wants(Wanted::Revert)), true, NOW), "ERRRRRswtswt");
        assert_eq!(row(Some(&nothing()), true, NOW), "wRRRRRswwsww", "withdrawn");
        assert_eq!(
            row(Some(&wants(Wanted::Move)), true, late),
            "PssRRRswtswt",
            "the dead-man's switch"
        );
        assert_eq!(
            row(None, true, late),
            "wwwRRRswwsww",
            "the dead-man's switch needs no server"
        );
    }

    #[test]
    fn a_moved_node_refuses_other_work_and_stays() {
        let moved = Position::Moved {
            job: job(),
            trouble: None,
            told: true,
        };
        let mut other = wants(Wanted::Move);
        other.work.as_mut().unwrap().attempt = 2;
        let Next::Tell(told) = decide(&moved, Some(&other), false, NOW) else {
            panic!("nothing told")
        };
        assert_eq!((told.progress, told.attempt), (ProgressKind::Rejected, 2));
    }

    #[test]
    fn a_server_that_forgot_the_end_hears_it_again() {
        let moved = Position::Moved {
            job: job(),
            trouble: None,
            told: true,
        };
        for (wanted, told) in [
            (Wanted::Move, ProgressKind::Soaking),
            (Wanted::Confirm, ProgressKind::Confirmed),
        ] {
            let Next::Tell(progress) = decide(&moved, Some(&wants(wanted)), false, NOW) else {
                panic!("nothing told")
            };
            assert_eq!(progress.progress, told);
        }
        let ended = Position::Ended {
            job: job(),
            end: End::Reverted("why".to_owned()),
            told: true,
        };
        let Next::Tell(progress) = decide(&ended, Some(&wants(Wanted::Move)), false, NOW) else {
            panic!("nothing told")
        };
        assert_eq!(progress.progress, ProgressKind::Reverted);
    }

    #[test]
    fn a_new_attempt_begins_after_an_ended_one_was_told() {
        let ended = Position::Ended {
            job: job(),
            end: End::Reverted(String::new()),
            told: true,
        };
        let mut again = wants(Wanted::Move);
        again.work.as_mut().unwrap().attempt = 2;
        assert!(
            matches!(decide(&ended, Some(&again), false, NOW), Next::Enter(Position::Preflight { job }) if job.attempt == 2)
        );
    }

    #[test]
    fn work_that_the_ledger_does_not_know_asks_for_a_person() {
        let Next::Enter(Position::Ended { end, .. }) =
            decide(&Position::Idle, Some(&wants(Wanted::Confirm)), false, NOW)
        else {
            panic!("not ended");
        };
        assert!(matches!(end, End::NeedsAttention(_)));
    }
}
