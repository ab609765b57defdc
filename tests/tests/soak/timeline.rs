//! When each VIP may have meant what.
//!
//! A change is told to the data plane at one time and seen done at a later one; in between a packet may meet the VIP as it was
//! or as it is going to be. So a state is possible from the moment in which it is told until the next one is seen done.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use nftfleet_domain::service::Vip;
use rand::Rng;
use rand::seq::IndexedRandom as _;

use crate::oracle::{ABSENT, Means};
use crate::world::Asker;

/// How long a state is kept after it has gone: longer than any attempt takes.
const KEPT: Duration = Duration::from_secs(20);

/// How many changes are remembered in words, and how near to the begin of an attempt they may matter.
const DIARY: usize = 200;
const RECENT: Duration = Duration::from_millis(50);

/// How often a client asks for a VIP that serves somebody, rather than for any that there ever was.
const SERVED_SHARE: f64 = 0.9;

/// What a VIP meant, and since when.
#[derive(Clone, Debug)]
struct State {
    /// When the data plane was told, none if it has always been so.
    told: Option<Instant>,
    /// When it was seen done.
    done: Option<Instant>,
    means: Means,
}

/// The states of every VIP.
#[derive(Debug, Default)]
pub struct Timeline {
    states: BTreeMap<Vip, VecDeque<State>>,
    /// What is to be.
    present: BTreeMap<Vip, Means>,
    /// VIPs with a state that is not seen done.
    pending: Vec<Vip>,
    ever: Vec<Vip>,
    served: Vec<Vip>,
    /// The last changes in words. Some change the table and not what a VIP means.
    diary: VecDeque<(Instant, String)>,
}

impl Timeline {
    /// What these VIPs are going to mean, from now on. The data plane must not have been told before.
    pub fn tell(&mut self, now: Instant, meanings: BTreeMap<Vip, Means>) {
        for (vip, means) in meanings {
            if self.present.get(&vip).unwrap_or(&ABSENT) == &means {
                continue;
            }
            let states = self.states.entry(vip).or_insert_with(|| {
                self.ever.push(vip);
                let before = State {
                    told: None,
                    done: None,
                    means: ABSENT,
                };
                [before].into()
            });
            states.push_back(State {
                told: Some(now),
                done: None,
                means: means.clone(),
            });
            self.pending.push(vip);
            self.present.insert(vip, means);
        }
        let is_served = |means: &Means| means.fates.iter().any(|fate| fate.servers().is_some());
        let served = self.present.iter().filter(|(_, means)| is_served(means));
        self.served = served.map(|(vip, _)| *vip).collect();
    }

    /// A change that is about to be told, in words.
    pub fn write(&mut self, now: Instant, change: String) {
        if self.diary.len() == DIARY {
            self.diary.pop_front();
        }
        self.diary.push_back((now, change));
    }

    /// All that was told has been seen done.
    pub fn done(&mut self, now: Instant) {
        for vip in std::mem::take(&mut self.pending) {
            let Some(states) = self.states.get_mut(&vip) else {
                continue;
            };
            for state in states.iter_mut().filter(|state| state.told.is_some()) {
                state.done = state.done.or(Some(now));
            }
            let is_old = |state: &State| state.done.is_some_and(|done| now.duration_since(done) > KEPT);
            while states.get(1).is_some_and(is_old) {
                states.pop_front();
            }
        }
    }

    /// What the VIP may have meant to somebody between these two moments.
    pub fn between(&self, vip: Vip, from: Instant, to: Instant) -> Vec<&Means> {
        let Some(states) = self.states.get(&vip) else {
            return vec![&ABSENT];
        };
        let replaced = states.iter().skip(1).map(|next| next.done).chain([None]);
        let possible = states.iter().zip(replaced).filter(|(state, replaced)| {
            state.told.is_none_or(|told| told <= to) && replaced.is_none_or(|replaced| replaced >= from)
        });
        possible.map(|(state, _)| &state.means).collect()
    }

    /// What the VIP may have meant to somebody between these moments and what was changed, for a person who looks into a failure.
    pub fn story(&self, vip: Vip, from: Instant, to: Instant, whom: Asker) -> String {
        use std::fmt::Write as _;
        let first = self.states.values().flatten().filter_map(|state| state.told).min();
        let since = first.map(|first| from.duration_since(first));
        let mut story = format!(
            "{vip}, {:?} long, {since:?} after the first change",
            to.duration_since(from)
        );
        for means in self.between(vip, from, to) {
            let (fate, serving) = (means.fates[whom as usize], means.serving);
            write!(story, "\n    {fate:?}, flows to {serving:?}").expect("a String takes every line");
        }
        let recent = self
            .diary
            .iter()
            .filter(|(at, _)| *at + RECENT > from && *at < from + RECENT);
        for (at, change) in recent {
            let ago = from.saturating_duration_since(*at);
            write!(story, "\n    {ago:?} before: {change}").expect("a String takes every line");
        }
        story
    }

    /// A VIP to ask for, most often one that serves somebody; none while there was none.
    pub fn any_vip(&self, random: &mut impl Rng) -> Option<Vip> {
        let most = random
            .random_bool(SERVED_SHARE)
            .then(|| self.served.choose(random))
            .flatten();
        most.or_else(|| self.ever.choose(random)).copied()
    }

    /// What every VIP is to mean.
    pub fn present(&self) -> &BTreeMap<Vip, Means> {
        &self.present
    }
}
