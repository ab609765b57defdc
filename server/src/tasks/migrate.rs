//! Brings the database up to date, once it can be reached.

use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::{Connection, PgConnection};
use tokio::sync::watch;

use crate::app::App;
use crate::store::{MIGRATIONS, Ready};
use crate::telemetry::chain;

const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Tries until the migrations have run. sqlx holds an advisory lock meanwhile, so that servers take turns.
pub(super) async fn run(app: App, ready: watch::Sender<Ready>) {
    let mut pause = Duration::from_secs(1);
    loop {
        let tried = tokio::select! {
            tried = migrate(&app) => tried,
            () = app.stopped() => return,
        };
        match tried {
            Ok(()) => {
                tracing::info!("the database at {} is up to date", app.store.place());
                ready.send_replace(Ready::Yes);
                return;
            }
            Err(why) => {
                let seconds = pause.as_secs();
                let (what, source) = match &why {
                    Failed::Connect(source) => ("can't reach Postgres at", chain(source)),
                    Failed::Migrate(source) => ("can't migrate the database at", chain(source)),
                };
                let place = app.store.place();
                tracing::warn!("{what} {place}: {source}; trying again in {seconds} s");
                ready.send_replace(Ready::No(format!("{what} {place}; the log says why")));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = app.stopped() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Failed {
    Connect(sqlx::Error),
    Migrate(MigrateError),
}

/// On a connection of its own: the pool would hide why it can't connect behind a time-out.
async fn migrate(app: &App) -> Result<(), Failed> {
    let options = app.store.pool().connect_options();
    let mut connection = PgConnection::connect_with(&options).await.map_err(Failed::Connect)?;
    MIGRATIONS
        .run_direct(None, &mut connection, false)
        .await
        .map_err(Failed::Migrate)?;
    // The work is done, however the connection ends.
    let _ = connection.close().await;
    Ok(())
}
