//! Everything wired together, started and stopped.

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nftfleet_domain::readiness::Policy;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::app::App;
use crate::clock::{Clock, Ids};
use crate::config::{Config, Database};
use crate::embedded::{Embedded, EmbeddedError};
use crate::store::{Ready, Store};
use crate::telemetry::Metrics;
use crate::{api, tasks};

/// How long requests that are being answered may take after the service was told to stop.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// Connections to Postgres. Queries are short: a few per core are enough, and Postgres allows 100 by default, which three
/// servers must share.
const CONNECTIONS: u32 = 20;

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or not of this machine.
    #[error("can't listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The private Postgres can't run.
    #[error("can't run a private Postgres")]
    Embedded(#[from] EmbeddedError),
    /// `DATABASE_URL` is not one.
    #[error("DATABASE_URL is not a PostgreSQL URL")]
    Url(#[source] sqlx::Error),
}

/// A running service.
pub struct Service {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
    background: Vec<JoinHandle<()>>,
    /// What its handlers and tasks work with.
    pub(crate) app: App,
    embedded: Option<Embedded>,
}

impl Service {
    /// Starts listening, the database if it is a private one, and the background tasks. It answers 503 until the database
    /// answers and is migrated.
    pub async fn start(config: Config, clock: Arc<dyn Clock>, ids: Arc<dyn Ids>) -> Result<Self, StartError> {
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.map_err(|source| StartError::Listen {
            address: config.listen,
            source,
        })?;
        let address = listener.local_addr().unwrap_or(config.listen);
        if config.operator_token.is_none() {
            tracing::warn!("there is no operator token: everyone on this machine can steer the fleet");
        }
        let (options, embedded) = match &config.database {
            Database::Url(url) => (url.parse::<PgConnectOptions>().map_err(StartError::Url)?, None),
            Database::Embedded(folder) => {
                let embedded = Embedded::start(folder).await?;
                (embedded.options(), Some(embedded))
            }
        };
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with(options);
        let (ready_sender, ready) = watch::channel(Ready::default());
        let (stop, stopping) = watch::channel(false);
        let app = App {
            store: Store::new(pool),
            clock,
            ids,
            policy: Arc::new(Policy::default()),
            operator_token: config.operator_token,
            tick_every: config.tick_every,
            nudges: Arc::default(),
            waiters: Arc::default(),
            metrics: Arc::new(Metrics::new()),
            ready,
            stopping,
        };
        let background = tasks::spawn(&app, ready_sender);
        let serving = tokio::spawn(serve(listener, app.clone()));
        tracing::info!(%address, "listening");
        Ok(Self {
            address,
            stop,
            serving,
            background,
            app,
            embedded,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, answers what waits, ends the background tasks and stops the private Postgres.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(DRAIN_WITHIN, self.serving).await.is_err() {
            tracing::warn!("some requests did not end in time");
        }
        for task in self.background {
            task.abort();
            // Aborted or ended: both are what is wanted.
            let _ = task.await;
        }
        self.app.store.close().await;
        if let Some(embedded) = self.embedded {
            embedded.stop().await;
        }
        tracing::info!("stopped");
    }
}

async fn serve(listener: TcpListener, app: App) {
    let stopped = {
        let app = app.clone();
        async move { app.stopped().await }
    };
    let server = axum::serve(listener, api::router(app)).with_graceful_shutdown(stopped);
    if let Err(error) = server.into_future().await {
        tracing::error!(%error, "can't serve any more");
    }
}
