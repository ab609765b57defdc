//! A connection that lives through whatever happens to the data plane, and tells how well.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};

use super::ask::within;
use crate::netns::{Netns, RuntimeThread};

/// The pause between two echoes.
const BEAT: Duration = Duration::from_millis(20);
/// How long an answer may take before the connection counts as dead. TCP repeats a lost segment several times in this.
const SILENCE: Duration = Duration::from_secs(5);

/// One TCP connection over which a counter is sent, and its echo checked, every 20 ms.
#[derive(Debug)]
pub struct LongLived {
    status: Arc<Mutex<LongLivedStatus>>,
    thread: RuntimeThread,
}

/// How a long-lived connection is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LongLivedStatus {
    /// False once there was an error, a wrong byte, an end or 5 s of silence. It never comes back to life.
    pub alive: bool,
    /// Echoes that came back right.
    pub echoes: u64,
    /// The longest time in milliseconds between two answers, a little more than 20 when all is well.
    pub worst_gap_ms: u128,
    /// The identity of the backend at the other end.
    pub backend: String,
    /// Why it died.
    pub cause_of_death: Option<String>,
}

impl LongLived {
    /// Connects from inside `netns` and reads the identity line. Panics when that fails: there is no connection to watch.
    pub fn open(netns: &Netns, target: SocketAddr) -> Self {
        let (opened, opening) = mpsc::channel();
        let status = Arc::new(Mutex::new(LongLivedStatus {
            alive: true,
            echoes: 0,
            worst_gap_ms: 0,
            backend: String::new(),
            cause_of_death: None,
        }));
        let noted = Arc::clone(&status);
        let thread = RuntimeThread::start(Some(netns), move |stopped| async move {
            let stream = match within(SILENCE, connect(target)).await {
                Ok((stream, backend)) => {
                    lock(&noted).backend = backend;
                    // The opener waits for this; it cannot have gone.
                    let _ = opened.send(Ok(()));
                    stream
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                    return;
                }
            };
            tokio::select! {
                biased;
                _ = stopped => {}
                error = echo(stream, &noted) => {
                    let mut status = lock(&noted);
                    status.alive = false;
                    status.cause_of_death = Some(error.to_string());
                }
            }
        });
        match opening.recv() {
            Ok(Ok(())) => Self { status, thread },
            Ok(Err(error)) => panic!("no long-lived connection to {target}: {error}"),
            Err(mpsc::RecvError) => panic!("the thread of the long-lived connection to {target} died, see above"),
        }
    }

    /// How it is doing now.
    pub fn status(&self) -> LongLivedStatus {
        lock(&self.status).clone()
    }

    /// Closes the connection; how it did until then.
    pub fn stop(mut self) -> LongLivedStatus {
        self.thread.stop();
        self.status()
    }
}

async fn connect(target: SocketAddr) -> io::Result<(BufStream<TcpStream>, String)> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufStream::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    if line.ends_with('\n') {
        Ok((stream, line.trim_end().to_owned()))
    } else {
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "closed before the identity line",
        ))
    }
}

/// Echoes until the connection dies; why it did.
async fn echo(mut stream: BufStream<TcpStream>, noted: &Mutex<LongLivedStatus>) -> io::Error {
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_answer = Instant::now();
    for counter in 0_u64.. {
        beats.tick().await;
        if let Err(error) = within(SILENCE, round_trip(&mut stream, counter)).await {
            return error;
        }
        let gap = last_answer.elapsed().as_millis();
        last_answer = Instant::now();
        let mut status = lock(noted);
        status.echoes += 1;
        status.worst_gap_ms = status.worst_gap_ms.max(gap);
    }
    io::Error::other("the counter ran out")
}

async fn round_trip(stream: &mut BufStream<TcpStream>, counter: u64) -> io::Result<()> {
    stream.write_u64(counter).await?;
    stream.flush().await?;
    let answer = stream.read_u64().await?;
    if answer == counter {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("sent {counter}, got {answer} back"),
        ))
    }
}

fn lock(status: &Mutex<LongLivedStatus>) -> std::sync::MutexGuard<'_, LongLivedStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}
