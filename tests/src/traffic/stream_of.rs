//! Streams of attempts at a steady rate, several under way at a time.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::ask::{ask_tcp, ask_udp, within};
use super::counts::Counts;
use crate::netns::{Netns, RuntimeThread};

/// How long a TCP attempt may take: a lost SYN is repeated after one second, so this tells slow from lost.
const TCP_LIMIT: Duration = Duration::from_secs(3);
/// How long a UDP query waits; nothing repeats it.
const UDP_LIMIT: Duration = Duration::from_secs(1);
/// Attempts under way at once, at most. Beyond it the stream slows down, rather than run out of sockets when nobody answers.
const IN_FLIGHT: usize = 2_000;

/// TCP connections opened without pause: connect, read the identity line, reset; 3 s for all of it.
#[derive(Debug)]
pub struct NewConnections(Stream);

impl NewConnections {
    /// Starts to connect from inside `netns`, to the targets in turn, about `rate` times a second in all.
    pub fn start(netns: &Netns, targets: Vec<SocketAddr>, rate: u32) -> Self {
        Self(Stream::start(netns, targets, rate, TCP_LIMIT, ask_tcp))
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.0.counts()
    }

    /// Opens no more connections, waits for those under way, and returns what happened in all.
    pub fn stop(self) -> Counts {
        self.0.stop()
    }
}

/// UDP queries sent without pause, each from a fresh socket, 1 s for the answer.
#[derive(Debug)]
pub struct UdpQueries(Stream);

impl UdpQueries {
    /// Starts to ask from inside `netns`, the targets in turn, about `rate` times a second in all.
    pub fn start(netns: &Netns, targets: Vec<SocketAddr>, rate: u32) -> Self {
        Self(Stream::start(netns, targets, rate, UDP_LIMIT, ask_udp))
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.0.counts()
    }

    /// Sends no more queries, waits for those under way, and returns what happened in all.
    pub fn stop(self) -> Counts {
        self.0.stop()
    }
}

#[derive(Debug)]
struct Stream {
    counts: Arc<Mutex<Counts>>,
    thread: RuntimeThread,
}

impl Stream {
    fn start<A>(
        netns: &Netns,
        targets: Vec<SocketAddr>,
        rate: u32,
        limit: Duration,
        attempt: impl Fn(SocketAddr) -> A + Send + 'static,
    ) -> Self
    where
        A: Future<Output = io::Result<String>> + Send + 'static,
    {
        assert!(!targets.is_empty(), "traffic needs a target");
        assert!(rate > 0, "traffic needs a rate above zero");
        let counts = Arc::<Mutex<Counts>>::default();
        let noted = Arc::clone(&counts);
        let thread = RuntimeThread::start(Some(netns), move |mut stopped| async move {
            let started = Instant::now();
            let mut under_way = JoinSet::new();
            let mut ticks = interval(Duration::from_secs(1) / rate);
            // The timer is good to a millisecond only; what it is late it makes up for, so that the rate is kept.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut turn = targets.iter().copied().cycle();
            loop {
                tokio::select! {
                    biased;
                    _ = &mut stopped => break,
                    Some(ended) = under_way.join_next() => ended.expect("an attempt that does not panic"),
                    _ = ticks.tick(), if under_way.len() < IN_FLIGHT => {
                        let target = turn.next().expect("an endless turn of targets");
                        let began = started.elapsed();
                        let asking = attempt(target);
                        let noted = Arc::clone(&noted);
                        under_way.spawn(async move {
                            let outcome = within(limit, asking).await;
                            lock(&noted).note(target, began, started.elapsed(), outcome);
                        });
                    }
                }
            }
            while let Some(ended) = under_way.join_next().await {
                ended.expect("an attempt that does not panic");
            }
        });
        Self { counts, thread }
    }

    fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }

    fn stop(mut self) -> Counts {
        self.thread.stop();
        self.counts()
    }
}

fn lock(counts: &Mutex<Counts>) -> std::sync::MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}
