//! UDP clients that keep their source port, as resolvers and log shippers do: connection tracking sends each where it was sent
//! first, so the agent has to cut it off when that endpoint goes, and only then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nftfleet_domain::service::{Protocol, Vip};
use rand::Rng as _;
use rand::rngs::StdRng;

use crate::ask;
use crate::clients::Shared;
use crate::judge::Outcome;
use crate::world::{Asker, Server};

/// How many flows each asker keeps up.
pub const AT_ONCE: u16 = 12;

/// The source ports of flows: each flow takes the next of its own.
const FIRST_PORT: u16 = 10_000;
const PORTS_OF_ONE: u16 = 1_000;

/// The pause between two questions: connection tracking does not forget the flow in it.
const BEAT: Duration = Duration::from_millis(30);

/// How long a question waits.
const PATIENCE: Duration = Duration::from_millis(500);

/// After how many questions a flow ends although all is well: half a minute, longer than the checks wait for one to be cut off.
const LENGTH: usize = 1_000;

/// How far behind the table the cutting off of flows may be.
const LAG: Duration = Duration::from_secs(2);

/// How many failures are told in full.
const TOLD: usize = 10;

/// What became of all flows.
#[derive(Debug, Default)]
pub struct Talks {
    /// Flows that were begun.
    pub flows: u64,
    /// Questions that were answered.
    pub answers: u64,
    /// Flows that went on with another server, whose first one had gone.
    pub moved: u64,
    /// Flows that were moved or lost though their server was serving all the time.
    pub failures: Vec<String>,
}

impl Talks {
    /// Prints the totals.
    pub fn print(&self) {
        println!(
            "{} flows of UDP with {} answers; {} moved on to another server; {} cut for no reason",
            self.flows,
            self.answers,
            self.moved,
            self.failures.len(),
        );
    }
}

/// Keeps one flow up, and begins another when it ends.
pub async fn talk(asker: Asker, number: u16, shared: Shared, stop: Arc<AtomicBool>, mut random: StdRng) {
    let ports = (0..PORTS_OF_ONE)
        .map(|port| FIRST_PORT + number * PORTS_OF_ONE + port)
        .cycle();
    for port in ports {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let vip = shared.timeline().any_vip(&mut random);
        if let Some(vip) = vip.filter(|vip| vip.protocol == Protocol::Udp) {
            shared.talks().flows += 1;
            flow(asker, vip, port, &shared, &stop).await;
        }
        tokio::time::sleep(BEAT.mul_f64(random.random_range(0.5..1.5))).await;
    }
}

/// The last answer of a flow.
struct Last {
    server: Server,
    at: Instant,
}

async fn flow(asker: Asker, vip: Vip, port: u16, shared: &Shared, stop: &AtomicBool) {
    // The kernel refuses at once where it knows already that there is nobody.
    let Ok(socket) = ask::flow(vip, port).await else {
        return;
    };
    let mut last = None;
    for _ in 0..LENGTH {
        let outcome = ask::within(PATIENCE, ask::question(&socket)).await;
        let now = Instant::now();
        if let Some(last) = &last {
            check(asker, vip, last, now, &outcome, shared);
        }
        let Outcome::Answered(identity) = &outcome else {
            return;
        };
        shared.talks().answers += 1;
        let Some(server) = Server::known_by(identity) else {
            return;
        };
        last = Some(Last { server, at: now });
        if stop.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(BEAT).await;
    }
}

/// A flow whose server has been serving all the time goes on with it.
fn check(asker: Asker, vip: Vip, last: &Last, now: Instant, outcome: &Outcome, shared: &Shared) {
    let same = *outcome == Outcome::Answered(last.server.identity());
    // Connection tracking forgets a flow that has been silent for two seconds: then the machine was in the way.
    if same || now.duration_since(last.at) > LAG {
        return;
    }
    let timeline = shared.timeline();
    let from = last.at.checked_sub(LAG).unwrap_or(last.at);
    let possible = timeline.between(vip, from, now);
    let mut talks = shared.talks();
    if possible.iter().all(|means| means.serving.contains(last.server)) {
        if talks.failures.len() < TOLD {
            let story = timeline.story(vip, last.at, now, asker);
            let server = last.server.identity();
            talks
                .failures
                .push(format!("{asker:?} talked to {server} and got {outcome:?} from {story}"));
        }
    } else {
        talks.moved += 1;
    }
}
