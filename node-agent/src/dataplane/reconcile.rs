//! Keeps the kernel's table what is desired: compares two states and commits the difference, never chases events.

use nftfleet_domain::inventory::TableState;

use super::desired::{Desired, Programmed};
use super::diff::diff;
use super::kernel::{Kernel, KernelError, Transaction};
use super::layout::Layout;

/// A change of class takes two commits; more than a few mean that the diff does not come to an end.
const MOST_COMMITS: usize = 4;

/// What the kernel holds, as far as we know.
#[derive(Debug)]
enum Known {
    /// Not read yet, or a commit failed in between.
    Nothing,
    /// There is no table.
    Absent,
    /// There is a table, and its sets and chains are as we would make them.
    Table {
        /// Whether it hooks nothing.
        dormant: bool,
        /// Chains whose rules are not.
        stale_chains: Vec<String>,
        /// Its elements.
        programmed: Programmed,
    },
    /// There is a table of ours, but of another make.
    Other {
        /// Whether it hooks nothing.
        dormant: bool,
    },
}

/// The node's Service data plane.
#[derive(Debug)]
pub struct Dataplane<K> {
    kernel: K,
    layout: Layout,
    known: Known,
}

impl<K: Kernel> Dataplane<K> {
    /// A data plane of which nothing is known yet.
    pub fn new(kernel: K, layout: Layout) -> Self {
        Self {
            kernel,
            layout,
            known: Known::Nothing,
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

    /// The same as last committed or read; none if that is not known.
    fn known_state(&self) -> Option<TableState> {
        match &self.known {
            Known::Nothing => None,
            Known::Absent => Some(TableState::Absent),
            Known::Table { dormant: true, .. } | Known::Other { dormant: true } => Some(TableState::Dormant),
            Known::Table { dormant: false, .. } | Known::Other { dormant: false } => Some(TableState::Active),
        }
    }

    /// How many elements the kernel holds, as last committed or read.
    pub fn elements(&self) -> usize {
        match &self.known {
            Known::Table { programmed, .. } => programmed.elements(),
            _ => 0,
        }
    }

    fn known(&mut self) -> Result<&Known, KernelError> {
        if matches!(self.known, Known::Nothing) {
            self.known = match self.kernel.observe(&self.layout)? {
                None => Known::Absent,
                Some(observed) if observed.differences.is_empty() => Known::Table {
                    dormant: observed.dormant,
                    stale_chains: observed.stale_chains,
                    programmed: observed.programmed,
                },
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

    /// Makes the kernel hold what is desired. A table that is missing is made, dormant or active as `dormant` says; one that
    /// is there keeps its state, and only the difference is written. Gives the number of commits.
    ///
    /// # Errors
    /// The kernel refused; what it holds is then read anew at the next call.
    pub fn load(&mut self, desired: &Desired, dormant: bool) -> Result<usize, KernelError> {
        self.known()?;
        let mut commits = 0;
        while commits < MOST_COMMITS {
            let empty = Programmed::default();
            let (replace, make, dormant, stale, programmed) = match &self.known {
                Known::Table {
                    dormant,
                    stale_chains,
                    programmed,
                } => (false, None, *dormant, stale_chains.as_slice(), programmed),
                Known::Other { dormant } => (true, Some(&self.layout), *dormant, [].as_slice(), &empty),
                Known::Nothing | Known::Absent => (false, Some(&self.layout), dormant, [].as_slice(), &empty),
            };
            let changes = diff(desired, programmed);
            if changes.is_empty() && make.is_none() && stale.is_empty() {
                return Ok(commits);
            }
            let rewrite: Vec<_> = self
                .layout
                .chains
                .iter()
                .filter(|chain| stale.contains(&chain.name))
                .collect();
            let transaction = Transaction {
                replace,
                make,
                rewrite: &rewrite,
                dormant: make.map(|_| dormant),
                changes: &changes,
            };
            let mut programmed = programmed.clone();
            if let Err(error) = self.kernel.commit(&transaction) {
                self.known = Known::Nothing;
                return Err(error);
            }
            programmed.apply(&changes);
            self.known = Known::Table {
                dormant,
                stale_chains: Vec::new(),
                programmed,
            };
            commits += 1;
        }
        Ok(commits)
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
        if let Known::Table { dormant, .. } | Known::Other { dormant } = &mut self.known {
            *dormant = wanted;
        }
        Ok(())
    }

    /// Reads the table back and compares it with what is desired. Gives the differences in words; none means that the
    /// kernel holds exactly what is desired.
    ///
    /// # Errors
    /// The kernel could not be read.
    pub fn compare(&mut self, desired: &Desired) -> Result<Vec<String>, KernelError> {
        self.known = Known::Nothing;
        self.known()?;
        Ok(match &self.known {
            Known::Nothing | Known::Absent => vec!["there is no table".to_owned()],
            Known::Other { .. } => vec!["the table's sets or chains are not as they were made".to_owned()],
            Known::Table {
                stale_chains,
                programmed,
                ..
            } => {
                let stale = stale_chains
                    .iter()
                    .map(|chain| format!("the rules of chain {chain} differ"));
                let changes = diff(desired, programmed);
                stale
                    .chain(changes.iter().map(|change| format!("{change:?}")))
                    .collect()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use super::*;
    use crate::dataplane::kernel::Observed;
    use crate::dataplane::layout::LayoutSettings;
    use nftfleet_domain::service::{Endpoint, Protocol, Vip};

    /// A kernel made of a value.
    #[derive(Default)]
    struct Paper {
        table: Option<Observed>,
        refuse: bool,
        commits: Vec<usize>,
    }

    impl Kernel for Paper {
        fn observe(&mut self, _: &Layout) -> Result<Option<Observed>, KernelError> {
            Ok(self.table.clone())
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
            if transaction.make.is_some() {
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
            table.programmed.apply(transaction.changes);
            table.dormant = transaction.dormant.unwrap_or(table.dormant);
            self.commits.push(transaction.changes.len());
            Ok(())
        }
    }

    fn desired(endpoints: u8) -> Desired {
        let address = IpAddr::from([10, 96, 0, 1]);
        let vip = Vip {
            address,
            protocol: Protocol::Tcp,
            port: 80,
        };
        let endpoint = |n| Endpoint {
            address: IpAddr::from([10, 128, 0, n]),
            port: 80,
        };
        Desired {
            services: [(vip, (1..=endpoints).map(endpoint).collect())].into(),
            cluster_ips: BTreeSet::from([address]),
            local: BTreeSet::new(),
        }
    }

    fn dataplane(kernel: Paper) -> Dataplane<Paper> {
        let settings = LayoutSettings {
            cluster_cidr4: None,
            cluster_cidr6: None,
            masquerade_bit: 14,
        };
        Dataplane::new(kernel, Layout::new(&settings))
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
