//! What the first packet of a connection costs: how long a TCP connect takes.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

use crate::plan::Traffic;
use crate::sample::Sample;
use crate::subjects::Subjects;

/// A connection that takes longer has lost its SYN three times over.
const LIMIT: Duration = Duration::from_secs(10);

/// After how many rounds a person is told.
const PROGRESS_EVERY: usize = 8;

/// Connects through one subject to one Service.
pub struct Latency {
    /// The subject's name.
    pub subject: String,
    /// `first`, `middle` or `last`; empty where there is no choice.
    pub service: &'static str,
    /// Seconds from the call of `connect` to its return.
    pub connect: Sample,
}

/// Opens connections to each target in turns: what disturbs the machine for a while disturbs all alike.
pub fn measure(traffic: &Traffic, subjects: &Subjects) -> Vec<Latency> {
    let of_subject = |(index, subject): (usize, &crate::subjects::Subject)| {
        let latency = |(service, target): &(&'static str, SocketAddr)| {
            let latency = Latency {
                subject: subject.name.clone(),
                service,
                connect: Sample::default(),
            };
            (index, *target, latency)
        };
        subject.targets.iter().map(latency).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = subjects.all.iter().enumerate().flat_map(of_subject).collect();
    let batch = traffic.connections / traffic.rounds;
    // A thread of its own, whose core stays the same and whose namespace does not.
    thread::scope(|scope| {
        scope.spawn(|| {
            pin();
            for round in 0..traffic.rounds {
                if round % PROGRESS_EVERY == 0 {
                    eprintln!("first packets: round {} of {}", round + 1, traffic.rounds);
                }
                for (index, target, latency) in &mut all {
                    subjects.all[*index].client.enter();
                    // Once for the caches, which the subject before has left cold.
                    connect(*target);
                    for _ in 0..batch {
                        latency.connect.push_time(connect(*target));
                    }
                    subjects.server.drain();
                }
            }
        });
    });
    all.into_iter().map(|(_, _, latency)| latency).collect()
}

/// One connection, reset at once: no port waits for a last packet.
fn connect(target: SocketAddr) -> Duration {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket
        .set_linger(Some(Duration::ZERO))
        .expect("a socket's way to close can be set");
    socket
        .set_write_timeout(Some(LIMIT))
        .expect("a socket's limit can be set");
    let started = Instant::now();
    socket
        .connect(&target.into())
        .unwrap_or_else(|error| panic!("{target} can't be reached: {error}"));
    started.elapsed()
}

/// Keeps this thread on the last core that it may use: the first one has the most interrupts.
fn pin() {
    let own = Pid::from_raw(0);
    let allowed = sched_getaffinity(own).expect("a thread may know its cores");
    let last = (0..CpuSet::count())
        .rev()
        .find(|core| allowed.is_set(*core).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.expect("at least one core")).expect("a core that exists");
    sched_setaffinity(own, &one).expect("a thread may choose among its cores");
}
