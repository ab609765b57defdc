//! The objects of an API server without HTTP: for those parts of a simulated cluster that live on a thread of their own, as
//! controllers and kubelets do, and for a test that plays the operator.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

use super::Shared;
use super::patch::merged;
use super::resource::Resource;

/// A handle; it outlives the server. Kinds are named as in `kind`, the namespace of those without one is `""`, and a kind that
/// is not simulated is a panic.
#[derive(Clone, Debug)]
pub struct Objects {
    shared: Arc<Shared>,
}

impl Objects {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
        }
    }

    /// Creates or replaces an object; see [`KubeSim::apply`](super::KubeSim::apply).
    pub fn apply(&self, object: Value) -> u64 {
        let version = self.shared.store().apply(object);
        self.shared.changed(version);
        version
    }

    /// Deletes an object; the resourceVersion of the deletion, or `None` when there is none such (any more).
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) -> Option<u64> {
        let key = (namespace.to_owned(), name.to_owned());
        let version = self.shared.store().delete(Resource::of_kind(kind), key)?;
        self.shared.changed(version);
        Some(version)
    }

    /// Changes fields of an object by a merge patch, where null takes a field away; the new resourceVersion, or `None` when there
    /// is no such object.
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> Option<u64> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut store = self.shared.store();
        let before = store.get(Resource::of_kind(kind), key)?;
        let version = store.apply(merged(&before, patch));
        drop(store);
        self.shared.changed(version);
        Some(version)
    }

    /// One object as it is now.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (namespace.to_owned(), name.to_owned());
        let found = self.shared.store().get(Resource::of_kind(kind), key)?;
        Some(Value::clone(&found))
    }

    /// Every object of a kind as it is now, by namespace and name.
    pub fn all(&self, kind: &str) -> Vec<Value> {
        let store = self.shared.store();
        let now = store.at(Resource::of_kind(kind), store.version(), None);
        now.into_iter()
            .flatten()
            .map(|(_, object)| Value::clone(&object))
            .collect()
    }

    /// The version of the last write to any object of a kind; 0 before the first.
    pub fn last_write(&self, kind: &str) -> u64 {
        self.shared.store().last_write(Resource::of_kind(kind))
    }

    /// The version of the newest write, and a notice when there is a newer one. Not counted as an open watch.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.shared.newest.subscribe()
    }
}
