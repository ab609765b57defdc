//! Long connections, of both kinds: the client asks all the time, or only the server speaks.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use nftfleet_tests::lab::LabBackend;
use nftfleet_tests::netns::Netns;
use nftfleet_tests::wait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{interval, timeout};

use crate::world::{ECHO, PUSH};

/// The pause between two beats of a connection.
const BEAT: Duration = Duration::from_millis(50);

/// How long nothing may be heard. TCP repeats what was lost several times in this.
const SILENCE: Duration = Duration::from_secs(15);

/// How long some beats of every connection may take.
const BEATS_WITHIN: Duration = Duration::from_mins(1);

/// A thread with a runtime in a namespace, which ends with this.
#[derive(Debug)]
struct Inside {
    _stop: oneshot::Sender<()>,
}

impl Inside {
    fn start<F: Future<Output = ()>>(netns: &Netns, work: impl FnOnce() -> F + Send + 'static) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        netns.spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = work() => {}
                }
            });
        });
        Self { _stop: stop }
    }
}

/// Servers that speak as soon as somebody connects.
pub struct Pushing {
    _inside: Vec<Inside>,
}

impl Pushing {
    pub fn start(backends: &[LabBackend]) -> Self {
        let start = |backend: &LabBackend| {
            let (ready, listening) = mpsc::channel();
            let inside = Inside::start(&backend.netns, move || push(ready));
            listening.recv().expect("it listens");
            inside
        };
        Self {
            _inside: backends.iter().map(start).collect(),
        }
    }
}

async fn push(ready: mpsc::Sender<()>) {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PUSH)).await.expect("a port");
    ready.send(()).expect("the starter waits");
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            continue;
        };
        tokio::spawn(async move {
            let mut beats = interval(BEAT);
            for counter in 0_u64.. {
                beats.tick().await;
                if stream.write_u64(counter).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// How a connection is doing.
#[derive(Clone, Debug)]
pub struct Talk {
    pub target: SocketAddr,
    pub own: SocketAddr,
    pub beats: u64,
    pub died_of: Option<String>,
}

/// Connections from one namespace, which are closed with this.
#[derive(Debug)]
pub struct Talks {
    talks: Arc<Mutex<Vec<Talk>>>,
    _inside: Inside,
}

impl Talks {
    /// Opens so many connections to each target, one after the other.
    pub fn open(netns: &Netns, targets: &[SocketAddr], each: usize) -> Self {
        let talks = Arc::new(Mutex::new(Vec::new()));
        let (noted, targets) = (Arc::clone(&talks), targets.to_vec());
        let (opened, opening) = mpsc::channel();
        let inside = Inside::start(netns, move || async move {
            let all = (0..each).flat_map(|_| targets.iter().copied());
            for (number, target) in all.enumerate() {
                let stream = timeout(SILENCE, TcpStream::connect(target)).await;
                let stream = stream.unwrap_or_else(|_| panic!("{target} does not answer"));
                let stream = stream.unwrap_or_else(|error| panic!("{target}: {error}"));
                lock(&noted).push(Talk {
                    target,
                    own: stream.local_addr().expect("an address"),
                    beats: 0,
                    died_of: None,
                });
                let noted = Arc::clone(&noted);
                tokio::spawn(async move {
                    let died_of = talk(stream, target.port(), number, &noted).await;
                    lock(&noted)[number].died_of = Some(died_of.to_string());
                });
            }
            opened.send(()).expect("the opener waits");
            std::future::pending::<()>().await;
        });
        opening.recv().expect("all were opened, see above");
        let talks = Self { talks, _inside: inside };
        talks.beat_on("after the opening");
        talks
    }

    pub fn all(&self) -> Vec<Talk> {
        lock(&self.talks).clone()
    }

    /// Every connection is alive, and goes on being so for some beats.
    pub fn beat_on(&self, when: &str) {
        let before = self.all();
        wait::until_blocking(&format!("ten beats {when}"), BEATS_WITHIN, || {
            let now = self.all();
            if let Some(dead) = now.iter().find(|talk| talk.died_of.is_some()) {
                let count = now.iter().filter(|talk| talk.died_of.is_some()).count();
                panic!("{when}: {count} of {} died, for example {dead:?}", now.len());
            }
            let is_on = before
                .iter()
                .zip(&now)
                .all(|(before, now)| now.beats >= before.beats + 10);
            is_on.then_some(())
        });
    }
}

/// Talks until the connection dies; why it did.
async fn talk(mut stream: TcpStream, port: u16, number: usize, noted: &Mutex<Vec<Talk>>) -> io::Error {
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let asks = [80, 30080, ECHO].contains(&port);
    // Until the newline that ends the server's name.
    let mut byte = 0;
    while asks && byte != b'\n' {
        byte = match timeout(SILENCE, stream.read_u8()).await {
            Ok(Ok(byte)) => byte,
            Ok(Err(error)) => return error,
            Err(_) => return late(),
        };
    }
    let mut beats = interval(BEAT);
    for counter in 0_u64.. {
        if asks {
            beats.tick().await;
            if let Err(error) = stream.write_u64(counter).await {
                return error;
            }
        }
        match timeout(SILENCE, stream.read_u64()).await {
            Ok(Ok(heard)) if heard == counter => lock(noted)[number].beats += 1,
            Ok(Ok(heard)) => return io::Error::other(format!("{heard} instead of {counter}")),
            Ok(Err(error)) => return error,
            Err(_) => return late(),
        }
    }
    io::Error::other("the counter ran out")
}

fn lock(talks: &Mutex<Vec<Talk>>) -> std::sync::MutexGuard<'_, Vec<Talk>> {
    talks.lock().unwrap_or_else(PoisonError::into_inner)
}
