//! Clients that connect all the time: everybody to every VIP, over both protocols and both families.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nftfleet_domain::service::{Protocol, Vip};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::ask::ask;
use crate::judge::{Attempt, Record};
use crate::talks::{self, Talks};
use crate::timeline::Timeline;
use crate::world::{Asker, World};

/// New connections a second of each asker, if the machine can.
const RATE: u32 = 700;

/// How long a client waits: longer than a busy machine stands still. It asks once, so no repetition hides a loss.
const PATIENCE: Duration = Duration::from_secs(4);

/// TCP would repeat a lost SYN after a second, and the loss would be hidden: of every connection the first one gets through and
/// no other.
const ONE_SYN: &str = "
table inet once {
    set syns4 {
        typeof ip daddr . tcp dport . tcp sport
        size 65535
        flags dynamic
        timeout 10s
    }
    set syns6 {
        typeof ip6 daddr . tcp dport . tcp sport
        size 65535
        flags dynamic
        timeout 10s
    }
    chain sent {
        type filter hook output priority -400
        tcp flags & (syn | ack) == syn update @syns4 { ip daddr . tcp dport . tcp sport limit rate over 1/hour burst 1 packets } drop
        tcp flags & (syn | ack) == syn update @syns6 { ip6 daddr . tcp dport . tcp sport limit rate over 1/hour burst 1 packets } drop
    }
}";

/// Attempts under way at once, at most.
const IN_FLIGHT: usize = 1_000;

/// The source ports of new connections. Each is used once in a round through all of them, and a round takes longer than
/// connection tracking remembers a connection that has ended: every attempt is a new connection to the data plane.
const SOURCE_PORTS: std::ops::Range<u16> = 34_000..65_000;

/// Longer than connection tracking remembers in this lab, and than an attempt takes.
const REMEMBERED: Duration = Duration::from_secs(12);

/// What clients, churn and judge share.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    timeline: Arc<Mutex<Timeline>>,
    record: Arc<Mutex<Record>>,
    talks: Arc<Mutex<Talks>>,
}

impl Shared {
    /// The timeline, for a moment.
    pub fn timeline(&self) -> MutexGuard<'_, Timeline> {
        lock(&self.timeline)
    }

    /// The verdicts, for a moment.
    pub fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }

    /// What became of long flows, for a moment.
    pub fn talks(&self) -> MutexGuard<'_, Talks> {
        lock(&self.talks)
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Source ports, in rounds.
struct SourcePorts {
    next: u16,
    round: Instant,
}

impl SourcePorts {
    fn new() -> Self {
        Self {
            next: SOURCE_PORTS.start,
            round: Instant::now(),
        }
    }

    fn next(&mut self) -> u16 {
        let port = self.next;
        self.next += 1;
        if self.next == SOURCE_PORTS.end {
            assert!(self.round.elapsed() > REMEMBERED, "source ports come again too soon");
            *self = Self::new();
        }
        port
    }
}

/// The clients; they stop when they are told to.
pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts to connect.
    pub fn start(world: &World, shared: &Shared, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |asker: Asker| {
            world.asker(asker).pipe("nft", &["-f", "-"], ONE_SYN);
            let (shared, stop) = (shared.clone(), Arc::clone(&stop));
            let random = StdRng::seed_from_u64(seed ^ (asker as u64 + 1));
            world.asker(asker).spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime
                    .expect("a runtime")
                    .block_on(connect(asker, &shared, &stop, random));
            })
        };
        let threads = Asker::ALL.map(start).into();
        Self { stop, threads }
    }

    /// Opens no more connections, and waits for those under way.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    }
}

async fn connect(asker: Asker, shared: &Shared, stop: &Arc<AtomicBool>, mut random: StdRng) {
    let mut under_way = JoinSet::new();
    for number in 0..talks::AT_ONCE {
        let random = StdRng::seed_from_u64(random.random());
        under_way.spawn(talks::talk(asker, number, shared.clone(), Arc::clone(stop), random));
    }
    let mut ports = [SourcePorts::new(), SourcePorts::new()];
    let mut ticks = interval(Duration::from_secs(1) / RATE);
    // The timer is good to a millisecond only; a pause of the machine is not made up for.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let burst = 2;
    while !stop.load(Ordering::Relaxed) {
        while let Some(ended) = under_way.try_join_next() {
            ended.expect("an attempt that does not panic");
        }
        ticks.tick().await;
        for _ in 0..burst {
            let vip = shared.timeline().any_vip(&mut random);
            if let Some(vip) = vip.filter(|_| under_way.len() < IN_FLIGHT) {
                let port = ports[usize::from(vip.protocol == Protocol::Udp)].next();
                under_way.spawn(attempt(asker, vip, port, shared.clone()));
            }
        }
    }
    while let Some(ended) = under_way.join_next().await {
        ended.expect("an attempt that does not panic");
    }
}

async fn attempt(asker: Asker, vip: Vip, port: u16, shared: Shared) {
    let began = Instant::now();
    let outcome = ask(vip, port, PATIENCE).await;
    let ended = Instant::now();
    let attempt = Attempt {
        asker,
        vip,
        began,
        ended,
        outcome,
    };
    let timeline = shared.timeline();
    shared.record().note(&attempt, &timeline);
}
