//! What a running kube-proxy answers on its ports: its mode, its health, and when it last wrote its rules.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::Family;
use crate::netns::{Netns, RuntimeThread};
use crate::wait;

/// `metricsBindAddress`: on the node only.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// `healthzBindAddress`, for load balancers.
const HEALTHZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10256);

/// How long the port may be somebody else's.
const LIMIT: Duration = Duration::from_secs(10);

/// The open ports of a running process. They close, and their connections are cut, on drop.
pub(super) struct Answers {
    times: Arc<Mutex<Times>>,
    _thread: RuntimeThread,
}

/// When rules were last asked for, and written.
#[derive(Debug, Default)]
struct Times {
    queued: Option<Timestamp>,
    synced: Option<Timestamp>,
}

struct Shown {
    mode: &'static str,
    families: Vec<Family>,
    times: Arc<Mutex<Times>>,
}

impl Answers {
    /// Opens `127.0.0.1:10249`; port 10256 follows as soon as nobody else has it.
    pub(super) fn start(netns: &Netns, mode: &'static str, families: &[Family]) -> Self {
        let times = Arc::<Mutex<Times>>::default();
        let shown = Arc::new(Shown {
            mode,
            families: families.to_vec(),
            times: Arc::clone(&times),
        });
        let (ready, open) = mpsc::channel();
        let thread = RuntimeThread::start(Some(netns), move |stopped| async move {
            let metrics = Router::new()
                .route("/proxyMode", get(proxy_mode))
                .route("/healthz", get(async || "ok"))
                .route("/metrics", get(self::metrics))
                .with_state(Arc::clone(&shown));
            let healthz = Router::new()
                .route("/healthz", get(self::healthz))
                .route("/livez", get(self::healthz))
                .with_state(shown);
            tokio::spawn(async move {
                let listener = listen(HEALTHZ).await;
                axum::serve(listener, healthz).await
            });
            let listener = listen(METRICS).await;
            // The starter waits for this; it cannot have gone.
            let _ = ready.send(());
            tokio::select! {
                served = async { axum::serve(listener, metrics).await } => served.expect("kube-proxy answers"),
                _ = stopped => {}
            }
        });
        open.recv_timeout(LIMIT)
            .unwrap_or_else(|_| panic!("{METRICS} can't be opened: who has it?"));
        Self { times, _thread: thread }
    }

    /// Something is to be written.
    pub(super) fn queued(&self) {
        lock(&self.times).queued = Some(now());
    }

    /// It is written.
    pub(super) fn synced(&self) {
        lock(&self.times).synced = Some(now());
    }
}

fn lock(times: &Mutex<Times>) -> MutexGuard<'_, Times> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(
    clippy::disallowed_methods,
    reason = "kube-proxy tells the time of the machine's clock, and plays no part in what is tested"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

/// Takes the port as soon as it is free; the last one who had it may be ending just now.
async fn listen(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(_) => wait::pause().await,
        }
    }
}

async fn proxy_mode(State(shown): State<Arc<Shown>>) -> &'static str {
    shown.mode
}

async fn healthz(State(shown): State<Arc<Shown>>) -> Json<Value> {
    let synced = lock(&shown.times).synced.unwrap_or_default();
    Json(json!({"lastUpdated": synced.to_string(), "currentTime": now().to_string(), "nodeEligible": true}))
}

/// Two of kube-proxy's metrics, in seconds since 1970; 0 is never.
async fn metrics(State(shown): State<Arc<Shown>>) -> String {
    let times = lock(&shown.times);
    let mut text = String::new();
    for (name, help, time) in [
        (
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "The last time a sync of proxy rules was queued",
            times.queued,
        ),
        (
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "The last time proxy rules were successfully synced",
            times.synced,
        ),
    ] {
        let seconds = time.unwrap_or_default().as_duration().as_secs_f64();
        let _ = writeln!(text, "# HELP {name} [ALPHA] {help}\n# TYPE {name} gauge");
        for family in &shown.families {
            let family = match family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            };
            let _ = writeln!(text, "{name}{{ip_family=\"{family}\"}} {seconds:e}");
        }
    }
    text
}
