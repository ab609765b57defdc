//! Objects of one kind, kept in step with a watch's events.

use std::collections::BTreeMap;

use kube::core::DynamicObject;
use nftfleet_domain::service::ObjectName;

use super::object::{self, BadObject, Read};

/// An event of a watch.
#[derive(Clone, Debug)]
pub enum Event {
    /// A list of all objects begins.
    Begin,
    /// An object of the list.
    Listed(DynamicObject),
    /// The list is complete: what was not in it is gone.
    End,
    /// An object is new or has changed.
    Applied(DynamicObject),
    /// An object is gone.
    Deleted(DynamicObject),
}

/// Objects of one kind: those that are known, and those of a list under way.
#[derive(Debug)]
pub(super) struct Known<T> {
    /// Those that are known.
    pub all: BTreeMap<ObjectName, T>,
    listed: Option<BTreeMap<ObjectName, T>>,
    /// Whether a list was ever complete.
    pub complete: bool,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self {
            all: BTreeMap::new(),
            listed: None,
            complete: false,
        }
    }
}

/// What an event changed: the object as it was and as it is.
pub(super) type Changed<T> = (ObjectName, Option<T>, Option<T>);

impl<T: Clone + PartialEq> Known<T> {
    /// Takes an event in; gives what it changed, and what made no sense.
    pub fn take(
        &mut self,
        event: Event,
        read: impl FnOnce(&DynamicObject) -> Result<Option<Read<T>>, BadObject>,
    ) -> (Vec<Changed<T>>, Vec<BadObject>) {
        let mut bad = Vec::new();
        // What was understood before stays: a bad update must not take a Service away.
        let understood = |object: &DynamicObject, known: Option<&T>| match read(object) {
            Ok(Some(read)) => {
                bad.extend(read.left_out);
                Some(read.object)
            }
            Ok(None) => None,
            Err(error) => {
                bad.push(error);
                known.cloned()
            }
        };
        let changed = match event {
            Event::Begin => {
                self.listed = Some(BTreeMap::new());
                vec![]
            }
            Event::Listed(object) => {
                let name = object::name_of(&object);
                if let Some(found) = understood(&object, self.all.get(&name)) {
                    self.listed.get_or_insert_default().insert(name, found);
                }
                vec![]
            }
            Event::End => self.replace(),
            Event::Applied(object) => {
                let name = object::name_of(&object);
                let found = understood(&object, self.all.get(&name));
                vec![self.set(name, found)]
            }
            Event::Deleted(object) => vec![self.set(object::name_of(&object), None)],
        };
        let changed = changed.into_iter().filter(|(_, before, after)| before != after);
        (changed.collect(), bad)
    }

    fn set(&mut self, name: ObjectName, object: Option<T>) -> Changed<T> {
        let before = match &object {
            Some(object) => self.all.insert(name.clone(), object.clone()),
            None => self.all.remove(&name),
        };
        (name, before, object)
    }

    fn replace(&mut self) -> Vec<Changed<T>> {
        self.complete = true;
        let listed = self.listed.take().unwrap_or_default();
        let gone: Vec<_> = self
            .all
            .keys()
            .filter(|name| !listed.contains_key(*name))
            .cloned()
            .collect();
        let gone = gone.into_iter().map(|name| (name, None));
        let new = listed.into_iter().map(|(name, object)| (name, Some(object)));
        gone.chain(new)
            .collect::<Vec<_>>()
            .into_iter()
            .map(|(name, object)| self.set(name, object))
            .collect()
    }
}
