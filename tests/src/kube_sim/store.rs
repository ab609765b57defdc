//! The objects and their recent history.
//!
//! Every write takes the next resourceVersion, whatever the resource, as etcd does. The history keeps what each write
//! replaced, so that the state at any remembered version is found by undoing: that is how chunked lists stay consistent
//! while the world moves on.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Value, json};

use super::object::Object;
use super::resource::Resource;

/// How many writes are remembered before the oldest is forgotten, unless a test says otherwise.
const REMEMBERED: usize = 10_000;

/// How often one resource was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Single objects by name.
    pub gets: u64,
    /// Lists begun: requests without a continue token.
    pub lists: u64,
    /// Patches of objects that were there, those that changed nothing and dry runs included.
    pub patches: u64,
    /// Pages of lists, the first of each included; failed ones are not counted.
    pub pages: u64,
    /// Watches that were started, those refused as too old included.
    pub watches: u64,
}

/// Namespace (`""` for resources without) and name: the order of lists.
pub(super) type Key = (String, String);

/// One write. `before` and `after` tell which kind: nothing before is a creation, nothing after a deletion.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) version: u64,
    pub(super) resource: Resource,
    pub(super) key: Key,
    pub(super) before: Option<Arc<Object>>,
    pub(super) after: Option<Arc<Object>>,
}

#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<(Resource, Key), Arc<Object>>,
    history: VecDeque<Write>,
    /// The most writes to remember.
    remembered: usize,
    /// The oldest version whose successors are all in the history.
    reach: u64,
    /// The oldest version that a request may still ask for: `reach`, or later once the history was declared expired.
    oldest: u64,
    /// The version of the last write to each resource.
    written: BTreeMap<Resource, u64>,
    served: BTreeMap<Resource, Served>,
}

impl Default for Store {
    fn default() -> Self {
        // A cluster that has just come up is not at version 0, which means "any" in requests.
        let begin = 100;
        Self {
            version: begin,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            remembered: REMEMBERED,
            reach: begin,
            oldest: begin,
            written: BTreeMap::new(),
            served: BTreeMap::new(),
        }
    }
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    pub(super) fn apply(&mut self, mut object: Value) -> u64 {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let resource = Resource::of_kind(&text(&object["kind"]));
        let (name, namespace) = (
            text(&object["metadata"]["name"]),
            text(&object["metadata"]["namespace"]),
        );
        assert!(!name.is_empty(), "an object needs metadata.name: {object}");
        let wanted = resource.is_namespaced();
        assert_eq!(
            !namespace.is_empty(),
            wanted,
            "{name}: a {} has a namespace: {wanted}",
            resource.kind()
        );
        let key = (namespace, name);
        let before = self.objects.get(&(resource, key.clone())).cloned();

        self.version += 1;
        object["apiVersion"] = json!(resource.api_version());
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(self.version.to_string());
        if let Some(before) = &before {
            // Identity belongs to the object, not to the write.
            metadata["uid"] = before["metadata"]["uid"].clone();
            metadata["creationTimestamp"] = before["metadata"]["creationTimestamp"].clone();
        }
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("00000000-0000-4000-8000-{:012x}", self.version));
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!("2026-01-05T08:00:00Z");
        }
        let after = Arc::new(Object::new(object));
        self.objects.insert((resource, key.clone()), Arc::clone(&after));
        self.remember(Write {
            version: self.version,
            resource,
            key,
            before,
            after: Some(after),
        });
        self.version
    }

    /// The version of the deletion; `None` when there is no such object.
    pub(super) fn delete(&mut self, resource: Resource, key: Key) -> Option<u64> {
        let before = self.objects.remove(&(resource, key.clone()))?;
        self.version += 1;
        self.remember(Write {
            version: self.version,
            resource,
            key,
            before: Some(before),
            after: None,
        });
        Some(self.version)
    }

    fn remember(&mut self, write: Write) {
        self.written.insert(write.resource, write.version);
        self.history.push_back(write);
        self.forget();
    }

    /// Remembers at most this many writes from now on.
    pub(super) fn limit_history(&mut self, writes: usize) {
        self.remembered = writes;
        self.forget();
    }

    fn forget(&mut self) {
        while self.history.len() > self.remembered {
            let Some(forgotten) = self.history.pop_front() else {
                return;
            };
            self.reach = forgotten.version;
            self.oldest = self.oldest.max(self.reach);
        }
    }

    /// Refuses every version given out so far. The writes themselves stay for the watches that are open.
    pub(super) fn expire_history(&mut self) {
        // One more than the newest: a client that is up to date must notice as well, as if others had written since.
        self.version += 1;
        self.oldest = self.version;
    }

    /// The version of the last write to a resource; 0 before the first.
    pub(super) fn last_write(&self, resource: Resource) -> u64 {
        self.written.get(&resource).copied().unwrap_or_default()
    }

    pub(super) fn get(&self, resource: Resource, key: Key) -> Option<Arc<Object>> {
        self.objects.get(&(resource, key)).cloned()
    }

    /// The objects of a resource as they were at `version`, in order, those behind `after` if that is given; `None` when that
    /// is forgotten.
    pub(super) fn at(
        &self,
        resource: Resource,
        version: u64,
        after: Option<Key>,
    ) -> Option<Box<dyn Iterator<Item = (Key, Arc<Object>)> + '_>> {
        if version < self.oldest {
            return None;
        }
        let from = after.map_or(Bound::Included(Key::default()), Bound::Excluded);
        let now = self
            .objects
            .range((from.clone().map(|key| (resource, key)), Bound::Unbounded))
            .take_while(move |((found, _), _)| *found == resource)
            .map(|((_, key), object)| (key.clone(), Arc::clone(object)));
        let later = self.history.iter().rev().take_while(|write| write.version > version);
        let mut later = later.filter(|write| write.resource == resource).peekable();
        // Only a list that others wrote into costs a copy of everything.
        if later.peek().is_none() {
            return Some(Box::new(now));
        }
        let mut then: BTreeMap<Key, Arc<Object>> = now.collect();
        for write in later {
            match &write.before {
                Some(before) => then.insert(write.key.clone(), Arc::clone(before)),
                None => then.remove(&write.key),
            };
        }
        // What was undone may lie before the beginning.
        let wanted = move |(key, _): &(Key, Arc<Object>)| match &from {
            Bound::Excluded(after) => key > after,
            _ => true,
        };
        Some(Box::new(then.into_iter().filter(wanted)))
    }

    /// The writes to a resource after `version`, in order, for a watch that is open; `None` when some are forgotten.
    pub(super) fn since(&self, resource: Resource, version: u64) -> Option<Vec<Write>> {
        if version < self.reach {
            return None;
        }
        let begin = self.history.partition_point(|write| write.version <= version);
        Some(
            self.history
                .range(begin..)
                .filter(|write| write.resource == resource)
                .cloned()
                .collect(),
        )
    }

    pub(super) fn served(&self, resource: Resource) -> Served {
        self.served.get(&resource).copied().unwrap_or_default()
    }

    pub(super) fn count(&mut self, resource: Resource, count: impl FnOnce(&mut Served)) {
        count(self.served.entry(resource).or_default());
    }
}
