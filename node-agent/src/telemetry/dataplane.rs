//! What kube-proxy has no metric for.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use nftfleet_domain::inventory::TableState;

use crate::dataplane::Status;
use crate::dataplane::actor::Round;

/// Metrics of the table and of what is written into it.
#[derive(Debug)]
pub(super) struct Dataplane {
    elements: Gauge,
    active: Gauge,
    commits: Gauge,
    failures: Gauge,
    round: Histogram,
    queue: Histogram,
    bytes: Histogram,
    changed: Histogram,
    disturbed: Gauge,
}

impl Dataplane {
    /// Registers them all.
    pub fn new(registry: &mut Registry) -> Self {
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let elements = gauge("table_elements", "Elements in the table inet nftfleet");
        let active = gauge("table_active", "1 if the table inet nftfleet answers for Services");
        let commits = gauge("commits", "Transactions since the agent's start");
        let failures = gauge(
            "failures",
            "Refused transactions and failed reads since the agent's start",
        );
        let disturbed = gauge(
            "generation_races",
            "Large transactions during which somebody else changed the ruleset, since the agent's start",
        );
        let mut histogram = |name: &str, help: &str, first, factor, count| {
            let histogram = Histogram::new(exponential_buckets(first, factor, count));
            registry.register(name, help, histogram.clone());
            histogram
        };
        Self {
            elements,
            active,
            commits,
            failures,
            disturbed,
            // 10 us to 10 s.
            round: histogram(
                "commit_seconds",
                "From the look at what differs to the kernel's word, in seconds",
                0.000_01,
                4.0,
                11,
            ),
            queue: histogram(
                "queue_seconds",
                "For how long a change waited before it was looked at, in seconds",
                0.000_01,
                4.0,
                11,
            ),
            bytes: histogram(
                "commit_bytes",
                "What the kernel was told at a time, in bytes",
                256.0,
                4.0,
                10,
            ),
            changed: histogram("commit_elements", "Elements added and removed at a time", 1.0, 4.0, 11),
        }
    }

    /// A round of writing ended well.
    pub fn round(&self, round: &Round) {
        self.queue.observe(round.queued.as_secs_f64());
        if round.written.commits == 0 {
            return;
        }
        self.round.observe(round.took.as_secs_f64());
        self.bytes.observe(as_float(round.written.bytes));
        self.changed.observe(as_float(round.written.elements));
        if round.written.disturbed {
            self.disturbed.inc();
        }
    }

    /// How the table stands.
    pub fn status(&self, status: &Status) {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.elements.set(number(status.elements as u64));
        self.active.set(i64::from(status.table == TableState::Active));
        self.commits.set(number(status.commits));
        self.failures.set(number(status.failures));
    }
}

/// Exact up to four thousand million, which is more than there is.
fn as_float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}
