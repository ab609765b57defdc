//! Agents that wait for a change of their assignment.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nftfleet_domain::ids::NodeId;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// How many requests wait for a node, and what wakes them.
#[derive(Debug, Default)]
struct Waiting {
    requests: usize,
    changed: Arc<Notify>,
}

type Nodes = HashMap<NodeId, Waiting>;

/// Who waits. Waking is only a hint to read again, so waking too often is harmless.
#[derive(Debug, Default)]
pub struct Waiters {
    nodes: Mutex<Nodes>,
    listening: AtomicBool,
}

/// One request that waits for a node.
#[derive(Debug)]
pub struct Waiter {
    waiters: Arc<Waiters>,
    node: NodeId,
    changed: Arc<Notify>,
}

impl Waiters {
    fn locked(&self) -> std::sync::MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a request that waits for `node`, until it is dropped.
    pub fn register(self: &Arc<Self>, node: NodeId) -> Waiter {
        let mut nodes = self.locked();
        let waiting = nodes.entry(node).or_default();
        waiting.requests += 1;
        let changed = Arc::clone(&waiting.changed);
        Waiter {
            waiters: Arc::clone(self),
            node,
            changed,
        }
    }

    pub(super) fn wake(&self, node: NodeId) {
        if let Some(waiting) = self.locked().get(&node) {
            waiting.changed.notify_waiters();
        }
    }

    /// Whether Postgres tells of changes. When that begins or ends everyone reads again, since something may have been
    /// missed.
    pub(super) fn set_listening(&self, listening: bool) {
        if self.listening.swap(listening, Ordering::Relaxed) != listening {
            for waiting in self.locked().values() {
                waiting.changed.notify_waiters();
            }
        }
    }

    /// Whether Postgres tells of changes; while it does not, those who wait must look for themselves.
    pub fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Relaxed)
    }
}

impl Waiter {
    /// Completes at a change from now on. Make it and enable it before reading, so that no change falls in between.
    pub fn changed(&self) -> OwnedNotified {
        Arc::clone(&self.changed).notified_owned()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut nodes = self.waiters.locked();
        if let Some(waiting) = nodes.get_mut(&self.node) {
            waiting.requests -= 1;
            if waiting.requests == 0 {
                nodes.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[tokio::test]
    async fn a_change_after_registering_wakes_only_that_node() {
        let waiters = Arc::new(Waiters::default());
        let (a, b) = (NodeId(Uuid::from_u128(1)), NodeId(Uuid::from_u128(2)));
        let (wait_a, wait_b) = (waiters.register(a), waiters.register(b));
        let (mut changed_a, mut changed_b) = (Box::pin(wait_a.changed()), Box::pin(wait_b.changed()));
        changed_a.as_mut().enable();
        changed_b.as_mut().enable();
        waiters.wake(a);
        assert!(poll_now(changed_a.as_mut()));
        assert!(!poll_now(changed_b.as_mut()));
        drop((wait_a, changed_a, wait_b, changed_b));
        assert!(waiters.locked().is_empty());
    }

    fn poll_now<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        future.poll(&mut context).is_ready()
    }
}
