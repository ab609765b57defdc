//! Rollouts that have something to look at.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nftfleet_domain::ids::RolloutId;
use tokio::sync::Notify;

/// The rollouts to look at next. A rollout that is nudged ten times before anyone looks is looked at once.
#[derive(Debug, Default)]
pub struct Nudges {
    waiting: Mutex<BTreeSet<RolloutId>>,
    changed: Notify,
    leading: AtomicBool,
}

impl Nudges {
    /// Something of these rollouts changed here.
    pub fn add(&self, rollouts: impl IntoIterator<Item = RolloutId>) {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(rollouts);
        self.changed.notify_one();
    }

    /// Something of this rollout changed, perhaps at another server: one of them is to look, the one with the lease.
    pub(super) fn heard(&self, rollout: RolloutId) {
        if self.leading.load(Ordering::Relaxed) {
            self.add([rollout]);
        }
    }

    /// Whether this server has the tick's lease.
    pub(super) fn lead(&self, leading: bool) {
        self.leading.store(leading, Ordering::Relaxed);
    }

    /// Waits until there are some and takes them all.
    pub(super) async fn take(&self) -> BTreeSet<RolloutId> {
        loop {
            let taken = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            self.changed.notified().await;
        }
    }
}
