//! The only door to the kernel, as a trait: tests hand in a kernel made of a value.

use std::collections::BTreeSet;
use std::io;

use nftfleet_domain::inventory::TableState;

use super::layout::{Chain, Layout, Set};
use super::programmed::{Change, Programmed, Sticky};

/// Why the kernel could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Reading failed.
    #[error("the table can't be read: {0}")]
    Read(#[source] io::Error),
    /// A transaction was refused: nothing of it was done.
    #[error("the transaction was refused at {at}: {source}")]
    Refused {
        /// The message that was refused, in words.
        at: String,
        /// Why.
        source: io::Error,
    },
    /// The ruleset kept changing while the table was read: what was read is of no one moment.
    #[error("the ruleset kept changing while it was read")]
    Restless,
    /// There is no table to make active.
    #[error("there is no table to make active")]
    NoTable,
    /// A message could not be built; the text names it.
    #[error("can't make {0}")]
    CannotMake(&'static str),
}

/// The whole of our table as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Whether it hooks nothing.
    pub dormant: bool,
    /// How its sets, chains and rules differ from what we would make, in words. Then no elements are read.
    pub differences: Vec<String>,
    /// Chains that are ours but whose rules are not as we would make them.
    pub stale_chains: Vec<String>,
    /// Its elements.
    pub programmed: Programmed,
}

/// What one commit does: all of it or nothing, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Transaction<'a> {
    /// Whether to delete the table first.
    pub replace: bool,
    /// Whether to make the table.
    pub make: bool,
    /// Whether the table is to be dormant; none leaves it as it is, and makes it active.
    pub dormant: Option<bool>,
    /// Sets to make.
    pub sets: &'a [&'a Set],
    /// Chains to make, with their rules.
    pub chains: &'a [&'a Chain],
    /// Chains whose rules are to be written anew. A packet on its way through them finds the sets as they were.
    pub rewrite: &'a [&'a Chain],
    /// Chains to delete, to which no rule leads any more.
    pub old_chains: &'a [&'a str],
    /// Sets to delete, into which no rule looks any more.
    pub old_sets: &'a [&'a str],
    /// The elements to change.
    pub changes: &'a [Change],
}

/// What became of a transaction that was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// How many bytes the kernel was told.
    pub bytes: usize,
    /// Whether somebody else wrote while nobody listened: what is in the table is to be read.
    pub disturbed: bool,
}

/// The only door to the kernel.
pub trait Kernel {
    /// The groups for session affinity whose sets are in our table; none if there is no table.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn stickies(&mut self) -> Result<BTreeSet<Sticky>, KernelError>;

    /// The whole of our table, none if there is none, or an error: never a part of it.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn observe(&mut self, expected: &Layout) -> Result<Option<Observed>, KernelError>;

    /// Whether our table is there and hooked in. Cheap at any size: nothing in the table is read.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn state(&mut self) -> Result<TableState, KernelError>;

    /// All of the transaction or nothing.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<Committed, KernelError>;

    /// Returns when every packet that is on its way through the table now has left it.
    fn wait_for_packets(&mut self);
}
