//! A transaction as bytes: the messages of a batch, each with a name for the case that the kernel refuses it.

use std::collections::BTreeMap;

use super::element::{self, SetId};
use super::message::{
    INET, LARGEST_LIST, SUBSYSTEM, attributes, begin_message, begin_nested, end_attribute, end_message, flag, kind,
    text_attribute,
};
use super::object;
use crate::dataplane::kernel::KernelError;
use crate::dataplane::layout::{Chain, Set, TABLE};
use crate::dataplane::programmed::{Change, Element};

/// A batch of messages under construction.
pub struct Batch {
    bytes: Vec<u8>,
    first: u32,
    sequence: u32,
    /// The place of the last message in `bytes`, if there is one yet.
    last: Option<usize>,
    steps: Vec<Step>,
}

/// A message of a batch.
struct Step {
    sequence: u32,
    /// Where it begins.
    start: usize,
    about: About,
}

/// What a message is about.
enum About {
    /// This, in words.
    Words(String),
    /// Elements of this set.
    Elements(SetId),
}

/// A batch that is ready to be sent.
pub struct EndedBatch {
    /// The messages.
    pub bytes: Vec<u8>,
    /// The sequence number of the first message, which begins the batch.
    pub first: u32,
    /// That of the last message but the closing one, which asks for an acknowledgement.
    pub last: u32,
    /// That of the closing message.
    pub sequence: u32,
    steps: Vec<Step>,
}

impl EndedBatch {
    /// What the message of this sequence number is about; of an element list, which element the attribute at `offset` is.
    pub fn named(&self, sequence: u32, offset: Option<usize>) -> String {
        let Some(step) = self.steps.iter().find(|step| step.sequence == sequence) else {
            return "the batch as a whole".to_owned();
        };
        match &step.about {
            About::Words(words) => words.clone(),
            About::Elements(set) => {
                let at = offset.and_then(|offset| self.bytes.get(step.start + offset..));
                let named = at.and_then(|bytes| element::describe(*set, attributes(bytes).next()?.1));
                let named = named.map(|element| format!(": {element}")).unwrap_or_default();
                format!("elements of {}{named}", set.name())
            }
        }
    }
}

impl Batch {
    /// Begins a batch with this sequence number.
    pub fn begin(first: u32) -> Self {
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

    fn next(&mut self, about: About) -> u32 {
        let (sequence, start) = (self.sequence.wrapping_add(1), self.bytes.len());
        self.sequence = sequence;
        self.last = Some(start);
        self.steps.push(Step { sequence, start, about });
        sequence
    }

    /// Appends one object's message.
    pub fn step(
        &mut self,
        what: impl Into<String>,
        write: impl FnOnce(&mut Vec<u8>, u32) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let sequence = self.next(About::Words(what.into()));
        let start = self.bytes.len();
        write(&mut self.bytes, sequence)?;
        // libnftnl numbers the message without the subsystem.
        let kind = u16::from_ne_bytes([self.bytes[start + 4], self.bytes[start + 5]]) | SUBSYSTEM << 8;
        self.bytes[start + 4..start + 6].copy_from_slice(&kind.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.bytes[start + 6], self.bytes[start + 7]]) | flag::REQUEST;
        self.bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
        Ok(())
    }

    /// Appends "take away all rules of this chain".
    pub fn empty(&mut self, chain: &str) {
        let sequence = self.next(About::Words(format!("the old rules of chain {chain}")));
        let start = begin_message(
            &mut self.bytes,
            SUBSYSTEM << 8 | kind::DELETE_RULE,
            0,
            sequence,
            INET,
            0,
        );
        text_attribute(&mut self.bytes, 1, TABLE);
        text_attribute(&mut self.bytes, 2, chain);
        end_message(&mut self.bytes, start);
    }

    /// Appends "delete this table of somebody else's with all that is in it".
    pub fn delete_table(&mut self, family: u8, name: &str) {
        let sequence = self.next(About::Words(format!("table {name}")));
        let kind = SUBSYSTEM << 8 | kind::DELETE_TABLE;
        let start = begin_message(&mut self.bytes, kind, 0, sequence, family, 0);
        text_attribute(&mut self.bytes, 1, name);
        end_message(&mut self.bytes, start);
    }

    /// Appends a chain's rules, after those that are there.
    pub fn rules(&mut self, chain: &Chain) -> Result<(), KernelError> {
        for (i, rule) in chain.rules.iter().enumerate() {
            let what = format!("rule {i} of chain {}", chain.name);
            self.step(what, |bytes, sequence| {
                object::new_rule(bytes, sequence, &chain.name, rule)
            })?;
        }
        Ok(())
    }

    /// Appends sets.
    pub fn sets(&mut self, sets: &[&Set]) -> Result<(), KernelError> {
        for (id, set) in (1..).zip(sets) {
            self.step(format!("set {}", set.name), |bytes, sequence| {
                object::new_set(bytes, sequence, set, id)
            })?;
        }
        Ok(())
    }

    /// Appends chains, then their rules.
    pub fn chains(&mut self, chains: &[&Chain]) -> Result<(), KernelError> {
        for chain in chains {
            let what = format!("chain {}", chain.name);
            self.step(what, |bytes, sequence| object::new_chain(bytes, sequence, chain))?;
        }
        for chain in chains {
            self.rules(chain)?;
        }
        Ok(())
    }

    /// Removals first: a slot that gets another endpoint is taken out and put in again.
    pub fn changes(&mut self, changes: &[Change]) {
        let mut removed = BTreeMap::<SetId, Vec<&Element>>::new();
        let mut added = BTreeMap::<SetId, Vec<&Element>>::new();
        for change in changes {
            let (group, element) = match change {
                Change::Remove(element) => (&mut removed, element),
                Change::Add(element) => (&mut added, element),
            };
            group.entry(SetId::of(element)).or_default().push(element);
        }
        for (set, elements) in removed {
            self.elements(kind::DELETE_ELEMENTS, 0, set, &elements);
        }
        for (set, elements) in added {
            self.elements(kind::NEW_ELEMENTS, flag::CREATE, set, &elements);
        }
    }

    /// Appends "add no elements to this set": the kernel refuses it, and the batch with it, if there is no such set.
    pub fn require(&mut self, set: &str) {
        let sequence = self.next(About::Words(format!("looking for set {set}")));
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
    fn elements(&mut self, message: u16, flags: u16, set: SetId, elements: &[&Element]) {
        let mut rest = elements;
        let name = set.name();
        while !rest.is_empty() {
            let sequence = self.next(About::Elements(set));
            let start = begin_message(&mut self.bytes, SUBSYSTEM << 8 | message, flags, sequence, INET, 0);
            text_attribute(&mut self.bytes, 1, TABLE);
            text_attribute(&mut self.bytes, 2, &name);
            let list = begin_nested(&mut self.bytes, 3);
            while let Some((element, after)) = rest.split_first() {
                if self.bytes.len() - list > LARGEST_LIST {
                    break;
                }
                rest = after;
                element::append(&mut self.bytes, element, message == kind::NEW_ELEMENTS);
            }
            end_attribute(&mut self.bytes, list);
            end_message(&mut self.bytes, start);
        }
    }

    /// Asks the last message for an acknowledgement, and closes the batch; none if there is nothing in it.
    pub fn end(mut self) -> Option<EndedBatch> {
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
