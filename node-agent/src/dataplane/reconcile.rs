//! Keeps the kernel's table what is desired: compares two states and commits the difference, never chases events.

use std::collections::BTreeSet;
use std::sync::Arc;

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::{Protocol, Vip};

use super::desired::{Desired, Key, Pods};
use super::diff::{Difference, all_keys, diff, difference};
use super::kernel::{Kernel, KernelError, Observed, Transaction};
use super::layout::{Chain, Layout, LayoutSettings, Set, names};
use super::leaving::{Grace, Leaving};
use super::programmed::{Change, Element, Group, Programmed, Sticky, sticky_of};

/// A change takes up to three commits; more than a few mean that the diff does not come to an end.
const MOST_COMMITS: usize = 4;

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
    /// says; one that is there keeps its state, and only the difference is written. Gives the number of commits.
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
            self.commit(step)?;
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
        if let Err(error) = self.kernel.commit(&transaction) {
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
        match self.kernel.commit(&transaction) {
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
        if let Err(error) = self.kernel.commit(&transaction) {
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

/// What the next commit is to do.
struct Step {
    replace: bool,
    make: bool,
    /// Whether the table is dormant after it.
    dormant: bool,
    layout: Arc<Layout>,
    pods: Pods,
    stale_chains: Vec<String>,
    changes: Vec<Change>,
}

impl Step {
    /// None if the kernel holds what is desired, but for what packets may still look for.
    fn next(
        settings: LayoutSettings,
        known: &Known,
        desired: &Desired,
        keys: &BTreeSet<Key>,
        dormant: bool,
        leaving: &mut Leaving,
    ) -> Option<Self> {
        let nothing = Programmed::default();
        let (table, replace, dormant) = match known {
            Known::Table(table) => (Some(table), false, table.dormant),
            Known::Other { dormant } => (None, true, *dormant),
            Known::Nothing | Known::Absent => (None, false, dormant),
        };
        let programmed = table.map_or(&nothing, |table| &table.programmed);
        // No packet is under way through a table that hooks nothing.
        let may_leave = |vip: &Vip| dormant || !leaving.waits(vip);
        let Difference { changes, left_behind } = difference(desired, programmed, keys, may_leave);
        if !dormant {
            leaving.note(left_behind);
        }
        let held = table.map(|table| &table.layout.stickies);
        let needed = changes.iter().filter_map(needed_sticky);
        let new: BTreeSet<Sticky> = needed.filter(|s| held.is_none_or(|held| !held.contains(s))).collect();
        let layout = match table {
            Some(table) if table.pods == desired.pods && new.is_empty() => {
                if changes.is_empty() && table.stale_chains.is_empty() {
                    return None;
                }
                Arc::clone(&table.layout)
            }
            _ => {
                let stickies = held.into_iter().flatten().copied().chain(new).collect();
                Arc::new(Layout::new(settings, &desired.pods, &stickies))
            }
        };
        Some(Self {
            replace,
            make: table.is_none(),
            dormant,
            layout,
            pods: desired.pods.clone(),
            stale_chains: table.map(|table| table.stale_chains.clone()).unwrap_or_default(),
            changes,
        })
    }
}

/// The sets and chains that differ between what is held and what is wanted.
struct Objects<'a> {
    new_sets: Vec<&'a Set>,
    new_chains: Vec<&'a Chain>,
    rewrite: Vec<&'a Chain>,
}

impl<'a> Objects<'a> {
    fn new(held: Option<&Layout>, wanted: &'a Layout, stale_chains: &[String]) -> Self {
        let held_set = |name: &str| held.is_some_and(|held| held.sets.iter().any(|set| set.name == name));
        let held_chain = |name: &str| held.and_then(|held| held.chains.iter().find(|chain| chain.name == name));
        let is_stale = |chain: &Chain| stale_chains.contains(&chain.name);
        // Compared only if anything may differ: there are hundreds of both.
        if stale_chains.is_empty() && held.is_some_and(|held| std::ptr::eq(held, wanted)) {
            return Self {
                new_sets: vec![],
                new_chains: vec![],
                rewrite: vec![],
            };
        }
        let (old, new_chains): (Vec<_>, Vec<_>) = wanted.chains.iter().partition(|c| held_chain(&c.name).is_some());
        Self {
            new_sets: wanted.sets.iter().filter(|set| !held_set(&set.name)).collect(),
            new_chains,
            rewrite: old
                .into_iter()
                .filter(|chain| is_stale(chain) || held_chain(&chain.name) != Some(chain))
                .collect(),
        }
    }
}

fn needed_sticky(change: &Change) -> Option<Sticky> {
    match change {
        Change::Add(Element::Member(vip, which, group)) => sticky_of(*vip, *which, *group),
        _ => None,
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
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::dataplane::desired::{Affinity, Frontend, List};
    use crate::dataplane::layout::class_of;
    use nftfleet_domain::service::Endpoint;
    use proptest::prelude::*;

    /// A kernel made of a value.
    #[derive(Default)]
    struct Paper {
        table: Option<Observed>,
        refuse: bool,
        commits: Vec<usize>,
        stickies: BTreeSet<Sticky>,
        /// How many of the next readings leave something out.
        partial: usize,
        /// How often packets were waited for.
        waited: usize,
    }

    impl Kernel for Paper {
        fn stickies(&mut self) -> Result<BTreeSet<Sticky>, KernelError> {
            Ok(self.stickies.clone())
        }

        fn observe(&mut self, _: &Layout) -> Result<Option<Observed>, KernelError> {
            let mut table = self.table.clone();
            if self.partial > 0 {
                let programmed = &mut table.as_mut().unwrap().programmed;
                let slots = &mut programmed.vips.values_mut().next().unwrap().all.slots;
                slots.truncate(slots.len() - self.partial);
                self.partial -= 1;
            }
            Ok(table)
        }

        fn state(&mut self) -> Result<TableState, KernelError> {
            Ok(match &self.table {
                None => TableState::Absent,
                Some(table) if table.dormant => TableState::Dormant,
                Some(_) => TableState::Active,
            })
        }

        fn commit(&mut self, transaction: &Transaction<'_>) -> Result<(), KernelError> {
            if std::mem::take(&mut self.refuse) {
                return Err(KernelError::Restless);
            }
            if transaction.replace {
                self.table = None;
            }
            if transaction.make {
                let dormant = transaction.dormant.unwrap();
                self.table = Some(Observed {
                    dormant,
                    differences: vec![],
                    stale_chains: vec![],
                    programmed: Programmed::default(),
                });
            }
            let table = self.table.as_mut().unwrap();
            table
                .stale_chains
                .retain(|stale| !transaction.rewrite.iter().any(|chain| chain.name == *stale));
            let made = transaction.sets.iter().filter_map(|set| sticky_named(&set.name));
            self.stickies.extend(made);
            for set in transaction.old_sets {
                self.stickies.remove(&sticky_named(set).unwrap());
            }
            table.programmed.apply(transaction.changes.to_vec());
            table.dormant = transaction.dormant.unwrap_or(table.dormant);
            self.commits.push(transaction.changes.len());
            Ok(())
        }

        fn wait_for_packets(&mut self) {
            self.waited += 1;
        }
    }

    fn sticky_named(name: &str) -> Option<Sticky> {
        let (family, which, group) = names::sticky_group(name)?;
        let Group::Sticky { timeout, class } = group else {
            return None;
        };
        Some(Sticky {
            family,
            which,
            timeout,
            class,
        })
    }

    fn desired(endpoints: u8) -> Desired {
        desired_with(endpoints, None)
    }

    fn desired_with(endpoints: u8, timeout: Option<u32>) -> Desired {
        let address = IpAddr::from([10, 96, 0, 1]);
        let vip = Vip {
            address,
            protocol: Protocol::Udp,
            port: 80,
        };
        let endpoint = |n| Endpoint {
            address: IpAddr::from([10, 128, 0, n]),
            port: 80,
        };
        let affinity = timeout.map(|timeout| Affinity {
            timeout,
            number: 7,
            siblings: [vip].into(),
        });
        let endpoints = (1..=endpoints).map(endpoint).collect();
        let frontend = Frontend {
            name: "shop/web:80".into(),
            route: None,
            all: Some(List { endpoints, affinity }),
            local: None,
            sources: None,
            serving: [].into(),
        };
        Desired {
            frontends: [(vip, frontend)].into(),
            cluster_ips: [(address, "shop/web".into())].into(),
            ..Desired::default()
        }
    }

    fn dataplane(kernel: Paper) -> Dataplane<Paper> {
        let settings = LayoutSettings {
            masquerade_bit: 14,
            masquerade_all: false,
        };
        Dataplane::new(kernel, settings)
    }

    #[test]
    fn chains_for_affinity_come_when_needed_and_go_when_many_are_not() {
        let mut dataplane = dataplane(Paper::default());
        for timeout in 1..=40 {
            dataplane.load(&desired_with(3, Some(timeout)), false).unwrap();
            let used = |sticky: &Sticky| sticky.timeout == timeout && sticky.class == 3;
            assert!(dataplane.kernel.stickies.iter().any(used), "{timeout}");
            assert!(dataplane.kernel.stickies.len() <= SPARE_STICKIES + 1);
        }
        let wish = desired_with(3, Some(40));
        assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
        assert_eq!(dataplane.load(&wish, false).unwrap(), 0);
    }

    #[test]
    fn what_two_readings_disagree_about_is_not_believed() {
        let mut dataplane = dataplane(Paper::default());
        dataplane.load(&desired(8), false).unwrap();
        for partial in [1, 3] {
            dataplane.kernel.partial = partial;
            assert_eq!(dataplane.compare(&desired(8)).unwrap(), Vec::<String>::new());
            dataplane.forget();
            dataplane.kernel.partial = partial;
            assert_eq!(dataplane.load(&desired(7), false).unwrap(), 2);
            assert_eq!(dataplane.compare(&desired(7)).unwrap(), Vec::<String>::new());
            dataplane.load(&desired(8), false).unwrap();
        }
        dataplane.forget();
        dataplane.kernel.partial = 8;
        assert!(matches!(dataplane.compare(&desired(8)), Err(KernelError::Restless)));
    }

    #[test]
    fn only_the_changed_keys_are_looked_at() {
        let mut dataplane = dataplane(Paper::default());
        dataplane.load(&desired(3), false).unwrap();
        dataplane.take_changed_udp();
        let mut wish = desired(3);
        wish.external_ips.insert(IpAddr::from([198, 51, 100, 1]));
        let vip = *wish.frontends.keys().next().unwrap();
        assert_eq!(dataplane.follow(&wish, &[Key::Vip(vip)].into()).unwrap(), 0);
        assert_eq!(dataplane.take_changed_udp(), [vip].into());
        let keys = [Key::ExternalIp(IpAddr::from([198, 51, 100, 1]))].into();
        assert_eq!(dataplane.follow(&wish, &keys).unwrap(), 1);
        assert_eq!(dataplane.take_changed_udp(), BTreeSet::new());
        dataplane.follow(&desired(2), &[Key::Vip(vip)].into()).unwrap();
        assert_eq!(dataplane.take_changed_udp(), [vip].into());
    }

    fn groups(dataplane: &Dataplane<Paper>) -> Vec<Group> {
        let table = dataplane.kernel.table.as_ref().unwrap();
        table.programmed.vips.values().next().unwrap().all.groups.clone()
    }

    #[test]
    fn a_vip_stays_in_its_old_class_until_packets_have_gone_by() {
        let mut dataplane = dataplane(Paper::default());
        dataplane.load(&desired(3), false).unwrap();
        let keys = desired(3).keys();
        assert_eq!(dataplane.follow(&desired(5), &keys).unwrap(), 1);
        let first = dataplane.begin_grace().unwrap();
        assert_eq!(dataplane.follow(&desired(6), &keys).unwrap(), 1);
        assert_eq!(groups(&dataplane), [3, 5, 6].map(Group::Class));
        // What was changed again waits again.
        assert_eq!(dataplane.leave(&desired(6), first).unwrap(), 0);
        let second = dataplane.begin_grace().unwrap();
        assert!(!dataplane.is_settled());
        assert_eq!(dataplane.leave(&desired(6), second).unwrap(), 1);
        assert_eq!(groups(&dataplane), [Group::Class(6)]);
        assert!(dataplane.is_settled() && dataplane.begin_grace().is_none());
        assert_eq!(dataplane.kernel.waited, 0);
    }

    #[test]
    fn a_load_waits_for_packets_of_an_active_table_alone() {
        for (dormant, waited) in [(true, 0), (false, 1)] {
            let mut dataplane = dataplane(Paper::default());
            dataplane.load(&desired(3), dormant).unwrap();
            assert_eq!(dataplane.load(&desired(5), false).unwrap(), 2);
            assert_eq!(groups(&dataplane), [Group::Class(5)]);
            assert_eq!(dataplane.kernel.waited, waited);
        }
    }

    #[test]
    fn a_grace_period_of_a_table_that_is_gone_writes_nothing() {
        let mut dataplane = dataplane(Paper::default());
        dataplane.load(&desired(3), false).unwrap();
        dataplane.follow(&desired(5), &desired(5).keys()).unwrap();
        let grace = dataplane.begin_grace().unwrap();
        dataplane.kernel.table = None;
        dataplane.state().unwrap();
        assert_eq!(dataplane.leave(&desired(5), grace).unwrap(), 0);
        assert_eq!(dataplane.state().unwrap(), TableState::Absent);
    }

    proptest! {
        #[test]
        fn grace_periods_that_end_at_any_time_leave_what_is_desired(
            history in proptest::collection::vec((1u8..14, any::<bool>(), any::<bool>()), 1..30)
        ) {
            let mut dataplane = dataplane(Paper::default());
            dataplane.load(&desired(1), false).unwrap();
            let keys = desired(1).keys();
            let mut grace = None;
            let mut last = 1;
            for (endpoints, begins, ends) in history {
                last = endpoints;
                dataplane.follow(&desired(endpoints), &keys).unwrap();
                let class = Group::Class(class_of(usize::from(endpoints)).unwrap());
                prop_assert!(groups(&dataplane).contains(&class));
                if begins {
                    grace = dataplane.begin_grace().or(grace);
                }
                if ends && let Some(grace) = grace.take() {
                    dataplane.leave(&desired(endpoints), grace).unwrap();
                }
            }
            if let Some(grace) = grace {
                dataplane.leave(&desired(last), grace).unwrap();
            }
            if let Some(grace) = dataplane.begin_grace() {
                dataplane.leave(&desired(last), grace).unwrap();
            }
            let class = Group::Class(class_of(usize::from(last)).unwrap());
            prop_assert_eq!(groups(&dataplane), [class]);
            prop_assert_eq!(dataplane.kernel.waited, 0);
            prop_assert_eq!(dataplane.compare(&desired(last)).unwrap(), Vec::<String>::new());
        }
    }

    #[test]
    fn a_restart_writes_only_the_difference_and_keeps_the_table_active() {
        let mut first = dataplane(Paper::default());
        first.load(&desired(3), true).unwrap();
        first.set_dormant(false).unwrap();
        let mut second = dataplane(Paper {
            table: first.kernel.table,
            ..Paper::default()
        });
        second.load(&desired(3), true).unwrap();
        assert_eq!(second.kernel.commits, Vec::<usize>::new());
        assert_eq!(second.state().unwrap(), TableState::Active);
    }

    #[test]
    fn a_refused_commit_is_read_anew() {
        let mut dataplane = dataplane(Paper::default());
        dataplane.load(&desired(3), true).unwrap();
        dataplane.kernel.refuse = true;
        assert!(dataplane.load(&desired(4), true).is_err());
        dataplane.load(&desired(4), true).unwrap();
        assert_eq!(dataplane.compare(&desired(4)).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_foreign_change_is_found_by_comparing() {
        let mut dataplane = dataplane(Paper::default());
        dataplane.load(&desired(3), true).unwrap();
        dataplane.kernel.table.as_mut().unwrap().programmed.cluster_ips.clear();
        assert_eq!(dataplane.compare(&desired(3)).unwrap().len(), 1);
    }

    #[test]
    fn a_table_that_somebody_deleted_is_made_again() {
        let mut dataplane = dataplane(Paper::default());
        dataplane.load(&desired(3), true).unwrap();
        dataplane.kernel.table = None;
        assert_eq!(dataplane.state().unwrap(), TableState::Absent);
        dataplane.load(&desired(3), false).unwrap();
        assert_eq!(dataplane.state().unwrap(), TableState::Active);
        assert_eq!(dataplane.compare(&desired(3)).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn rules_that_somebody_changed_are_written_anew_and_nothing_else() {
        let mut dataplane = dataplane(Paper::default());
        dataplane.load(&desired(3), false).unwrap();
        dataplane.kernel.table.as_mut().unwrap().stale_chains = vec!["pick4".to_owned()];
        assert_eq!(
            dataplane.compare(&desired(3)).unwrap(),
            ["the rules of chain pick4 differ"]
        );
        assert_eq!(dataplane.load(&desired(3), false).unwrap(), 1);
        assert_eq!(dataplane.kernel.commits.last(), Some(&0));
        assert_eq!(dataplane.compare(&desired(3)).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_table_of_another_make_is_replaced_in_its_state() {
        let foreign = Observed {
            dormant: false,
            differences: vec!["set x".to_owned()],
            stale_chains: vec![],
            programmed: Programmed::default(),
        };
        let mut dataplane = dataplane(Paper {
            table: Some(foreign),
            ..Paper::default()
        });
        dataplane.load(&desired(1), true).unwrap();
        assert_eq!(dataplane.state().unwrap(), TableState::Active);
        assert_eq!(dataplane.compare(&desired(1)).unwrap(), Vec::<String>::new());
    }
}
