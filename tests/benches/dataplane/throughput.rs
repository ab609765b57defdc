//! What an established flow costs: a TCP stream through each subject.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::plan::Traffic;
use crate::sample::Sample;
use crate::subjects::{Server, Subject, Subjects};

/// How much is written or read at once.
const CHUNK: usize = 256 << 10;

/// A stream through one subject.
pub struct Throughput {
    /// The subject's name.
    pub subject: String,
    /// Bytes a second as the server counts them, one value a stream.
    pub rate: Sample,
}

/// Sends streams to each subject's last Service, in turns.
pub fn measure(traffic: &Traffic, subjects: &Subjects) -> Vec<Throughput> {
    let empty = |subject: &Subject| Throughput {
        subject: subject.name.clone(),
        rate: Sample::default(),
    };
    let mut all: Vec<_> = subjects.all.iter().map(empty).collect();
    for round in 0..traffic.stream_rounds {
        eprintln!("established flows: round {} of {}", round + 1, traffic.stream_rounds);
        for (subject, throughput) in subjects.all.iter().zip(&mut all) {
            throughput.rate.push(stream(subject, &subjects.server, traffic.stream));
        }
    }
    all
}

/// Bytes a second.
fn stream(subject: &Subject, server: &Server, duration: Duration) -> f64 {
    let (_, target) = subject.targets.last().expect("a subject with a target");
    let connect = || TcpStream::connect(target).unwrap_or_else(|error| panic!("{target} can't be reached: {error}"));
    let mut client = subject.client.run(connect);
    let mut peer = loop {
        // The client may be there a moment before its connection is.
        if let Some(peer) = server.next() {
            break peer;
        }
    };
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut buffer = vec![0; CHUNK];
            let (started, mut bytes) = (Instant::now(), 0_u32);
            let mut kib = 0.0;
            loop {
                match peer.read(&mut buffer).expect("a stream that nobody resets") {
                    0 => return kib * 1024.0 / started.elapsed().as_secs_f64(),
                    count => bytes += u32::try_from(count).expect("a chunk"),
                }
                kib += f64::from(bytes >> 10);
                bytes &= 1023;
            }
        });
        let chunk = vec![0; CHUNK];
        let started = Instant::now();
        while started.elapsed() < duration {
            client.write_all(&chunk).expect("a stream that nobody resets");
        }
        client.shutdown(Shutdown::Write).expect("an open stream can be closed");
        reader.join().expect("the reader's own panic")
    })
}
