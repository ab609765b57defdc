//! Objects of one kind, kept in step with a watch's events.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::id::Id;
use super::object::{BadObject, Object, Read};

/// An event of a watch.
#[derive(Clone, Debug)]
pub enum Event {
    /// A list of all objects begins.
    Begin,
    /// An object of the list.
    Listed(Object),
    /// The list is complete: what was not in it is gone.
    End,
    /// An object is new or has changed.
    Applied(Object),
    /// An object is gone.
    Deleted(Object),
}

/// All objects of a kind, by name.
type All<T> = BTreeMap<Id, Arc<T>>;

/// Objects of one kind: those that are known, and those of a list under way.
#[derive(Debug)]
pub(super) struct Known<T> {
    /// Those that are known.
    pub all: All<T>,
    listed: Option<All<T>>,
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
pub(super) type Changed<T> = (Id, Option<Arc<T>>, Option<Arc<T>>);

impl<T: PartialEq> Known<T> {
    /// Takes an event in; gives what it changed, and what made no sense.
    pub fn take(
        &mut self,
        event: Event,
        read: impl FnOnce(&Object) -> Result<Option<Read<T>>, BadObject>,
    ) -> (Vec<Changed<T>>, Vec<BadObject>) {
        let mut bad = Vec::new();
        // What was understood before stays: a bad update must not take a Service away. And an object that means the same as
        // before is the one from before.
        let understood = |object: &Object, known: Option<&Arc<T>>| match read(object) {
            Ok(Some(read)) => {
                bad.extend(read.left_out);
                let same = known.filter(|known| ***known == read.object).cloned();
                Some(same.unwrap_or_else(|| Arc::new(read.object)))
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
                let id = object.id();
                let (id, known) = match self.all.get_key_value(&id) {
                    Some((id, known)) => (id.clone(), Some(known)),
                    None => (id, None),
                };
                if let Some(found) = understood(&object, known) {
                    self.listed.get_or_insert_default().insert(id, found);
                }
                vec![]
            }
            Event::End => self.replace(),
            Event::Applied(object) => {
                let id = object.id();
                let found = understood(&object, self.all.get(&id));
                self.set(id, found).into_iter().collect()
            }
            Event::Deleted(object) => self.set(object.id(), None).into_iter().collect(),
        };
        (changed, bad)
    }

    fn set(&mut self, id: Id, after: Option<Arc<T>>) -> Option<Changed<T>> {
        let (id, before) = match self.all.get_key_value(&id) {
            Some((id, before)) => (id.clone(), Some(Arc::clone(before))),
            None => (id, None),
        };
        if before == after {
            return None;
        }
        match &after {
            Some(object) => self.all.insert(id.clone(), Arc::clone(object)),
            None => self.all.remove(&id),
        };
        Some((id, before, after))
    }

    fn replace(&mut self) -> Vec<Changed<T>> {
        self.complete = true;
        // Collected anew: a map that grew in the order of its keys is half empty.
        let listed: All<T> = self.listed.take().unwrap_or_default().into_iter().collect();
        let before = std::mem::replace(&mut self.all, listed);
        let gone = before.iter().filter(|(id, _)| !self.all.contains_key(*id));
        let gone = gone.map(|(id, object)| (id.clone(), Some(Arc::clone(object)), None));
        let new = self.all.iter().filter_map(|(id, after)| {
            let before = before.get(id);
            let changed = before.is_none_or(|before| before != after);
            changed.then(|| (id.clone(), before.cloned(), Some(Arc::clone(after))))
        });
        gone.chain(new).collect()
    }
}
