//! The table `inet nftfleet`: its sets, chains and constant rules as plain values.
//!
//! There is no chain, rule or anonymous set per Service or endpoint. A Service is a few set elements, so a change costs the
//! same at any size (docs/DATAPLANE.md explains the table line by line):
//!
//! - `endpointsN` maps VIP and slot to an endpoint;
//! - `serviceN-C` holds the VIPs whose endpoints lie in slots 0 to C-1, and sends them to chain `slotsN-C`;
//! - `slotsN-C` draws a slot, and draws again when it is empty; its last rule takes slot 0, which is never empty while the
//!   Service has an endpoint, so no connection is refused by bad luck;
//! - `stickyN-T-C` does the same for Services with session affinity, by tickets which clients keep for T seconds; such a
//!   chain and its set are made when the first Service needs them.

mod class;
mod client;
pub mod names;
mod recognise;
mod rules;
mod sets;

use std::collections::BTreeSet;

use nftfleet_domain::service::Family;

pub use class::{CLASSES, class_of, classes, most_endpoints};
pub use client::client_key;
pub use recognise::{Instructions, recognise};
pub use rules::TICKETS;

use super::desired::Pods;
use super::expression::{Field, Rule};
use super::programmed::{Group, Sticky, Which};

/// The table's name; its family is `inet`.
pub const TABLE: &str = "nftfleet";

/// The table's comment, the first thing that a person reads.
pub const TABLE_COMMENT: &str = "Services of Kubernetes: made by nftfleet-agent, do not edit";

/// Where a VIP's local list begins among its slots.
pub const LOCAL_SLOTS: u32 = 32768;

/// Before kube-proxy's and iptables' -100, so that we decide first while the old rules still stand.
const DNAT_PRIORITY: i32 = -110;

/// Before kube-proxy's and iptables' 100, so that our mark is taken off before their masquerade rules look for it.
const SNAT_PRIORITY: i32 = 90;

/// What the table depends on from the agent's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutSettings {
    /// The packet mark's bit that carries "masquerade" from the first hook to the last, 0-31. kube-proxy's default is 14.
    pub masquerade_bit: u8,
    /// Whether every connection to a `ClusterIP` is masqueraded, whoever makes it.
    pub masquerade_all: bool,
}

/// A set or map of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// The family of its addresses.
    pub family: Family,
    /// The fields of its key, in order.
    pub key: Vec<Field>,
    /// The fields of its data; empty for a plain set.
    pub data: Vec<Field>,
    /// Whether an element may stand for a range.
    pub interval: bool,
    /// Set if packets put elements in: how many at the most.
    pub dynamic: Option<u32>,
    /// What it is for.
    pub comment: Option<String>,
}

/// Where a base chain hooks in; every one is of type nat with policy accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The hook's number (`NF_INET_*`).
    pub number: u32,
    /// Its priority.
    pub priority: i32,
}

/// A chain of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where it hooks in, if it does.
    pub hook: Option<Hook>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// The table without its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Sets and maps.
    pub sets: Vec<Set>,
    /// Chains; a chain stands before those that jump to it.
    pub chains: Vec<Chain>,
    /// The groups for session affinity that have a set and a chain.
    pub stickies: BTreeSet<Sticky>,
}

impl Layout {
    /// The table for these settings, with the chains and sets for session affinity that are needed.
    pub fn new(settings: LayoutSettings, pods: &Pods, stickies: &BTreeSet<Sticky>) -> Self {
        let mut sets = Vec::new();
        let mut chains = vec![rules::reject_connection()];
        for family in Family::BOTH {
            sets.extend(sets::constant(family));
            for which in Which::BOTH {
                let groups = groups(family, which, stickies);
                chains.push(rules::first_slot(family, which));
                chains.extend(groups.iter().flat_map(|group| rules::picking(family, which, *group)));
                chains.push(rules::pick(family, which, &groups));
                sets.extend(groups.into_iter().map(|group| sets::group(family, which, group)));
            }
            chains.extend(rules::dispatch(family, settings, pods.of(family)));
        }
        let base = |name: &str, number, priority, rules| Chain {
            name: name.to_owned(),
            hook: Some(Hook { number, priority }),
            rules,
        };
        chains.extend([
            base("prerouting", 0, DNAT_PRIORITY, rules::prerouting()),
            base("output", 3, DNAT_PRIORITY, rules::output()),
            base("postrouting", 4, SNAT_PRIORITY, rules::postrouting(settings)),
        ]);
        Self {
            sets,
            chains,
            stickies: stickies.clone(),
        }
    }
}

/// The groups of a list, in the order in which a packet meets their sets.
fn groups(family: Family, which: Which, stickies: &BTreeSet<Sticky>) -> Vec<Group> {
    let of_list = stickies.iter().filter(|s| s.family == family && s.which == which);
    let sticky = of_list.map(|sticky| Group::Sticky {
        timeout: sticky.timeout,
        class: sticky.class,
    });
    classes(which)
        .iter()
        .map(|class| Group::Class(*class))
        .chain(sticky)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::expression::{Expression, Verdict};

    #[test]
    fn every_target_of_a_verdict_stands_before_it() {
        let settings = LayoutSettings {
            masquerade_bit: 14,
            masquerade_all: false,
        };
        let stickies = Family::BOTH.into_iter().flat_map(|family| {
            Which::BOTH.map(|which| Sticky {
                family,
                which,
                timeout: 10,
                class: 3,
            })
        });
        let layout = Layout::new(settings, &Pods::default(), &stickies.collect());
        let mut seen = BTreeSet::new();
        for chain in &layout.chains {
            for rule in &chain.rules {
                for expression in &rule.expressions {
                    if let Expression::Verdict(Verdict::Jump(to) | Verdict::Goto(to)) = expression {
                        assert!(seen.contains(to), "{} jumps to {to}", chain.name);
                    }
                    if let Expression::Lookup { set, .. } | Expression::Dynamic { set, .. } = expression {
                        assert!(
                            layout.sets.iter().any(|s| s.name == *set),
                            "{} looks into {set}",
                            chain.name
                        );
                    }
                }
            }
            assert!(seen.insert(chain.name.clone()), "{} twice", chain.name);
        }
    }
}
