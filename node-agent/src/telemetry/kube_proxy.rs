//! kube-proxy's metrics, under its names: dashboards and alerts that were made for it go on working.
//!
//! As of kube-proxy 1.36 (`pkg/proxy/metrics`), with these differences: no label `ip_family`, since both families are written
//! in one transaction; a sync is a round of commits in which something was written.

use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::Registry;

use crate::dataplane::actor::Round;
use crate::dataplane::desired::Heard;

/// kube-proxy's metrics.
#[derive(Debug)]
pub(super) struct KubeProxy {
    sync: Histogram,
    full: Histogram,
    partial: Histogram,
    network_programming: Histogram,
    last: Gauge<f64, std::sync::atomic::AtomicU64>,
    last_queued: Gauge<f64, std::sync::atomic::AtomicU64>,
    services: Changes,
    slices: Changes,
    no_local: Family<ByPolicy, Gauge>,
    sync_failures: Counter,
    healthz: Family<ByCode, Counter>,
    livez: Family<ByCode, Counter>,
    flows_look: Histogram,
    flows_cut: Counter,
}

/// Changes that were heard of, and those among them that are not in the table yet.
#[derive(Debug)]
struct Changes {
    pending: Gauge,
    total: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPolicy {
    traffic_policy: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCode {
    code: u16,
}

impl Changes {
    fn register(registry: &mut Registry, kind: &str, help: &str) -> Self {
        let changes = Self {
            pending: Gauge::default(),
            total: Counter::default(),
        };
        registry.register(
            format!("sync_proxy_rules_{kind}_changes_pending"),
            format!("Pending proxy rules {help} changes"),
            changes.pending.clone(),
        );
        registry.register(
            format!("sync_proxy_rules_{kind}_changes"),
            format!("Cumulative proxy rules {help} changes"),
            changes.total.clone(),
        );
        changes
    }

    fn heard(&self, count: u64) {
        self.total.inc_by(count);
        self.pending.inc_by(number(count));
    }

    fn done(&self, count: u64) {
        self.pending.dec_by(number(count));
    }
}

impl KubeProxy {
    /// Registers them all under `kubeproxy_`.
    pub fn new(registry: &mut Registry) -> Self {
        // 1 ms to 16 s.
        let sync = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        // 0.25 s, 0.5 s, every second to a minute, every 5 s to two minutes, every 30 s to five.
        let network_programming = linear_buckets(0.25, 0.25, 2)
            .chain(linear_buckets(1.0, 1.0, 59))
            .chain(linear_buckets(60.0, 5.0, 12))
            .chain(linear_buckets(120.0, 30.0, 7));
        let metrics = Self {
            sync: sync(),
            full: sync(),
            partial: sync(),
            network_programming: Histogram::new(network_programming),
            last: Gauge::default(),
            last_queued: Gauge::default(),
            services: Changes::register(registry, "service", "service"),
            slices: Changes::register(registry, "endpoint", "endpoint"),
            no_local: Family::default(),
            sync_failures: Counter::default(),
            healthz: Family::default(),
            livez: Family::default(),
            flows_look: sync(),
            flows_cut: Counter::default(),
        };
        for (name, help, histogram) in [
            (
                "sync_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds",
                &metrics.sync,
            ),
            (
                "sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
                &metrics.full,
            ),
            (
                "sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
                &metrics.partial,
            ),
            (
                "network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                &metrics.network_programming,
            ),
            (
                "conntrack_reconciler_sync_duration_seconds",
                "ReconcileConntrackFlowsLatency in seconds",
                &metrics.flows_look,
            ),
        ] {
            registry.register(name, help, histogram.clone());
        }
        for (name, help, gauge) in [
            (
                "sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
                &metrics.last,
            ),
            (
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
                &metrics.last_queued,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        for (name, help, counter) in [
            (
                "sync_proxy_rules_nftables_sync_failures",
                "Cumulative proxy nftables sync failures",
                &metrics.sync_failures,
            ),
            (
                "conntrack_reconciler_deleted_entries",
                "Cumulative conntrack flows deleted by conntrack reconciler",
                &metrics.flows_cut,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Number of services with a Local traffic policy and no endpoints",
            metrics.no_local.clone(),
        );
        registry.register(
            "proxy_healthz",
            "Cumulative proxy healthz HTTP status",
            metrics.healthz.clone(),
        );
        registry.register(
            "proxy_livez",
            "Cumulative proxy livez HTTP status",
            metrics.livez.clone(),
        );
        metrics
    }

    /// Changes were heard of, and wait.
    pub fn heard(&self, now: Timestamp, heard: &Heard) {
        self.services.heard(heard.services);
        self.slices.heard(heard.slices);
        self.last_queued.set(seconds(now));
    }

    /// These changes wait no more: there was nothing to write for them.
    pub fn nothing_to_do(&self, now: Timestamp, heard: &Heard) {
        self.services.done(heard.services);
        self.slices.done(heard.slices);
        for trigger in &heard.triggers {
            self.network_programming.observe(seconds(now) - seconds(*trigger));
        }
    }

    /// A round of writing ended well.
    pub fn round(&self, now: Timestamp, round: &Round) {
        self.nothing_to_do(now, &round.heard);
        if round.written.commits == 0 {
            return;
        }
        let took = round.took.as_secs_f64();
        self.sync.observe(took);
        if round.full { &self.full } else { &self.partial }.observe(took);
        self.last.set(seconds(now));
    }

    /// So many rounds have failed since the start.
    pub fn failures(&self, count: u64) {
        self.sync_failures
            .inc_by(count.saturating_sub(self.sync_failures.get()));
    }

    /// So many Services' ports have no endpoint on this node that their internal, or external, traffic policy asks for.
    pub fn no_local_endpoints(&self, internal: usize, external: usize) {
        for (traffic_policy, count) in [("internal", internal), ("external", external)] {
            let gauge = self.no_local.get_or_create(&ByPolicy { traffic_policy });
            gauge.set(number(count as u64));
        }
    }

    /// `/healthz` was answered.
    pub fn healthz(&self, code: u16) {
        self.healthz.get_or_create(&ByCode { code }).inc();
    }

    /// `/livez` was answered.
    pub fn livez(&self, code: u16) {
        self.livez.get_or_create(&ByCode { code }).inc();
    }

    /// UDP flows were looked through, and so many cut off.
    pub fn flows(&self, took: Duration, cut: usize) {
        self.flows_look.observe(took.as_secs_f64());
        self.flows_cut.inc_by(cut as u64);
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}
