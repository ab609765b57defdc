//! What the next commit is to do.

use std::collections::BTreeSet;
use std::sync::Arc;

use nftfleet_domain::service::Vip;

use super::{Known, Table};
use crate::dataplane::desired::{Desired, Key, Pods};
use crate::dataplane::diff::{Difference, difference};
use crate::dataplane::layout::{Chain, Layout, LayoutSettings, Set};
use crate::dataplane::leaving::Leaving;
use crate::dataplane::programmed::{Change, Element, Programmed, Sticky, sticky_of};

/// The next commit.
pub(super) struct Step {
    /// Whether the table is deleted first.
    pub replace: bool,
    /// Whether it is made.
    pub make: bool,
    /// Whether the table is dormant after it.
    pub dormant: bool,
    /// Its sets and chains after it.
    pub layout: Arc<Layout>,
    /// What its rules are made for.
    pub pods: Pods,
    /// Chains whose rules are written anew whatever they are.
    pub stale_chains: Vec<String>,
    /// The elements that change.
    pub changes: Vec<Change>,
    /// Whether only rules are made, and packets are to be waited for before the next step.
    pub rules_first: bool,
}

impl Step {
    /// None if the kernel holds what is desired, but for what packets may still look for.
    pub fn next(
        settings: LayoutSettings,
        known: &Known,
        desired: &Desired,
        keys: &BTreeSet<Key>,
        dormant: bool,
        leaving: &mut Leaving,
    ) -> Option<Self> {
        let nothing = Programmed::default();
        let (table, replace, dormant): (Option<&Table>, _, _) = match known {
            Known::Table(table) => (Some(table), false, table.dormant),
            Known::Other { dormant } => (None, true, *dormant),
            Known::Nothing | Known::Absent => (None, false, dormant),
        };
        let programmed = table.map_or(&nothing, |table| &table.programmed);
        // No packet is under way through a table that hooks nothing.
        let may_leave = |vip: &Vip| dormant || !leaving.waits(vip);
        let Difference { changes, left_behind } = difference(desired, programmed, keys, may_leave);
        if !dormant {
            leaving.note(left_behind);
        }
        let held = table.map(|table| &table.layout.stickies);
        let needed = changes.iter().filter_map(needed_sticky);
        let new: BTreeSet<Sticky> = needed.filter(|s| held.is_none_or(|held| !held.contains(s))).collect();
        // A packet keeps to the rules of the moment in which it came: one that came before there were rules for a new group
        // would not find a VIP that is there alone.
        let rules_first = !dormant && table.is_some() && !new.is_empty();
        let layout = match table {
            Some(table) if table.pods == desired.pods && new.is_empty() => {
                if changes.is_empty() && table.stale_chains.is_empty() {
                    return None;
                }
                Arc::clone(&table.layout)
            }
            _ => {
                let stickies = held.into_iter().flatten().copied().chain(new).collect();
                Arc::new(Layout::new(settings, &desired.pods, &stickies))
            }
        };
        Some(Self {
            replace,
            make: table.is_none(),
            dormant,
            layout,
            pods: desired.pods.clone(),
            stale_chains: table.map(|table| table.stale_chains.clone()).unwrap_or_default(),
            changes: if rules_first { vec![] } else { changes },
            rules_first,
        })
    }
}

/// The sets and chains that differ between what is held and what is wanted.
pub(super) struct Objects<'a> {
    /// To be made.
    pub new_sets: Vec<&'a Set>,
    /// To be made.
    pub new_chains: Vec<&'a Chain>,
    /// To get other rules.
    pub rewrite: Vec<&'a Chain>,
}

impl<'a> Objects<'a> {
    pub fn new(held: Option<&Layout>, wanted: &'a Layout, stale_chains: &[String]) -> Self {
        let held_set = |name: &str| held.is_some_and(|held| held.sets.iter().any(|set| set.name == name));
        let held_chain = |name: &str| held.and_then(|held| held.chains.iter().find(|chain| chain.name == name));
        let is_stale = |chain: &Chain| stale_chains.contains(&chain.name);
        // Compared only if anything may differ: there are hundreds of both.
        if stale_chains.is_empty() && held.is_some_and(|held| std::ptr::eq(held, wanted)) {
            return Self {
                new_sets: vec![],
                new_chains: vec![],
                rewrite: vec![],
            };
        }
        let (old, new_chains): (Vec<_>, Vec<_>) = wanted.chains.iter().partition(|c| held_chain(&c.name).is_some());
        Self {
            new_sets: wanted.sets.iter().filter(|set| !held_set(&set.name)).collect(),
            new_chains,
            rewrite: old
                .into_iter()
                .filter(|chain| is_stale(chain) || held_chain(&chain.name) != Some(chain))
                .collect(),
        }
    }
}

fn needed_sticky(change: &Change) -> Option<Sticky> {
    match change {
        Change::Add(Element::Member(vip, which, group)) => sticky_of(*vip, *which, *group),
        _ => None,
    }
}
