//! Hears what changed from Postgres, and wakes who waits for it.
//!
//! Notifications are hints: those that are lost cost time only. The tick has its timer, and long-polls look for themselves
//! while there is no connection.

use std::time::Duration;

use nftfleet_domain::ids::{NodeId, RolloutId};
use sqlx::postgres::{PgListener, PgNotification};

use super::store_is_ready;
use crate::app::App;

const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Listens until the service stops.
pub(super) async fn run(app: App) {
    if !store_is_ready(&app).await {
        return;
    }
    loop {
        tokio::select! {
            ended = listen(&app) => {
                app.waiters.set_listening(false);
                if let Err(error) = ended {
                    tracing::warn!(%error, "can't hear of changes; long-polls look for themselves meanwhile");
                }
            }
            () = app.stopped() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(TRY_AGAIN_AFTER) => {}
            () = app.stopped() => return,
        }
    }
}

/// Listens until the connection is lost.
async fn listen(app: &App) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(app.store.pool()).await?;
    listener.eager_reconnect(false);
    listener.listen_all(["nftfleet_assignment", "nftfleet_rollout"]).await?;
    app.waiters.set_listening(true);
    while let Some(notification) = listener.try_recv().await? {
        hear(app, &notification);
    }
    Ok(())
}

fn hear(app: &App, notification: &PgNotification) {
    let Ok(id) = notification.payload().parse() else {
        tracing::warn!(payload = notification.payload(), "a notification is not an identity");
        return;
    };
    if notification.channel() == "nftfleet_assignment" {
        app.waiters.wake(NodeId(id));
    } else {
        app.nudges.heard(RolloutId(id));
    }
}
