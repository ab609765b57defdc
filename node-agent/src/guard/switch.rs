//! The dead-man's switch as a value: requests and the time in, what is to be done out. Pure.
//!
//! Times are durations since boot on a clock that counts suspension and that nobody can set.

use std::time::Duration;

use super::protocol::{Refusal, State};

/// Between two tries to put the table to sleep.
const RETRY: Duration = Duration::from_millis(100);

/// How long a table that was put to sleep is kept asleep. An agent that dies in the middle of its flip may have left it to the
/// kernel, which does it after our own transaction. A transaction waits for those before it: kube-proxy's largest take seconds.
const HOLD: Duration = Duration::from_secs(10);

/// Between two looks meanwhile.
const HOLD_ROUND: Duration = Duration::from_millis(500);

/// The switch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Switch {
    /// Nothing is waited for.
    #[default]
    Idle,
    /// The table goes to sleep at the deadline.
    Armed {
        /// The attempt.
        id: String,
        /// When.
        deadline: Duration,
    },
    /// The deadline has passed; the kernel has not said yet that the table is asleep.
    Firing {
        /// The attempt.
        id: String,
        /// When it is tried next.
        next: Duration,
    },
    /// The table is asleep.
    Fired {
        /// The attempt.
        id: String,
        /// When it is looked at next, and until when it is kept so; none once that is over.
        held: Option<(Duration, Duration)>,
    },
}

impl Switch {
    /// Arms it, or makes the wait shorter. It is never made longer: a clock that was set back, or a mistaken agent, would keep
    /// a node for ever that nobody has confirmed.
    pub fn arm(&mut self, attempt: &str, left: Duration, now: Duration) -> Result<(), Refusal> {
        let end = now.saturating_add(left);
        match self {
            Self::Armed { id, deadline } if id == attempt => *deadline = end.min(*deadline),
            Self::Firing { id, .. } | Self::Fired { id, .. } if id == attempt => return Err(Refusal::Fired),
            Self::Armed { id, .. } | Self::Firing { id, .. } => return Err(Refusal::Other { id: id.clone() }),
            Self::Idle | Self::Fired { .. } => {
                *self = Self::Armed {
                    id: attempt.to_owned(),
                    deadline: end,
                }
            }
        }
        Ok(())
    }

    /// Disarms it. What has fired stays so, but the table is left to the agent from now on.
    pub fn disarm(&mut self, attempt: &str) -> Result<(), Refusal> {
        match self {
            Self::Armed { id, .. } if id == attempt => *self = Self::Idle,
            Self::Firing { id, .. } | Self::Fired { id, .. } if id == attempt => {
                *self = Self::Fired {
                    id: attempt.to_owned(),
                    held: None,
                }
            }
            Self::Armed { id, .. } | Self::Firing { id, .. } => return Err(Refusal::Other { id: id.clone() }),
            Self::Idle | Self::Fired { .. } => {}
        }
        Ok(())
    }

    /// Whether it waits for the end of this attempt.
    pub fn is_armed_for(&self, attempt: &str) -> bool {
        matches!(self, Self::Armed { id, .. } if id == attempt)
    }

    /// Its state, as it is told.
    pub fn state(&self, now: Duration) -> State {
        match self {
            Self::Idle => State::Idle,
            Self::Armed { id, deadline } => State::Armed {
                id: id.clone(),
                left_ms: deadline.saturating_sub(now).as_millis().try_into().unwrap_or(u64::MAX),
            },
            Self::Firing { id, .. } | Self::Fired { id, .. } => State::Fired {
                id: id.clone(),
                asleep: matches!(self, Self::Fired { .. }),
            },
        }
    }

    /// When the table is to be put to sleep next; none while there is nothing to wait for.
    pub fn due(&self) -> Option<Duration> {
        match self {
            Self::Idle => None,
            Self::Armed { deadline, .. } => Some(*deadline),
            Self::Firing { next, .. } => Some(*next),
            Self::Fired { held, .. } => held.map(|(next, _)| next),
        }
    }

    /// What follows from the try that was due: `is_asleep` is the kernel's word.
    pub fn tried(&mut self, is_asleep: bool, now: Duration) {
        let (id, until) = match std::mem::take(self) {
            Self::Idle => return,
            Self::Fired { id, held } => (id, held.map_or(now, |(_, until)| until)),
            Self::Armed { id, .. } | Self::Firing { id, .. } => (id, now.saturating_add(HOLD)),
        };
        *self = if is_asleep {
            let next = now.saturating_add(HOLD_ROUND);
            Self::Fired {
                id,
                held: (next <= until).then_some((next, until)),
            }
        } else {
            let next = now.saturating_add(RETRY);
            Self::Firing { id, next }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn armed(left: u64) -> Switch {
        let mut switch = Switch::default();
        switch.arm("a/1", at(left), at(1000)).unwrap();
        switch
    }

    fn other() -> Refusal {
        Refusal::Other { id: "a/1".to_owned() }
    }

    #[test]
    fn it_waits_fires_and_holds_the_table() {
        let mut switch = armed(500);
        assert_eq!(switch.due(), Some(at(1500)));
        let told = |switch: &Switch, now| switch.state(at(now));
        let (id, left_ms) = ("a/1".to_owned(), 400);
        assert_eq!(
            told(&switch, 1100),
            State::Armed {
                id: id.clone(),
                left_ms
            }
        );
        switch.tried(false, at(1500));
        let fired = |asleep| State::Fired { id: id.clone(), asleep };
        assert_eq!((told(&switch, 1500), switch.due()), (fired(false), Some(at(1600))));
        switch.tried(true, at(1600));
        assert_eq!((told(&switch, 1600), switch.due()), (fired(true), Some(at(2100))));
        let mut looks = 0;
        while let Some(due) = switch.due() {
            assert!(due <= at(1600) + HOLD);
            switch.tried(true, due);
            looks += 1;
        }
        assert_eq!(looks, HOLD.as_millis() / HOLD_ROUND.as_millis());
        assert_eq!(told(&switch, 60_000), fired(true));
    }

    #[test]
    fn the_same_attempt_never_waits_longer_and_another_is_refused() {
        let mut switch = armed(500);
        switch.arm("a/1", at(9000), at(1100)).unwrap();
        assert_eq!(switch.due(), Some(at(1500)));
        switch.arm("a/1", at(100), at(1100)).unwrap();
        assert_eq!(switch.due(), Some(at(1200)));
        assert_eq!(switch.arm("a/2", at(9000), at(1100)), Err(other()));
        assert_eq!(switch.disarm("a/2"), Err(other()));
        switch.tried(false, at(1200));
        assert_eq!(switch.arm("a/2", at(9000), at(1200)), Err(other()), "it still tries");
    }

    #[test]
    fn disarming_may_be_repeated() {
        let mut switch = armed(500);
        for _ in 0..2 {
            switch.disarm("a/1").unwrap();
            assert_eq!((switch.state(at(1100)), switch.due()), (State::Idle, None));
        }
        switch.arm("a/2", at(1), at(1100)).unwrap();
    }

    #[test]
    fn what_has_fired_is_not_armed_again_and_gives_way_to_the_next_attempt() {
        let mut switch = armed(500);
        switch.tried(true, at(1500));
        assert_eq!(switch.arm("a/1", at(500), at(1500)), Err(Refusal::Fired));
        assert!(switch.due().is_some(), "it is kept asleep");
        for _ in 0..2 {
            switch.disarm("a/1").unwrap();
            assert_eq!(switch.due(), None, "the table is left to the agent");
            assert!(switch.state(at(1500)).has_fired("a/1"));
        }
        assert_eq!(switch.arm("a/1", at(500), at(1500)), Err(Refusal::Fired));
        switch.arm("a/2", at(500), at(1500)).unwrap();
        assert!(switch.is_armed_for("a/2"));
    }

    #[test]
    fn a_table_that_wakes_while_it_is_held_is_tried_until_it_sleeps() {
        let mut switch = armed(0);
        switch.tried(true, at(1000));
        switch.tried(false, at(1500));
        assert_eq!(switch.due(), Some(at(1600)));
        switch.tried(true, at(1600));
        assert!(switch.state(at(1600)).has_fired("a/1"));
    }

    proptest! {
        /// Whatever is asked in whatever order: unless it is disarmed, an attempt ends by its first deadline at the latest.
        #[test]
        fn nothing_but_disarming_moves_the_end_away(asked in prop::collection::vec((0_u8..3, 0_u64..2000, 0_u64..300), 0..40)) {
            let mut switch = armed(1000);
            let mut now = 1000;
            for (what, left, later) in asked {
                now += later;
                if switch.due().is_some_and(|due| due <= at(now)) {
                    break;
                }
                match what {
                    0 => drop(switch.arm("a/1", at(left), at(now))),
                    1 => drop(switch.arm("b/1", at(left), at(now))),
                    _ => drop(switch.disarm("b/1")),
                }
                prop_assert!(switch.is_armed_for("a/1"));
                prop_assert!(switch.due().unwrap() <= at(2000));
            }
        }
    }
}
