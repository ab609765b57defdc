//! Everything changes all the time, and clients of every kind connect all the time: none is ever answered by the wrong server
//! or left alone.
//!
//! `MINUTES` says for how long, one if it is not set. Changes are drawn by lot: `SEED` repeats those of a run that printed it.

mod ask;
mod checks;
mod churn;
mod clients;
mod cluster;
mod judge;
mod node;
mod oracle;
mod talks;
mod timeline;
mod world;

use std::env;
use std::time::{Duration, Instant};

use crate::checks::check;
use crate::churn::Churn;
use crate::clients::{Clients, Shared};
use crate::world::World;

/// Bursts of changes between two checks.
const BURSTS: u32 = 50;

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn no_connection_is_lost_or_answered_by_the_wrong_server() {
    let duration = Duration::from_secs_f64(60.0 * variable("MINUTES").unwrap_or(1.0));
    let seed = variable("SEED").unwrap_or_else(rand::random);
    println!("SEED={seed}, for {duration:?}");
    let world = World::new();
    let shared = Shared::default();
    let mut churn = Churn::new(&world, shared.clone(), seed);
    let clients = Clients::start(&world, &shared, seed);
    let started = Instant::now();
    let mut checks = 0;
    while started.elapsed() < duration {
        for _ in 0..BURSTS {
            churn.burst();
        }
        check(&world, &churn, &shared);
        checks += 1;
    }
    clients.stop();
    check(&world, &churn, &shared);

    for (kind, count) in &churn.changes {
        println!("  {count} {kind}");
    }
    let late = churn.lateness;
    println!(
        "{} changes in {} updates and {} commits, {checks} checks; a burst took {:?}, at worst {:?}",
        churn.total(),
        churn.updates,
        churn.node().commits(),
        late.total / late.bursts,
        late.worst,
    );
    let (record, talks) = (shared.record(), shared.talks());
    record.print();
    talks.print();
    println!("{} foreign edits heard of", churn.node().foreign_edits());
    assert!(
        record.failures.is_empty(),
        "{}\n{}",
        record.failures.join("\n"),
        checks::symptoms(&world)
    );
    assert!(talks.failures.is_empty(), "{}", talks.failures.join("\n"));
    assert_eq!(churn.node().foreign_edits(), 0);
}
