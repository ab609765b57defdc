//! Moves rollouts on: reads a snapshot, lets the domain decide, applies what it decided.

use std::time::Instant;

use nftfleet_domain::ids::RolloutId;
use nftfleet_domain::rollout::tick;
use tokio::time::MissedTickBehavior;

use super::lease::Lease;
use super::store_is_ready;
use crate::app::App;
use crate::store::{Applied, StoreError};
use crate::telemetry::chain;

/// A tick without commands ends a run; each one with commands brings something closer to its end. This many mean that two
/// servers fight or that the domain never comes to rest: the rest can wait for the timer.
const MOST_ROUNDS: u32 = 100;

/// Looks at rollouts until the service stops: at all of them on the timer, at single ones when nudged.
pub(super) async fn run(app: App) {
    if !store_is_ready(&app).await {
        return;
    }
    let lease = Lease::new(&app, "rollout_tick");
    let mut timer = tokio::time::interval(app.tick_every);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        let failed = tokio::select! {
            () = app.stopped() => return,
            _ = timer.tick() => nudge_all(&app, &lease).await,
            rollouts = app.nudges.take() => {
                let mut failed = Ok(());
                for rollout in rollouts {
                    failed = failed.and(run_once(&app, rollout).await);
                }
                failed
            }
        };
        match &failed {
            // Once, and not again every second while the database is away.
            Err(error) if !failing => tracing::error!("can't look at rollouts: {}", chain(error)),
            _ => {}
        }
        failing = failed.is_err();
    }
}

async fn nudge_all(app: &App, lease: &Lease) -> Result<(), StoreError> {
    let leading = lease.hold(app, app.tick_every).await?;
    app.nudges.lead(leading);
    if leading {
        app.nudges.add(app.store.rollouts_to_tick().await?);
    }
    Ok(())
}

/// Moves one rollout on until there is nothing more to do now. The timer, a nudge and an operator's action all call this.
pub async fn run_once(app: &App, rollout: RolloutId) -> Result<(), StoreError> {
    for _ in 0..MOST_ROUNDS {
        let begun = Instant::now();
        let done = round(app, rollout).await;
        let took = begun.elapsed();
        match done {
            Ok(Round::Rest) => {
                app.metrics.tick("applied", 0, took);
                return Ok(());
            }
            Ok(Round::Applied(commands)) => {
                app.metrics.tick("applied", commands, took);
                tracing::info!(%rollout, commands, "moved on");
            }
            Ok(Round::Stale) => app.metrics.tick("stale", 0, took),
            Err(error) => {
                app.metrics.tick("failed", 0, took);
                return Err(error);
            }
        }
    }
    tracing::warn!(%rollout, "does not come to rest; going on with the timer");
    Ok(())
}

enum Round {
    Rest,
    Applied(usize),
    Stale,
}

async fn round(app: &App, rollout: RolloutId) -> Result<Round, StoreError> {
    let now = app.clock.now();
    let Some(read) = app.store.snapshot(rollout, &app.policy, now).await? else {
        return Ok(Round::Rest);
    };
    let tick = tick(&read.snapshot, now);
    Ok(match app.store.apply(&read, &tick, now).await? {
        Applied::Stale => Round::Stale,
        Applied::Yes if tick.commands.is_empty() => Round::Rest,
        Applied::Yes => Round::Applied(tick.commands.len()),
    })
}
