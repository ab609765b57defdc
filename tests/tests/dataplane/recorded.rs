//! A kernel that remembers what was committed to it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nftfleet_agent::dataplane::kernel::{Committed, Kernel, Observed, Transaction};
use nftfleet_agent::dataplane::programmed::Sticky;
use nftfleet_agent::dataplane::{KernelError, Layout, Netlink};
use nftfleet_domain::inventory::TableState;

/// One commit: whether it deleted the table, whether it made one, and how many elements it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    pub replaced: bool,
    pub made: bool,
    pub elements: usize,
}

/// The commits so far; clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Record(Arc<Mutex<Vec<Commit>>>);

impl Record {
    fn lock(&self) -> MutexGuard<'_, Vec<Commit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over the commits since the last look.
    pub fn take(&self) -> Vec<Commit> {
        std::mem::take(&mut *self.lock())
    }
}

/// The kernel itself, with a record of every commit that it took.
#[derive(Debug)]
pub struct Recorded {
    kernel: Netlink,
    record: Record,
}

impl Recorded {
    pub fn new(kernel: Netlink) -> (Self, Record) {
        let record = Record::default();
        let recorded = Self {
            kernel,
            record: record.clone(),
        };
        (recorded, record)
    }
}

impl Kernel for Recorded {
    fn stickies(&mut self) -> Result<BTreeSet<Sticky>, KernelError> {
        self.kernel.stickies()
    }

    fn observe(&mut self, expected: &Layout) -> Result<Option<Observed>, KernelError> {
        self.kernel.observe(expected)
    }

    fn state(&mut self) -> Result<TableState, KernelError> {
        self.kernel.state()
    }

    fn wait_for_packets(&mut self) {
        self.kernel.wait_for_packets();
    }

    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<Committed, KernelError> {
        let committed = self.kernel.commit(transaction)?;
        self.record.lock().push(Commit {
            replaced: transaction.replace,
            made: transaction.make,
            elements: transaction.changes.len(),
        });
        Ok(committed)
    }
}
