//! Reads the table back: what differs from the layout in words, and every element as a value.

use std::collections::BTreeMap;

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::Family;

use super::element::{self, Kind};
use super::message::{self, INET, attributes, find, kind, number, text};
use super::{Netlink, object, userdata};
use crate::dataplane::desired::Programmed;
use crate::dataplane::kernel::{Kernel as _, KernelError, Observed};
use crate::dataplane::layout::{CLASSES, Hook, Layout, Set, TABLE, names};

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
            for (name, kind, family) in kinds() {
                let foreign = self.elements(&name, kind, family, &mut programmed)?;
                if foreign > 0 {
                    // Not an error: a stranger's element must not keep us from mending the table.
                    differences.push(format!("{foreign} elements of {name} are not of our making"));
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

    /// Reads a set's elements; gives the number of those that we never write.
    fn elements(
        &mut self,
        name: &str,
        kind: Kind,
        family: Family,
        programmed: &mut Programmed,
    ) -> Result<usize, KernelError> {
        let request = self.request(message::kind::GET_ELEMENTS, INET, Some(name));
        let mut foreign = 0;
        let each = |message: message::Received<'_>| {
            let Some(list) = find(message.body(), 3) else { return };
            for (_, element) in attributes(list) {
                let value = |kind| find(element, kind).and_then(|data| find(data, 1)).unwrap_or_default();
                match element::read(kind, family, value(1), value(2)) {
                    Some(element) => programmed.insert(element),
                    None => foreign += 1,
                }
            }
        };
        self.socket.dump(&request, each)?;
        Ok(foreign)
    }
}

/// Every set and map that holds elements of ours, and how to read them.
fn kinds() -> Vec<(String, Kind, Family)> {
    let mut kinds = Vec::new();
    for family in Family::BOTH {
        kinds.push((names::endpoints(family), Kind::Slots, family));
        kinds.push((names::cluster_ips(family), Kind::ClusterIps, family));
        kinds.push((names::hairpin(family), Kind::Local, family));
        kinds.extend(CLASSES.map(|class| (names::service(family, class), Kind::Class(class), family)));
    }
    kinds
}

/// Flags, key type, key length, data type and data length, as the kernel dumps them.
fn set_numbers(set: &Set) -> [u32; 5] {
    let is_map = u32::from(!set.data.is_empty());
    [
        8 * is_map,
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
