//! The matrix, as it is printed at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use nftfleet_tests::kube_proxy::{Family, Mode};

use crate::situation::Situation;

/// What was counted in one family.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// New connections and queries.
    pub made: u64,
    /// Those that failed.
    pub failed: u64,
    /// Connections held open all the time.
    pub held: usize,
    /// Those that were lost.
    pub lost: usize,
}

/// How a cell ended.
#[derive(Clone, Debug)]
pub struct Passed {
    /// By family.
    pub counted: BTreeMap<Family, Counted>,
    /// Where the node is.
    pub state: &'static str,
}

/// The cells that passed.
#[derive(Debug, Default)]
pub struct Report(Mutex<BTreeMap<(Mode, Situation), Passed>>);

impl Report {
    /// Notes a cell that has passed.
    pub fn passed(&self, mode: Mode, situation: Situation, passed: Passed) {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cells.insert((mode, situation), passed);
    }

    /// The matrix, of those that have passed.
    pub fn table(&self) -> String {
        let cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = format!(
            "{:<16} | {:<34} | {:>28} | {:>28} | now served by\n",
            "from", "situation", "IPv4: new/failed, held/lost", "IPv6: new/failed, held/lost"
        );
        let mut sum = Counted::default();
        for ((mode, situation), passed) in cells.iter() {
            let mode = format!("{mode:?}");
            let _ = write!(text, "{mode:<16} | {:<34}", situation.name());
            for family in Family::BOTH {
                let c = passed.counted.get(&family).copied().unwrap_or_default();
                let counts = format!("{}/{}, {}/{}", c.made, c.failed, c.held, c.lost);
                let _ = write!(text, " | {counts:>28}");
                sum.made += c.made;
                sum.failed += c.failed;
                sum.held += c.held;
                sum.lost += c.lost;
            }
            let _ = writeln!(text, " | {}", passed.state);
        }
        let _ = write!(
            text,
            "{} cells: {} new connections and queries, {} failed; {} held open, {} lost",
            cells.len(),
            sum.made,
            sum.failed,
            sum.held,
            sum.lost
        );
        text
    }
}
