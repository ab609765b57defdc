//! What comes next. Pure: the same position, orders and time give the same answer.

use jiff::{SignedDuration, Timestamp};
use nftfleet_web_api_spec::types::{Assignment, ProgressKind, ProgressReport, Wanted, Work};

use super::position::{Armed, By, End, Job, Position};

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

/// What a person on the node has asked for and was promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// To move the node. Only given when nothing is under way.
    Switch(Job),
    /// To go back, from wherever the node is. Comes before what the server wants.
    Rollback {
        /// Without waiting until kube-proxy's rules are seen to be in sync.
        now: bool,
    },
}

/// What is wanted of the node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Orders<'a> {
    /// By the server: none until it was reached for the first time since the start. Until then nothing of its work is flipped,
    /// and what is flipped goes on towards its dead-man's switch.
    pub server: Option<&'a Assignment>,
    /// By a person.
    pub person: Option<&'a Order>,
}

/// What whoever wants the work wants of it now.
enum Wish {
    /// Nobody can tell yet.
    Unknown,
    /// To go on.
    GoOn,
    /// To keep what is flipped, and remove the old rules.
    Keep,
    /// To go back.
    Back(String),
}

/// Decides what comes next. `is_proven` says whether the last thing that this process did was a round of the soak's probe that
/// passed: without one, no old rule is removed.
pub fn decide(position: &Position, orders: Orders<'_>, is_proven: bool, now: Timestamp) -> Next {
    match position {
        // Until the server has heard the end, nothing else begins.
        _ if position.is_untold() => match orders.person {
            Some(order @ Order::Rollback { .. }) => by_person(position, order),
            _ => Next::Wait,
        },
        Position::Idle | Position::Moved { .. } | Position::Ended { .. } => match (orders.person, orders.work()) {
            (Some(order), _) => by_person(position, order),
            (None, None) => Next::Wait,
            (None, Some(work)) => match position.job() {
                Some(job) if job.is(work) => again(position, work),
                _ => begin(position, work),
            },
        },
        Position::Preflight { job }
        | Position::Snapshotting { job, .. }
        | Position::Loading { job, .. }
        | Position::Rehearsing { job, .. } => match wish(job, None, orders, now) {
            // What was begun long ago may not be wanted any more: who wants it is asked first.
            Wish::Unknown => Next::Wait,
            Wish::Back(why) => revert(job, why),
            Wish::GoOn | Wish::Keep => Next::Step,
        },
        Position::Flipping { job, armed } | Position::Verifying { job, armed } => {
            match wish(job, Some(armed), orders, now) {
                Wish::Back(why) => revert(job, why),
                Wish::Unknown | Wish::GoOn | Wish::Keep => Next::Step,
            }
        }
        Position::Soaking { job, armed } => match wish(job, Some(armed), orders, now) {
            Wish::Back(why) => revert(job, why),
            Wish::Keep if is_proven => Next::Enter(Position::Parking {
                job: job.clone(),
                baseline: armed.baseline.clone(),
                until: None,
            }),
            Wish::Unknown | Wish::GoOn | Wish::Keep => Next::Step,
        },
        Position::Parking { .. } | Position::StandingBy { .. } | Position::Confirming { .. } => match orders.person {
            Some(order @ Order::Rollback { .. }) => by_person(position, order),
            _ => match position {
                Position::StandingBy { job, baseline, until } if is_proven && now >= *until => {
                    Next::Enter(Position::Confirming {
                        job: job.clone(),
                        baseline: baseline.clone(),
                        until: None,
                    })
                }
                _ => Next::Step,
            },
        },
        Position::Returning { .. } => match orders.person {
            Some(order @ Order::Rollback { now: true }) => by_person(position, order),
            _ => Next::Step,
        },
        Position::Reverting { .. } => Next::Step,
    }
}

impl<'a> Orders<'a> {
    /// The server's work, if it has any for this node.
    fn work(&self) -> Option<&'a Work> {
        self.server?.work.as_ref()
    }
}

/// The way back of a move that is not confirmed: kube-proxy was never sent away.
fn revert(job: &Job, why: String) -> Next {
    Next::Enter(Position::Reverting {
        job: job.clone(),
        why,
        let_in: false,
    })
}

/// Why a person's word ends what was under way.
const ASKED_BACK: &str = "a person on the node asked to go back";

/// What to do with a person's order where the table may be the only thing that answers, or nothing is under way.
fn by_person(position: &Position, order: &Order) -> Next {
    match (order, position.job()) {
        (Order::Switch(job), _) if !position.is_moved() => Next::Enter(Position::Preflight { job: job.clone() }),
        (Order::Rollback { now: true }, Some(job)) if position.is_moved() => Next::Enter(Position::Reverting {
            job: job.clone(),
            why: format!("{ASKED_BACK} at once"),
            let_in: true,
        }),
        (Order::Rollback { now: false }, Some(job)) if position.is_moved() => Next::Enter(Position::Returning {
            job: job.clone(),
            why: ASKED_BACK.to_owned(),
        }),
        // There is nothing to go back from, or nothing more to move.
        _ => Next::Wait,
    }
}

/// What to do with work of the server's that is new to us.
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

/// What is wanted of work that is not confirmed yet.
fn wish(job: &Job, armed: Option<&Armed>, orders: Orders<'_>, now: Timestamp) -> Wish {
    if matches!(orders.person, Some(Order::Rollback { .. })) {
        return Wish::Back(ASKED_BACK.to_owned());
    }
    if armed.is_some_and(|armed| now >= armed.deadline) {
        return Wish::Back(format!(
            "not confirmed within {} s of the flip",
            job.confirm_within_seconds
        ));
    }
    match (job.by, orders.server) {
        (By::Person { hold_seconds }, _) => {
            let held = armed.is_some_and(|armed| {
                let left = SignedDuration::from_secs(
                    i64::from(job.confirm_within_seconds).saturating_sub(i64::from(hold_seconds)),
                );
                armed.deadline.saturating_sub(left).is_ok_and(|over| now >= over)
            });
            if held { Wish::Keep } else { Wish::GoOn }
        }
        (By::Server, None) => Wish::Unknown,
        (By::Server, Some(assignment)) => match assignment.work.as_ref().filter(|work| job.is(work)) {
            None => Wish::Back("the server has withdrawn the work".to_owned()),
            Some(work) => match work.wanted {
                Wanted::Revert => Wish::Back("the server asked to go back".to_owned()),
                Wanted::Move => Wish::GoOn,
                Wanted::Confirm => Wish::Keep,
            },
        },
    }
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
            Position::Snapshotting {
                job: job.clone(),
                baseline: vec![],
            },
            Position::Loading {
                job: job.clone(),
                baseline: vec![],
            },
            Position::Rehearsing {
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
            Position::Parking {
                job: job.clone(),
                baseline: vec![],
                until: None,
            },
            Position::StandingBy {
                job: job.clone(),
                baseline: vec![],
                until: NOW,
            },
            Position::Confirming {
                job: job.clone(),
                baseline: vec![],
                until: None,
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
            Position::Returning {
                job: job.clone(),
                why: String::new(),
            },
            Position::Reverting {
                job: job.clone(),
                why: String::new(),
                let_in: false,
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
        row_of(&all(), server(assignment), is_proven, now)
    }

    fn server(assignment: Option<&Assignment>) -> Orders<'_> {
        Orders {
            server: assignment,
            person: None,
        }
    }

    fn row_of(positions: &[Position], orders: Orders<'_>, is_proven: bool, now: Timestamp) -> String {
        positions
            .iter()
            .map(|position| match decide(position, orders, is_proven, now) {
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
        assert_eq!(
            row(None, true, NOW),
            "wwwwwssssCswwssww",
            "the server was not reached yet"
        );
        assert_eq!(row(Some(&wants(Wanted::Move)), true, NOW), "PssssssssCswtsswt");
        assert_eq!(row(Some(&wants(Wanted::Confirm)), true, NOW), "EssssssPsCswtsswt");
        assert_eq!(
            row(Some(&wants(Wanted::Confirm)), false, NOW),
            "Esssssssssswtsswt",
            "not without a probe that passed"
        );
        assert_eq!(row(Some(&wants(Wanted::Revert)), true, NOW), "ERRRRRRRsCswtsswt");
        assert_eq!(row(Some(&nothing()), true, NOW), "wRRRRRRRsCswwssww", "withdrawn");
        assert_eq!(
            row(Some(&wants(Wanted::Move)), true, late),
            "PssssRRRsCswtsswt",
            "the dead-man's switch"
        );
        assert_eq!(
            row(None, true, late),
            "wwwwwRRRsCswwssww",
            "the dead-man's switch needs no server"
        );
    }

    #[test]
    fn a_person_on_the_node_goes_back_from_everywhere_whatever_the_server_wants() {
        for server in [
            None,
            Some(wants(Wanted::Move)),
            Some(wants(Wanted::Confirm)),
            Some(nothing()),
        ] {
            let orders = Orders {
                server: server.as_ref(),
                person: Some(&Order::Rollback { now: false }),
            };
            // R stands for both ways: where old rules may be stale or gone, kube-proxy returns first.
            assert_eq!(row_of(&all(), orders, true, NOW), "wRRRRRRRRRRRRssww");
            for position in all().iter().filter(|position| position.is_moved()) {
                let next = decide(position, orders, true, NOW);
                let returns = matches!(next, Next::Enter(Position::Returning { .. }) | Next::Step);
                assert!(returns, "{position:?}: {next:?}");
            }
        }
    }

    #[test]
    fn a_persons_move_needs_no_server_and_is_kept_after_its_hold() {
        let mine = Job {
            by: By::Person { hold_seconds: 20 },
            ..job()
        };
        let order = Order::Switch(mine.clone());
        let orders = Orders {
            server: None,
            person: Some(&order),
        };
        let begun = Position::Preflight { job: mine.clone() };
        assert_eq!(decide(&Position::Idle, orders, false, NOW), Next::Enter(begun.clone()));
        let none = Orders::default();
        assert_eq!(decide(&begun, none, false, NOW), Next::Step);
        let soaking = Position::Soaking {
            job: mine,
            armed: armed(),
        };
        let at = |seconds| NOW + SignedDuration::from_secs(seconds);
        assert_eq!(decide(&soaking, none, true, at(19)), Next::Step);
        assert_eq!(decide(&soaking, none, false, at(20)), Next::Step, "not proven");
        assert!(matches!(
            decide(&soaking, none, true, at(20)),
            Next::Enter(Position::Parking { .. })
        ));
        assert!(matches!(
            decide(&soaking, none, true, at(60)),
            Next::Enter(Position::Reverting { .. })
        ));
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
        let Next::Tell(told) = decide(&moved, server(Some(&other)), false, NOW) else {
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
            let Next::Tell(progress) = decide(&moved, server(Some(&wants(wanted))), false, NOW) else {
                panic!("nothing told")
            };
            assert_eq!(progress.progress, told);
        }
        let ended = Position::Ended {
            job: job(),
            end: End::Reverted("why".to_owned()),
            told: true,
        };
        let Next::Tell(progress) = decide(&ended, server(Some(&wants(Wanted::Move))), false, NOW) else {
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
            matches!(decide(&ended, server(Some(&again)), false, NOW), Next::Enter(Position::Preflight { job }) if job.attempt == 2)
        );
    }

    #[test]
    fn work_that_the_ledger_does_not_know_asks_for_a_person() {
        let Next::Enter(Position::Ended { end, .. }) =
            decide(&Position::Idle, server(Some(&wants(Wanted::Confirm))), false, NOW)
        else {
            panic!("not ended");
        };
        assert!(matches!(end, End::NeedsAttention(_)));
    }
}
