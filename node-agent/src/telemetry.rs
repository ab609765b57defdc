//! The agent's metrics, and the small HTTP server that shows them.

mod dataplane;
mod kube_proxy;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use self::dataplane::Dataplane;
use self::kube_proxy::KubeProxy;
use crate::dataplane::Actor;
use crate::dataplane::actor::Round;
use crate::dataplane::desired::Heard;
use crate::pause::Pause;

/// The metrics.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    left_out: Family<ByKind, Counter>,
    conflicts: Gauge,
    dataplane: Dataplane,
    kube_proxy: KubeProxy,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

impl Default for Telemetry {
    fn default() -> Self {
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("nftfleet_agent");
        let left_out = Family::<ByKind, Counter>::default();
        own.register(
            "objects_left_out",
            "Objects or parts of objects that made no sense, each time one was seen",
            left_out.clone(),
        );
        let conflicts = Gauge::default();
        own.register(
            "address_conflicts",
            "Addresses with port that a second Service claims",
            conflicts.clone(),
        );
        let dataplane = Dataplane::new(own);
        let kube_proxy = KubeProxy::new(registry.sub_registry_with_prefix("kubeproxy"));
        Self {
            registry,
            left_out,
            conflicts,
            dataplane,
            kube_proxy,
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

    /// Changes were heard of, and wait to be written.
    pub fn heard(&self, now: Timestamp, heard: &Heard) {
        self.kube_proxy.heard(now, heard);
    }

    /// These changes wait no more: there was nothing to write for them.
    pub fn nothing_to_do(&self, now: Timestamp, heard: &Heard) {
        self.kube_proxy.nothing_to_do(now, heard);
    }

    /// A round of writing ended well.
    pub fn round(&self, now: Timestamp, round: &Round) {
        self.dataplane.round(round);
        self.kube_proxy.round(now, round);
    }

    /// So many Services' ports have no endpoint on this node that their internal, or external, traffic policy asks for.
    pub fn no_local_endpoints(&self, internal: usize, external: usize) {
        self.kube_proxy.no_local_endpoints(internal, external);
    }

    /// `/healthz` of the proxy was answered with this status.
    pub fn healthz(&self, code: u16) {
        self.kube_proxy.healthz(code);
    }

    /// `/livez` of the proxy was answered with this status.
    pub fn livez(&self, code: u16) {
        self.kube_proxy.livez(code);
    }

    /// UDP flows were looked through, and so many cut off.
    pub fn flows(&self, took: Duration, cut: usize) {
        self.kube_proxy.flows(took, cut);
    }

    /// The metrics in `OpenMetrics`' text format, which Prometheus reads.
    fn text(&self, actor: &Actor) -> String {
        let status = actor.status();
        self.dataplane.status(&status);
        self.kube_proxy.failures(status.failures);
        let mut text = String::new();
        // Writing to a text does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// The format's name.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
    let metrics = |State((telemetry, actor)): State<(Arc<Telemetry>, Actor)>| async move {
        ([(CONTENT_TYPE, OPEN_METRICS)], telemetry.text(&actor))
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state((telemetry, actor));
    axum::serve(listener, router).await
}
