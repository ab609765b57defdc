//! The kernel's side: reads the table whole or not at all, and writes it in one transaction.

mod element;
mod message;
mod object;
mod socket;
mod userdata;

use std::collections::BTreeMap;

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::Family;
use nix::errno::Errno;

pub use object::CannotMake;
pub use socket::SocketError;

use self::element::Kind;
use self::message::{
    INET, LARGEST_LIST, SUBSYSTEM, attribute, attributes, begin_message, begin_nested, end_attribute, end_message,
    find, flag, kind, number, text, text_attribute,
};
use self::socket::Socket;
use super::desired::{Change, Element, Programmed};
use super::layout::{CLASSES, Hook, Layout, Set, TABLE, names};
use super::reconcile::{Kernel, Observed, Transaction};

/// `NF_ACCEPT`, the policy of our base chains.
const ACCEPT: u32 = 1;

/// How often an observation is tried again when the ruleset changes under it.
const OBSERVATION_TRIES: usize = 8;

/// Why the kernel could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Reading failed.
    #[error("the table can't be read: {0}")]
    Read(#[source] SocketError),
    /// A transaction was refused: nothing of it was done.
    #[error("the transaction was refused at {at}: {source}")]
    Refused {
        /// The message that was refused, in words.
        at: String,
        /// Why.
        source: SocketError,
    },
    /// The ruleset kept changing while the table was read.
    #[error("the ruleset changed {OBSERVATION_TRIES} times while the table was read")]
    Restless,
    /// The table holds what we never write: somebody else changed it.
    #[error("{0}")]
    Foreign(String),
    /// `libnftnl` failed.
    #[error(transparent)]
    CannotMake(#[from] CannotMake),
}

/// `nf_tables` of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a conversation with the kernel.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open() -> Result<Self, SocketError> {
        Ok(Self {
            socket: Socket::open()?,
            sequence: 0,
        })
    }

    /// The names of all tables with their family, for example `ip kube-proxy`.
    ///
    /// # Errors
    /// The dump failed.
    pub fn tables(&mut self) -> Result<Vec<String>, KernelError> {
        let mut tables = Vec::new();
        let request = self.request(kind::GET_TABLE, 0, None);
        let each = |message: message::Received<'_>| {
            let family = match message.payload().first() {
                Some(1) => "inet",
                Some(2) => "ip",
                Some(3) => "arp",
                Some(5) => "netdev",
                Some(7) => "bridge",
                Some(10) => "ip6",
                _ => "unknown",
            };
            if let Some(name) = find(message.body(), 1) {
                tables.push(format!("{family} {}", text(name)));
            }
        };
        self.socket.dump(&request, each).map_err(KernelError::Read)?;
        tables.sort();
        Ok(tables)
    }

    /// Whether our table is there, and hooked in.
    ///
    /// # Errors
    /// The dump failed.
    pub fn table_state(&mut self) -> Result<TableState, KernelError> {
        let mut state = TableState::Absent;
        let request = self.request(kind::GET_TABLE, INET, None);
        let each = |message: message::Received<'_>| {
            if find(message.body(), 1).map(text).as_deref() == Some(TABLE) {
                let flags = find(message.body(), 2).and_then(number).unwrap_or(0);
                state = if flags & 1 == 0 {
                    TableState::Active
                } else {
                    TableState::Dormant
                };
            }
        };
        self.socket.dump(&request, each).map_err(KernelError::Read)?;
        Ok(state)
    }

    /// A dump request for objects of our table, if a set is named for its elements.
    fn request(&mut self, kind: u16, family: u8, set: Option<&str>) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let flags = flag::ACKNOWLEDGE | flag::DUMP;
        let start = begin_message(&mut bytes, SUBSYSTEM << 8 | kind, flags, self.sequence, family, 0);
        if kind != message::kind::GET_TABLE {
            text_attribute(&mut bytes, 1, TABLE);
        }
        if let Some(set) = set {
            text_attribute(&mut bytes, 2, set);
        }
        end_message(&mut bytes, start);
        bytes
    }

    fn observe_once(&mut self, expected: &Layout) -> Result<Option<Observed>, KernelError> {
        let state = self.table_state()?;
        if state == TableState::Absent {
            return Ok(None);
        }
        let mut differences = self.set_differences(expected)?;
        differences.extend(self.chain_differences(expected)?);
        differences.extend(self.rule_differences(expected)?);
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
        self.socket.dump(&request, each).map_err(KernelError::Read)?;
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
        self.socket.dump(&request, each).map_err(KernelError::Read)?;
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

    fn rule_differences(&mut self, expected: &Layout) -> Result<Vec<String>, KernelError> {
        let mut found = BTreeMap::<String, Vec<Vec<String>>>::new();
        let request = self.request(kind::GET_RULE, INET, None);
        let mut unread = 0;
        let each = |message: message::Received<'_>| match object::dumped_rule(message.whole) {
            Some((chain, instructions)) => found.entry(chain).or_default().push(instructions),
            None => unread += 1,
        };
        self.socket.dump(&request, each).map_err(KernelError::Read)?;
        let mut wanted = BTreeMap::new();
        for chain in expected.chains.iter().filter(|chain| !chain.rules.is_empty()) {
            let texts: Result<Vec<_>, _> = chain.rules.iter().map(object::rule_text).collect();
            wanted.insert(chain.name.clone(), texts?);
        }
        let mut differences = differences("rules of chain", &wanted, &found);
        if unread > 0 {
            differences.push(format!("{unread} rules can't be read"));
        }
        Ok(differences)
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
        self.socket.dump(&request, each).map_err(KernelError::Read)?;
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

impl Kernel for Netlink {
    fn observe(&mut self, expected: &Layout) -> Result<Option<Observed>, KernelError> {
        for _ in 0..OBSERVATION_TRIES {
            match self.observe_once(expected) {
                Err(KernelError::Read(SocketError::Interrupted)) => {}
                // The table went while it was read: look again.
                Err(KernelError::Read(error)) if error.refusal() == Some(Errno::ENOENT) => {}
                done => return done,
            }
        }
        Err(KernelError::Restless)
    }

    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<(), KernelError> {
        let mut batch = Batch::begin(self.sequence.wrapping_add(1));
        if transaction.replace {
            batch.step("the old table", object::delete_table)?;
        }
        if let Some(layout) = transaction.make {
            batch.make(layout, transaction.dormant.unwrap_or(false))?;
        }
        batch.changes(transaction.changes);
        if transaction.make.is_none()
            && let Some(dormant) = transaction.dormant
        {
            // The kernel makes a table that is missing when it is told flags: an empty one, which would pass for ours. To put
            // a table to sleep is the way back, which must not fail because somebody damaged the table.
            if !dormant {
                batch.require(&names::cluster_ips(Family::V4));
            }
            batch.step("the table's flags", |bytes, sequence| {
                object::new_table(bytes, sequence, dormant)
            })?;
        }
        let Some(batch) = batch.end() else { return Ok(()) };
        self.sequence = batch.sequence;
        self.socket
            .commit(&batch.bytes, batch.first, batch.last)
            .map_err(|source| {
                let at = match &source {
                    SocketError::Refused { sequence, .. } => batch.named(*sequence),
                    _ => "sending".to_owned(),
                };
                KernelError::Refused { at, source }
            })
    }
}

/// A batch of messages under construction.
struct Batch {
    bytes: Vec<u8>,
    first: u32,
    sequence: u32,
    /// The place of the last message in `bytes`, if there is one yet.
    last: Option<usize>,
    /// What the message of each sequence number is about.
    steps: Vec<(u32, String)>,
}

/// A batch that is ready to be sent.
struct EndedBatch {
    bytes: Vec<u8>,
    first: u32,
    last: u32,
    sequence: u32,
    steps: Vec<(u32, String)>,
}

impl EndedBatch {
    fn named(&self, sequence: u32) -> String {
        let step = self.steps.iter().find(|(s, _)| *s == sequence);
        step.map_or_else(|| "the batch as a whole".to_owned(), |(_, what)| what.clone())
    }
}

impl Batch {
    fn begin(first: u32) -> Self {
        let mut bytes = Vec::new();
        let start = begin_message(&mut bytes, kind::BATCH_BEGIN, 0, first, 0, SUBSYSTEM);
        end_message(&mut bytes, start);
        Self {
            bytes,
            first,
            sequence: first,
            last: None,
            steps: Vec::new(),
        }
    }

    fn next(&mut self, what: impl Into<String>) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.last = Some(self.bytes.len());
        self.steps.push((self.sequence, what.into()));
        self.sequence
    }

    /// Appends one object's message.
    fn step(
        &mut self,
        what: impl Into<String>,
        write: impl FnOnce(&mut Vec<u8>, u32) -> Result<(), CannotMake>,
    ) -> Result<(), CannotMake> {
        let sequence = self.next(what);
        let start = self.bytes.len();
        write(&mut self.bytes, sequence)?;
        // libnftnl numbers the message without the subsystem.
        let kind = u16::from_ne_bytes([self.bytes[start + 4], self.bytes[start + 5]]) | SUBSYSTEM << 8;
        self.bytes[start + 4..start + 6].copy_from_slice(&kind.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.bytes[start + 6], self.bytes[start + 7]]) | flag::REQUEST;
        self.bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
        Ok(())
    }

    fn make(&mut self, layout: &Layout, dormant: bool) -> Result<(), CannotMake> {
        self.step("the table", |bytes, sequence| {
            object::new_table(bytes, sequence, dormant)
        })?;
        for (id, set) in (1..).zip(&layout.sets) {
            self.step(format!("set {}", set.name), |bytes, sequence| {
                object::new_set(bytes, sequence, set, id)
            })?;
        }
        for chain in &layout.chains {
            let what = format!("chain {}", chain.name);
            self.step(what, |bytes, sequence| object::new_chain(bytes, sequence, chain))?;
        }
        for chain in &layout.chains {
            for (i, rule) in chain.rules.iter().enumerate() {
                let what = format!("rule {i} of chain {}", chain.name);
                self.step(what, |bytes, sequence| {
                    object::new_rule(bytes, sequence, &chain.name, rule)
                })?;
            }
        }
        Ok(())
    }

    /// Removals first: a slot that gets another endpoint is taken out and put in again.
    fn changes(&mut self, changes: &[Change]) {
        let mut removed = BTreeMap::<String, Vec<&Element>>::new();
        let mut added = BTreeMap::<String, Vec<&Element>>::new();
        for change in changes {
            let (group, element) = match change {
                Change::Remove(element) => (&mut removed, element),
                Change::Add(element) => (&mut added, element),
            };
            group.entry(element::set_of(element)).or_default().push(element);
        }
        for (set, elements) in removed {
            self.elements(kind::DELETE_ELEMENTS, 0, &set, &elements);
        }
        for (set, elements) in added {
            self.elements(kind::NEW_ELEMENTS, flag::CREATE, &set, &elements);
        }
    }

    /// Appends "add no elements to this set": the kernel refuses it, and the batch with it, if there is no such set.
    fn require(&mut self, set: &str) {
        let sequence = self.next(format!("looking for set {set}"));
        let start = begin_message(
            &mut self.bytes,
            SUBSYSTEM << 8 | kind::NEW_ELEMENTS,
            flag::CREATE,
            sequence,
            INET,
            0,
        );
        text_attribute(&mut self.bytes, 1, TABLE);
        text_attribute(&mut self.bytes, 2, set);
        let list = begin_nested(&mut self.bytes, 3);
        end_attribute(&mut self.bytes, list);
        end_message(&mut self.bytes, start);
    }

    /// Appends the elements in as many messages as they need.
    fn elements(&mut self, message: u16, flags: u16, set: &str, elements: &[&Element]) {
        let mut rest = elements;
        let mut value = Vec::with_capacity(64);
        while !rest.is_empty() {
            let sequence = self.next(format!("elements of {set}"));
            let start = begin_message(&mut self.bytes, SUBSYSTEM << 8 | message, flags, sequence, INET, 0);
            text_attribute(&mut self.bytes, 1, TABLE);
            text_attribute(&mut self.bytes, 2, set);
            let list = begin_nested(&mut self.bytes, 3);
            while let Some((element, after)) = rest.split_first() {
                if self.bytes.len() - list > LARGEST_LIST {
                    break;
                }
                rest = after;
                let entry = begin_nested(&mut self.bytes, 1);
                value.clear();
                element::write_key(element, &mut value);
                let key = begin_nested(&mut self.bytes, 1);
                attribute(&mut self.bytes, 1, &value);
                end_attribute(&mut self.bytes, key);
                value.clear();
                if message == kind::NEW_ELEMENTS && element::write_data(element, &mut value) {
                    let data = begin_nested(&mut self.bytes, 2);
                    attribute(&mut self.bytes, 1, &value);
                    end_attribute(&mut self.bytes, data);
                }
                end_attribute(&mut self.bytes, entry);
            }
            end_attribute(&mut self.bytes, list);
            end_message(&mut self.bytes, start);
        }
    }

    /// Asks the last message for an acknowledgement, and closes the batch; none if there is nothing in it.
    fn end(mut self) -> Option<EndedBatch> {
        let at = self.last?;
        let flags = u16::from_ne_bytes([self.bytes[at + 6], self.bytes[at + 7]]) | flag::ACKNOWLEDGE;
        self.bytes[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
        let last = self.sequence;
        let sequence = last.wrapping_add(1);
        let start = begin_message(&mut self.bytes, kind::BATCH_END, 0, sequence, 0, SUBSYSTEM);
        end_message(&mut self.bytes, start);
        Some(EndedBatch {
            bytes: self.bytes,
            first: self.first,
            last,
            sequence,
            steps: self.steps,
        })
    }
}
