//! Keeps the kernel's table what is desired: compares two states and commits the difference, never chases events.

mod step;

use std::collections::BTreeSet;
use std::sync::Arc;

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::{Protocol, Vip};

use super::desired::{Desired, Key, Pods};
use super::diff::{all_keys, diff};
use super::kernel::{Committed, Kernel, KernelError, Observed, Transaction};
use super::layout::{Chain, Layout, LayoutSettings, names};
use super::leaving::{Grace, Leaving};
use super::programmed::{Element, Group, Programmed, Sticky};
use step::{Objects, Step};

/// A change takes up to four commits; more than a few mean that the diff does not come to an end.
const MOST_COMMITS: usize = 6;

/// How many elements are written in one transaction if nobody sees them.
const MOST_AT_ONCE: usize = 1 << 15;

/// How often the table is read until two readings agree.
const MOST_READINGS: usize = 8;

/// How many groups for session affinity may be left without VIPs before their sets and chains are taken away: they are
/// likely to be needed again.
const SPARE_STICKIES: usize = 16;

/// What the kernel holds, as far as we know.
#[derive(Debug)]
enum Known {
    /// Not read yet, or a commit failed in between.
    Nothing,
    /// There is no table.
    Absent,
    /// There is a table, and its sets and chains are as we would make them.
    Table(Box<Table>),
    /// There is a table of ours, but of another make.
    Other {
        /// Whether it hooks nothing.
        dormant: bool,
    },
}

/// A table of ours in the kernel.
#[derive(Debug)]
struct Table {
    /// Whether it hooks nothing.
    dormant: bool,
    /// Its sets and chains.
    layout: Arc<Layout>,
    /// What its rules were made for.
    pods: Pods,
    /// Chains whose rules are not as they should be.
    stale_chains: Vec<String>,
    /// Its elements.
    programmed: Programmed,
}

/// The node's Service data plane.
#[derive(Debug)]
pub struct Dataplane<K> {
    kernel: K,
    settings: LayoutSettings,
    known: Known,
    spare_stickies: usize,
    changed_udp: BTreeSet<Vip>,
    leaving: Leaving,
    written: Written,
}

/// What the kernel was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Transactions.
    pub commits: u64,
    /// Their bytes.
    pub bytes: usize,
    /// Elements that were added or removed.
    pub elements: usize,
    /// Whether somebody else may have written into the table unheard.
    pub disturbed: bool,
}

impl Written {
    fn commit(&mut self, kernel: &mut impl Kernel, transaction: &Transaction<'_>) -> Result<(), KernelError> {
        let Committed { bytes, disturbed } = kernel.commit(transaction)?;
        self.bytes += bytes;
        self.disturbed |= disturbed;
        self.commits += 1;
        self.elements += transaction.changes.len();
        Ok(())
    }
}

impl<K: Kernel> Dataplane<K> {
    /// A data plane of which nothing is known yet.
    pub fn new(kernel: K, settings: LayoutSettings) -> Self {
        Self {
            kernel,
            settings,
            known: Known::Nothing,
            spare_stickies: SPARE_STICKIES,
            changed_udp: BTreeSet::new(),
            leaving: Leaving::default(),
            written: Written::default(),
        }
    }

    /// Whether the table is there and hooked in, asked of the kernel. If that is not what we knew, somebody else was at it, and
    /// the whole table is read before it is next written.
    ///
    /// # Errors
    /// The kernel could not be read.
    pub fn state(&mut self) -> Result<TableState, KernelError> {
        let state = self.kernel.state()?;
        if self.known_state().is_some_and(|known| known != state) {
            tracing::warn!(?state, "the table in the kernel was changed by somebody else");
            self.known = Known::Nothing;
        }
        Ok(state)
    }

    /// Whether the table answered for Services when it was last written or read.
    pub fn is_active(&self) -> bool {
        self.known_state() == Some(TableState::Active)
    }

    /// Whether the table is there and hooked in, as last committed or read; none if that is not known.
    pub fn known_state(&self) -> Option<TableState> {
        match &self.known {
            Known::Nothing => None,
            Known::Absent => Some(TableState::Absent),
            Known::Other { dormant } => Some(state_of(*dormant)),
            Known::Table(table) => Some(state_of(table.dormant)),
        }
    }

    /// Somebody else wrote into the table: it is read before it is next written.
    pub fn forget(&mut self) {
        self.known = Known::Nothing;
    }

    /// How many elements the kernel holds, as last committed or read.
    pub fn elements(&self) -> usize {
        match &self.known {
            Known::Table(table) => table.programmed.elements(),
            _ => 0,
        }
    }

    /// What is desired has changed for these keys. Even if the table holds it already, flows of UDP may not: an endpoint that
    /// was ending has ended.
    pub fn note_changed(&mut self, keys: &BTreeSet<Key>) {
        let udp = keys.iter().filter_map(|key| match key {
            Key::Vip(vip) if vip.protocol == Protocol::Udp => Some(*vip),
            _ => None,
        });
        self.changed_udp.extend(udp);
    }

    /// UDP VIPs whose endpoints were changed since this was last asked.
    pub fn take_changed_udp(&mut self) -> BTreeSet<Vip> {
        std::mem::take(&mut self.changed_udp)
    }

    /// What was written since this was last asked.
    pub fn take_written(&mut self) -> Written {
        std::mem::take(&mut self.written)
    }

    /// Reads the table unless it is known.
    fn known(&mut self, desired: &Desired) -> Result<&Known, KernelError> {
        if matches!(self.known, Known::Nothing) {
            let stickies = self.kernel.stickies()?;
            let layout = Arc::new(Layout::new(self.settings, &desired.pods, &stickies));
            self.known = match self.observe(&layout, desired)? {
                None => Known::Absent,
                Some(observed) if observed.differences.is_empty() => Known::Table(Box::new(Table {
                    dormant: observed.dormant,
                    layout,
                    pods: desired.pods.clone(),
                    stale_chains: observed.stale_chains,
                    programmed: observed.programmed,
                })),
                Some(observed) => {
                    let differences = observed.differences;
                    tracing::warn!(
                        ?differences,
                        "the table in the kernel is of another make and will be replaced"
                    );
                    Known::Other {
                        dormant: observed.dormant,
                    }
                }
            };
        }
        Ok(&self.known)
    }

    /// Reads the table, and again until it is believed: what is desired is believed at once, anything else when two readings
    /// agree. The kernel resizes a hash table in the background after many insertions, and a dump that meets it then may leave
    /// elements out or give them twice, without saying so.
    fn observe(&mut self, layout: &Layout, desired: &Desired) -> Result<Option<Observed>, KernelError> {
        let mut last = self.kernel.observe(layout)?;
        for _ in 0..MOST_READINGS {
            if let Some(observed) = &last {
                let keys = all_keys(desired, &observed.programmed);
                if observed.differences.is_empty() && diff(desired, &observed.programmed, &keys).is_empty() {
                    return Ok(last);
                }
            }
            let next = self.kernel.observe(layout)?;
            if next == last {
                return Ok(next);
            }
            last = next;
        }
        Err(KernelError::Restless)
    }

    /// Makes the kernel hold what is desired, and nothing else. A table that is missing is made, dormant or active as `dormant`
    /// says; one that is there keeps its state, and only the difference is written. Gives the number of steps, each of which
    /// packets see whole or not at all.
    ///
    /// # Errors
    /// The kernel refused; what it holds is then read anew at the next call.
    pub fn load(&mut self, desired: &Desired, dormant: bool) -> Result<usize, KernelError> {
        let keys = match self.known(desired)? {
            Known::Table(table) => all_keys(desired, &table.programmed),
            _ => desired.keys(),
        };
        let commits = self.converge(desired, &keys, dormant)?;
        Ok(commits + self.settle(desired)?)
    }

    /// The same for a table that held what was desired until these keys changed. A table that is not known is loaded whole;
    /// one that is missing is not made. Does not wait for packets: what they may still look for stays until
    /// [`Dataplane::leave`].
    ///
    /// # Errors
    /// As [`Dataplane::load`].
    pub fn follow(&mut self, desired: &Desired, keys: &BTreeSet<Key>) -> Result<usize, KernelError> {
        self.note_changed(keys);
        match &self.known {
            Known::Table(_) => self.converge(desired, keys, false),
            Known::Absent => Ok(0),
            Known::Nothing | Known::Other { .. } => match self.known(desired)? {
                Known::Absent => Ok(0),
                _ => self.load(desired, false),
            },
        }
    }

    /// Whether nothing stands in the table any more only because packets may look for it.
    pub fn is_settled(&self) -> bool {
        self.leaving.is_empty()
    }

    /// A grace period that is to be waited for, if one is needed and none is under way: see [`super::leaving`].
    pub fn begin_grace(&mut self) -> Option<Grace> {
        self.leaving.begin()
    }

    /// Takes away what packets looked for until this grace period, which is over. Gives the number of commits.
    ///
    /// # Errors
    /// As [`Dataplane::load`].
    pub fn leave(&mut self, desired: &Desired, grace: Grace) -> Result<usize, KernelError> {
        let keys = self.leaving.end(grace);
        match self.known {
            Known::Table(_) => self.converge(desired, &keys, false),
            // What is left behind is found when the table is read.
            Known::Nothing | Known::Absent | Known::Other { .. } => Ok(0),
        }
    }

    /// Waits for packets and takes away what they looked for, until nothing of it is left. Gives the number of commits.
    ///
    /// # Errors
    /// As [`Dataplane::load`].
    pub fn settle(&mut self, desired: &Desired) -> Result<usize, KernelError> {
        let mut commits = 0;
        while !self.leaving.is_empty() {
            self.kernel.wait_for_packets();
            let keys = self.leaving.end_all();
            commits += self.converge(desired, &keys, false)?;
        }
        Ok(commits)
    }

    fn converge(&mut self, desired: &Desired, keys: &BTreeSet<Key>, dormant: bool) -> Result<usize, KernelError> {
        let mut commits = 0;
        while commits < MOST_COMMITS {
            let step = Step::next(self.settings, &self.known, desired, keys, dormant, &mut self.leaving);
            let Some(step) = step else {
                return Ok(commits + self.retire());
            };
            let rules_first = step.rules_first;
            self.commit(step)?;
            if rules_first {
                self.kernel.wait_for_packets();
            }
            commits += 1;
        }
        Ok(commits)
    }

    fn commit(&mut self, step: Step) -> Result<(), KernelError> {
        let held = match &self.known {
            Known::Table(table) => Some(&*table.layout),
            _ => None,
        };
        let objects = Objects::new(held, &step.layout, &step.stale_chains);
        let transaction = Transaction {
            replace: step.replace,
            make: step.make,
            dormant: step.make.then_some(step.dormant),
            sets: &objects.new_sets,
            chains: &objects.new_chains,
            rewrite: &objects.rewrite,
            changes: &step.changes,
            ..Transaction::default()
        };
        let written = if step.changes.len() > MOST_AT_ONCE && !step.replace && (step.make || step.dormant) {
            self.write_unseen(&transaction, step.dormant)
        } else {
            self.written.commit(&mut self.kernel, &transaction)
        };
        if let Err(error) = written {
            self.known = Known::Nothing;
            return Err(error);
        }
        let udp = step.changes.iter().filter_map(|change| changed_udp(change.element()));
        self.changed_udp.extend(udp);
        let mut programmed = match std::mem::replace(&mut self.known, Known::Nothing) {
            Known::Table(table) => table.programmed,
            _ => Programmed::default(),
        };
        programmed.apply(step.changes);
        self.known = Known::Table(Box::new(Table {
            dormant: step.dormant,
            layout: step.layout,
            pods: step.pods,
            stale_chains: vec![],
            programmed,
        }));
        Ok(())
    }

    /// Writes what no packet sees before it is whole, in pieces: a table that hooks nothing. A new table that is to be active
    /// is woken in a last transaction of its own.
    ///
    /// Between two pieces the kernel gets to let its hash tables grow, which it does on the processor that has filled them; in
    /// one large transaction they become too full, and every insertion slow.
    fn write_unseen(&mut self, whole: &Transaction<'_>, dormant: bool) -> Result<(), KernelError> {
        let mut pieces = whole.changes.chunks(MOST_AT_ONCE);
        let first = Transaction {
            dormant: whole.make.then_some(true),
            changes: pieces.next().unwrap_or_default(),
            ..*whole
        };
        self.written.commit(&mut self.kernel, &first)?;
        for changes in pieces {
            let transaction = Transaction {
                changes,
                ..Transaction::default()
            };
            self.written.commit(&mut self.kernel, &transaction)?;
        }
        if !dormant {
            let transaction = Transaction {
                dormant: Some(false),
                ..Transaction::default()
            };
            self.written.commit(&mut self.kernel, &transaction)?;
        }
        Ok(())
    }

    /// Takes the sets and chains for session affinity away that have no VIPs any more, once there are many. Gives the number
    /// of commits.
    fn retire(&mut self) -> usize {
        let Known::Table(table) = &mut self.known else {
            return 0;
        };
        let used = |sticky: &Sticky| table.programmed.sticky.contains_key(sticky);
        let (kept, spare): (BTreeSet<_>, BTreeSet<_>) = table.layout.stickies.iter().partition(|s| used(s));
        if spare.len() <= self.spare_stickies {
            return 0;
        }
        let layout = Layout::new(self.settings, &table.pods, &kept);
        let objects = Objects::new(Some(&table.layout), &layout, &[]);
        let group = |s: &Sticky| {
            let (timeout, class) = (s.timeout, s.class);
            names::group(s.family, s.which, Group::Sticky { timeout, class })
        };
        let sets: Vec<String> = spare.iter().map(group).collect();
        // Who jumps goes before those that it jumps to.
        let is_old = |chain: &&Chain| !layout.chains.iter().any(|kept| kept.name == chain.name);
        let chains = table.layout.chains.iter().rev().filter(is_old);
        let chains: Vec<String> = chains.map(|chain| chain.name.clone()).collect();
        let transaction = Transaction {
            rewrite: &objects.rewrite,
            old_chains: &chains.iter().map(String::as_str).collect::<Vec<_>>(),
            old_sets: &sets.iter().map(String::as_str).collect::<Vec<_>>(),
            ..Transaction::default()
        };
        match self.written.commit(&mut self.kernel, &transaction) {
            Ok(()) => {
                table.layout = Arc::new(layout);
                1
            }
            Err(error) => {
                // Kernels before 6.2 may still hold references. They stay, at the cost of a few kilobytes.
                tracing::info!(%error, "unused chains for session affinity stay for now");
                self.spare_stickies = spare.len() * 2;
                0
            }
        }
    }

    /// Hooks the table in, or takes it off, in one transaction. Does nothing if it is so already. The table's content is not
    /// read for this: the way back must not depend on it.
    ///
    /// # Errors
    /// The kernel refused, or there is no table to make active.
    pub fn set_dormant(&mut self, wanted: bool) -> Result<(), KernelError> {
        match (self.state()?, wanted) {
            (TableState::Absent | TableState::Dormant, true) | (TableState::Active, false) => return Ok(()),
            (TableState::Absent, false) => return Err(KernelError::NoTable),
            (TableState::Dormant, false) | (TableState::Active, true) => {}
        }
        let transaction = Transaction {
            dormant: Some(wanted),
            ..Transaction::default()
        };
        if let Err(error) = self.written.commit(&mut self.kernel, &transaction) {
            self.known = Known::Nothing;
            return Err(error);
        }
        match &mut self.known {
            Known::Table(table) => table.dormant = wanted,
            Known::Other { dormant } => *dormant = wanted,
            Known::Nothing | Known::Absent => {}
        }
        Ok(())
    }

    /// Reads the table back and compares it with what is desired. Gives the differences in words; none means that the
    /// kernel holds exactly what is desired.
    ///
    /// # Errors
    /// The kernel could not be read.
    pub fn compare(&mut self, desired: &Desired) -> Result<Vec<String>, KernelError> {
        if matches!(self.known, Known::Table(_)) {
            self.settle(desired)?;
        }
        self.known = Known::Nothing;
        self.known(desired)?;
        Ok(match &self.known {
            Known::Nothing | Known::Absent => vec!["there is no table".to_owned()],
            Known::Other { .. } => vec!["the table's sets or chains are not as they were made".to_owned()],
            Known::Table(table) => {
                let stale = table.stale_chains.iter();
                let stale = stale.map(|chain| format!("the rules of chain {chain} differ"));
                let keys = all_keys(desired, &table.programmed);
                let changes = diff(desired, &table.programmed, &keys);
                stale
                    .chain(changes.iter().map(|change| format!("{change:?}")))
                    .collect()
            }
        })
    }
}

const fn state_of(dormant: bool) -> TableState {
    if dormant {
        TableState::Dormant
    } else {
        TableState::Active
    }
}

/// The VIP, if this is about the endpoints of one of UDP.
fn changed_udp(element: &Element) -> Option<Vip> {
    match element {
        Element::Slot(vip, ..) | Element::Ticket(vip, ..) | Element::Member(vip, ..) | Element::Route(vip, ..) => {
            (vip.protocol == Protocol::Udp).then_some(*vip)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
