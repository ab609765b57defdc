//! What `/metrics` shows.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// A request by what it asked for and how it was answered.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabel {
    /// The endpoint's id.
    pub endpoint: &'static str,
    /// The HTTP status.
    pub status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EndpointLabel {
    endpoint: &'static str,
}

/// A report by what became of it: `new`, `duplicate` or `stale`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReportLabel {
    /// What became of it.
    pub outcome: &'static str,
}

/// A tick by what became of it: `applied`, `stale` or `failed`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TickLabel {
    /// What became of it.
    pub outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

/// Seconds from 1 ms to a minute. Long-polls land in the upper ones.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 60.0];

/// Counts and durations of this server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabel, Counter>,
    durations: Family<EndpointLabel, Histogram, fn() -> Histogram>,
    /// Agents whose request for their assignment waits now.
    pub agents_waiting: Gauge,
    /// Reports by what became of them.
    pub reports: Family<ReportLabel, Counter>,
    /// Ticks by what became of them.
    pub ticks: Family<TickLabel, Counter>,
    /// Commands that ticks gave and that were applied.
    pub commands: Counter,
    tick_duration: Histogram,
    tasks: Family<StateLabel, Gauge<u64, AtomicU64>>,
    tasks_known: Mutex<Vec<String>>,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("nftfleet");
        let requests = Family::default();
        let durations =
            Family::<EndpointLabel, Histogram, fn() -> Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        let agents_waiting = Gauge::default();
        let reports = Family::default();
        let ticks = Family::default();
        let commands = Counter::default();
        let tick_duration = Histogram::new(BUCKETS);
        let tasks = Family::default();
        registry.register("http_requests", "Requests by endpoint and status", requests.clone());
        registry.register_with_unit(
            "http_request_duration",
            "How long requests took, by endpoint; with the time that long-polls wait",
            Unit::Seconds,
            durations.clone(),
        );
        registry.register(
            "agents_waiting",
            "Agents whose request for their assignment waits now",
            agents_waiting.clone(),
        );
        registry.register("reports", "Reports by what became of them", reports.clone());
        registry.register(
            "rollout_ticks",
            "Ticks of rollouts by what became of them",
            ticks.clone(),
        );
        registry.register("rollout_commands", "Commands that ticks gave", commands.clone());
        registry.register_with_unit(
            "rollout_tick_duration",
            "How long a tick took, from its snapshot to its end",
            Unit::Seconds,
            tick_duration.clone(),
        );
        registry.register(
            "tasks",
            "Tasks of all rollouts by state, in the whole database",
            tasks.clone(),
        );
        Self {
            registry,
            requests,
            durations,
            agents_waiting,
            reports,
            ticks,
            commands,
            tick_duration,
            tasks,
            tasks_known: Mutex::default(),
        }
    }

    /// A request was answered.
    pub fn request(&self, endpoint: &'static str, status: u16, took: Duration) {
        self.requests.get_or_create(&RequestLabel { endpoint, status }).inc();
        self.durations
            .get_or_create(&EndpointLabel { endpoint })
            .observe(took.as_secs_f64());
    }

    /// A tick ended.
    pub fn tick(&self, outcome: &'static str, commands: usize, took: Duration) {
        self.ticks.get_or_create(&TickLabel { outcome }).inc();
        self.commands.inc_by(commands as u64);
        self.tick_duration.observe(took.as_secs_f64());
    }

    /// So many tasks are in each state. A state that is no longer there goes to zero.
    pub fn tasks(&self, counts: &BTreeMap<String, u64>) {
        let gauge = |state: &str| {
            self.tasks.get_or_create_owned(&StateLabel {
                state: state.to_owned(),
            })
        };
        let mut known = self
            .tasks_known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for state in known.iter().filter(|state| !counts.contains_key(*state)) {
            gauge(state).set(0);
        }
        for (state, count) in counts {
            gauge(state).set(*count);
            if !known.contains(state) {
                known.push(state.clone());
            }
        }
    }

    /// All of it in Prometheus's text format (`OpenMetrics` 1.0).
    ///
    /// # Errors
    /// None in practice: writing to a string can't fail.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
