//! Reads the table back: what differs from the layout in words, and every element as a value.

use std::collections::BTreeMap;

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::Family;

use super::element::{Elements, SetId};
use super::message::{self, INET, find, kind, number, text};
use super::{Netlink, object, userdata};
use crate::dataplane::kernel::{Kernel as _, KernelError, Observed};
use crate::dataplane::layout::{Hook, Layout, Set, TABLE, classes};
use crate::dataplane::programmed::{Group, Programmed, Which};

/// `NF_ACCEPT`, the policy of our base chains.
const ACCEPT: u32 = 1;

impl Netlink {
    /// Reads the whole table, and compares its sets, chains and rules with what is expected.
    pub(super) fn observe_once(&mut self, expected: &Layout) -> Result<Option<Observed>, KernelError> {
        let state = self.state()?;
        if state == TableState::Absent {
            return Ok(None);
        }
        let mut differences = self.set_differences(expected)?;
        differences.extend(self.chain_differences(expected)?);
        let stale_chains = self.stale_chains(expected)?;
        let mut programmed = Programmed::default();
        if differences.is_empty() {
            for set in sets_with_elements(expected) {
                let elements = self.elements(set)?;
                if elements.foreign > 0 {
                    // Not an error: a stranger's element must not keep us from mending the table.
                    let (foreign, name) = (elements.foreign, set.name());
                    differences.push(format!("{foreign} elements of {name} are not of our making"));
                }
                for element in elements.read {
                    programmed.insert(element);
                }
            }
        }
        Ok(Some(Observed {
            dormant: state == TableState::Dormant,
            differences,
            stale_chains,
            programmed,
        }))
    }

    fn set_differences(&mut self, expected: &Layout) -> Result<Vec<String>, KernelError> {
        let mut found = BTreeMap::new();
        let request = self.request(kind::GET_SET, INET, None);
        let each = |message: message::Received<'_>| {
            let field = |kind| find(message.body(), kind).and_then(number).unwrap_or(0);
            if let Some(name) = find(message.body(), 2) {
                let userdata = find(message.body(), 13).unwrap_or_default().to_vec();
                found.insert(
                    text(name),
                    ([field(3), field(4), field(5), field(6), field(7)], userdata),
                );
            }
        };
        self.socket.dump(&request, each)?;
        let wanted = expected
            .sets
            .iter()
            .map(|set| (set.name.clone(), (set_numbers(set), userdata::of_set(set))));
        Ok(differences("set", &wanted.collect(), &found))
    }

    fn chain_differences(&mut self, expected: &Layout) -> Result<Vec<String>, KernelError> {
        let mut found = BTreeMap::new();
        let request = self.request(kind::GET_CHAIN, INET, None);
        let each = |message: message::Received<'_>| {
            // The kernel lists every table's chains, whatever table was asked for.
            if find(message.body(), 1).map(text).as_deref() != Some(TABLE) {
                return;
            }
            if let Some(name) = find(message.body(), 3) {
                let hook = find(message.body(), 4).and_then(|hook| {
                    let number_of = |kind| find(hook, kind).and_then(number);
                    Some(Hook {
                        number: number_of(1)?,
                        priority: number_of(2)?.cast_signed(),
                    })
                });
                let kind = find(message.body(), 7).map(text);
                let policy = find(message.body(), 5).and_then(number);
                found.insert(text(name), hook.map(|hook| (hook, kind, policy)));
            }
        };
        self.socket.dump(&request, each)?;
        let wanted = expected
            .chains
            .iter()
            .map(|chain| {
                let hooked_in = |hook| (hook, Some("nat".to_owned()), Some(ACCEPT));
                (chain.name.clone(), chain.hook.map(hooked_in))
            })
            .collect();
        Ok(differences("chain", &wanted, &found))
    }

    /// The chains of ours whose rules differ. A rule that can't be read is one that we did not write.
    fn stale_chains(&mut self, expected: &Layout) -> Result<Vec<String>, KernelError> {
        let mut found = BTreeMap::<String, Vec<Vec<String>>>::new();
        let request = self.request(kind::GET_RULE, INET, None);
        let each = |message: message::Received<'_>| {
            if let Some(chain) = find(message.body(), 2) {
                let instructions = object::dumped_rule(message.whole).unwrap_or_default();
                found.entry(text(chain)).or_default().push(instructions);
            }
        };
        self.socket.dump(&request, each)?;
        let mut stale = Vec::new();
        for chain in &expected.chains {
            let wanted: Result<Vec<_>, _> = chain.rules.iter().map(object::rule_text).collect();
            if wanted? != found.remove(&chain.name).unwrap_or_default() {
                stale.push(chain.name.clone());
            }
        }
        Ok(stale)
    }

    /// Reads a set's elements.
    fn elements(&mut self, set: SetId) -> Result<Elements, KernelError> {
        let request = self.request(message::kind::GET_ELEMENTS, INET, Some(&set.name()));
        let mut elements = Elements::default();
        let each = |message: message::Received<'_>| {
            if let Some(list) = find(message.body(), 3) {
                elements.take(set, list);
            }
        };
        self.socket.dump(&request, each)?;
        elements.close_ranges();
        Ok(elements)
    }
}

/// Every set and map that holds elements of ours.
fn sets_with_elements(layout: &Layout) -> Vec<SetId> {
    let mut sets = Vec::new();
    for family in Family::BOTH {
        sets.extend(SetId::constant(family));
        for which in Which::BOTH {
            let group = |class: &u16| SetId::Group(family, which, Group::Class(*class));
            sets.extend(classes(which).iter().map(group));
        }
    }
    sets.extend(layout.stickies.iter().map(|sticky| {
        let group = Group::Sticky {
            timeout: sticky.timeout,
            class: sticky.class,
        };
        SetId::Group(sticky.family, sticky.which, group)
    }));
    sets
}

/// Flags, key type, key length, data type and data length, as the kernel dumps them.
fn set_numbers(set: &Set) -> [u32; 5] {
    [
        object::set_flags(set),
        object::type_number(&set.key, set.family),
        object::length_of(&set.key, set.family),
        object::type_number(&set.data, set.family),
        object::length_of(&set.data, set.family),
    ]
}

fn differences<T: PartialEq>(what: &str, wanted: &BTreeMap<String, T>, found: &BTreeMap<String, T>) -> Vec<String> {
    let mut differences = Vec::new();
    for name in found.keys().filter(|name| !wanted.contains_key(*name)) {
        differences.push(format!("{what} {name} is not ours"));
    }
    for (name, wanted) in wanted {
        match found.get(name) {
            None => differences.push(format!("{what} {name} is missing")),
            Some(found) if found != wanted => differences.push(format!("{what} {name} differs")),
            Some(_) => {}
        }
    }
    differences
}
