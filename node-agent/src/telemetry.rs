//! The agent's metrics, and the small HTTP server that shows them.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use tokio::net::TcpListener;

use crate::dataplane::Actor;
use crate::pause::Pause;

/// The metrics.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    left_out: Family<ByKind, Counter>,
    conflicts: Gauge,
    elements: Gauge,
    active: Gauge,
    commits: Gauge,
    failures: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

impl Default for Telemetry {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("nftfleet_agent");
        let left_out = Family::<ByKind, Counter>::default();
        registry.register(
            "objects_left_out",
            "Objects or parts of objects that made no sense, each time one was seen",
            left_out.clone(),
        );
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let conflicts = gauge("address_conflicts", "Addresses with port that a second Service claims");
        let elements = gauge("table_elements", "Elements in the table inet nftfleet");
        let active = gauge("table_active", "1 if the table inet nftfleet answers for Services");
        let commits = gauge("commits", "Transactions since the agent's start");
        let failures = gauge(
            "failures",
            "Refused transactions and failed reads since the agent's start",
        );
        Self {
            registry,
            left_out,
            conflicts,
            elements,
            active,
            commits,
            failures,
        }
    }
}

impl Telemetry {
    /// An object, or a part of one, made no sense.
    pub fn left_out(&self, kind: &'static str) {
        self.left_out.get_or_create(&ByKind { kind }).inc();
    }

    /// So many addresses are claimed twice.
    pub fn conflicts(&self, count: usize) {
        self.conflicts.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The metrics in Prometheus' text format.
    fn text(&self, actor: &Actor) -> String {
        let status = actor.status();
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.elements.set(number(status.elements as u64));
        self.active.set(i64::from(
            status.table == nftfleet_domain::inventory::TableState::Active,
        ));
        self.commits.set(number(status.commits));
        self.failures.set(number(status.failures));
        let mut text = String::new();
        // Writing to a text does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Shows `/metrics` and `/healthz` until the process ends, if an address is given. One that is taken is tried again.
pub async fn serve(listen: Option<SocketAddr>, telemetry: Arc<Telemetry>, actor: Actor) {
    let Some(listen) = listen else {
        return std::future::pending().await;
    };
    let mut pause = Pause::default();
    loop {
        let error = match TcpListener::bind(listen).await {
            Ok(listener) => serve_on(listener, Arc::clone(&telemetry), actor.clone()).await.err(),
            Err(error) => Some(error),
        };
        tracing::warn!(?error, %listen, "the metrics can't be shown; trying again");
        pause.wait().await;
    }
}

async fn serve_on(listener: TcpListener, telemetry: Arc<Telemetry>, actor: Actor) -> std::io::Result<()> {
    let metrics = |State((telemetry, actor)): State<(Arc<Telemetry>, Actor)>| async move { telemetry.text(&actor) };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state((telemetry, actor));
    axum::serve(listener, router).await
}
