//! The table at the end, and what must not be missing from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::case::Case;
use crate::rows::Row;
use crate::upstream;

/// How many cases of each row were run and passed; shared by all threads.
#[derive(Debug, Default)]
pub struct Report(Mutex<BTreeMap<Row, Tally>>);

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    run: usize,
    passed: usize,
}

impl Report {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Row, Tally>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A case of this row is run.
    pub fn begins(&self, row: Row) {
        self.lock().entry(row).or_default().run += 1;
    }

    /// It did not panic.
    pub fn passed(&self, row: Row) {
        self.lock().entry(row).or_default().passed += 1;
    }

    /// Every row, with how many of its cases were run and passed.
    pub fn table(&self) -> String {
        let tallies = self.lock();
        let width = Row::ALL.iter().map(|row| row.name().len()).max().unwrap_or_default();
        let mut table = format!("{:width$} | cases | passed\n", "row");
        for row in Row::ALL {
            let Tally { run, passed } = tallies.get(row).copied().unwrap_or_default();
            let name = row.name();
            // A String takes every line.
            let _ = match row.elsewhere() {
                Some(why) if run == 0 => writeln!(table, "{name:width$} |   n/a | {why}"),
                _ if run == passed => writeln!(table, "{name:width$} | {run:5} | {passed:6}"),
                _ => writeln!(table, "{name:width$} | {run:5} | {passed:6} FAILED"),
            };
        }
        table
    }
}

/// Rows and upstream tests without a case and without a reason, and cases that name a test which is not known.
pub fn missing(cases: &[Case]) -> Vec<String> {
    let rows: BTreeSet<Row> = cases.iter().map(|case| case.row).collect();
    let without_case = Row::ALL
        .iter()
        .filter(|row| row.elsewhere().is_none() && !rows.contains(row))
        .map(|row| format!("no case is about {:?}", row.name()));
    let repeated: BTreeSet<&str> = cases.iter().flat_map(|case| case.upstream).copied().collect();
    let not_repeated = upstream::TESTS
        .iter()
        .filter(|(name, why)| why.is_none() && !repeated.contains(name))
        .map(|(name, _)| format!("no case repeats {name}"));
    let known: BTreeSet<&str> = upstream::TESTS.iter().map(|(name, _)| *name).collect();
    let unknown = repeated
        .difference(&known)
        .map(|name| format!("nobody upstream calls a test {name}"));
    without_case.chain(not_repeated).chain(unknown).collect()
}
