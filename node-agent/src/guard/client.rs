//! How a guard is asked, and started if nobody listens. Blocking, with a time limit on everything.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt::PeerCredentials,
};

use super::protocol::{self, LONGEST_LINE, Refusal, Reply, Request, State};

/// How long a guard may take to answer, with the time that it takes to start one. Both take milliseconds.
const WITHIN: Duration = Duration::from_secs(5);

/// Between two looks whether one that was started listens.
const ROUND: Duration = Duration::from_millis(10);

/// Why it is not known that the guard has done what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// It does not do it.
    #[error("the guard refused: {0}")]
    Refused(Refusal),
    /// It took too long.
    #[error("the guard did not answer within {} s", WITHIN.as_secs())]
    Silent,
    /// Somebody else listens in its place.
    #[error("a process of user {uid} listens in the guard's place")]
    Stranger {
        /// Whose process it is.
        uid: u32,
    },
    /// It can't be spoken to.
    #[error("the guard: {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// What it answered makes no sense.
    #[error("the guard's answer makes no sense: {0}")]
    Unread(#[source] serde_json::Error),
    /// None could be started.
    #[error("no guard could be started: {0}")]
    NotStarted(#[source] io::Error),
    /// The one that was started has ended.
    #[error("the guard that was started has ended: {0}")]
    Ended(std::process::ExitStatus),
    /// Asking it panicked.
    #[error("asking the guard panicked: {0}")]
    Panicked(#[source] tokio::task::JoinError),
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> GuardError {
    move |source| match source.kind() {
        // A socket's time limit says the one or the other.
        ErrorKind::WouldBlock | ErrorKind::TimedOut => GuardError::Silent,
        _ => GuardError::Io { what, source },
    }
}

/// How the guard of the calling thread's network namespace is asked.
#[derive(Clone, Debug)]
pub struct Client {
    /// The agent's program, which is a guard's too.
    program: PathBuf,
}

impl Client {
    /// Starts a guard from this program if nobody listens.
    pub const fn new(program: PathBuf) -> Self {
        Self { program }
    }

    /// Arms the guard, or sees that it is armed; starts one if nobody listens.
    ///
    /// # Errors
    /// See [`GuardError`].
    pub fn arm(&self, attempt: &str, left: Duration) -> Result<(), GuardError> {
        let begun = Instant::now();
        let mut started = None;
        let done = loop {
            let left = left.saturating_sub(begun.elapsed());
            let request = Request::Arm {
                id: attempt.to_owned(),
                left_ms: left.as_millis().try_into().unwrap_or(u64::MAX),
            };
            match ask(&request, begun) {
                Ok(Some(reply)) => break done(reply).map(drop),
                Ok(None) => {}
                Err(error) => break Err(error),
            }
            if begun.elapsed() >= WITHIN {
                break Err(GuardError::Silent);
            }
            if let Err(error) = self.see_started(&mut started) {
                break Err(error);
            }
            std::thread::sleep(ROUND);
        };
        if let Some(guard) = started {
            reap(guard);
        }
        done
    }

    /// Disarms the guard; where nobody listens none is armed.
    ///
    /// # Errors
    /// See [`GuardError`].
    pub fn disarm(&self, attempt: &str) -> Result<(), GuardError> {
        let request = Request::Disarm { id: attempt.to_owned() };
        ask(&request, Instant::now())?.map_or(Ok(()), |reply| done(reply).map(drop))
    }

    /// The guard's state; none if nobody listens.
    ///
    /// # Errors
    /// See [`GuardError`].
    pub fn query(&self) -> Result<Option<State>, GuardError> {
        ask(&Request::Query, Instant::now())?.map(done).transpose()
    }

    /// Starts a guard, unless one was started and has not failed.
    fn see_started(&self, started: &mut Option<Child>) -> Result<(), GuardError> {
        let Some(guard) = started else {
            tracing::info!("no guard listens; starting one");
            *started = Some(self.start().map_err(GuardError::NotStarted)?);
            return Ok(());
        };
        match guard.try_wait().map_err(GuardError::NotStarted)? {
            Some(status) if !status.success() => Err(GuardError::Ended(status)),
            // One that has found another listening ends with success.
            Some(_) | None => Ok(()),
        }
    }

    /// The guard makes itself independent of us. What it logs goes where our own log goes.
    fn start(&self) -> io::Result<Child> {
        Command::new(&self.program)
            .args(["guard", "--spawned"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
    }
}

/// Waits for the end of a guard that we have started, so that nothing of it stays in the list of processes.
fn reap(mut guard: Child) {
    let waiting = std::thread::Builder::new().name("guard".to_owned());
    let waiting = waiting.spawn(move || match guard.wait() {
        Ok(status) => tracing::info!(%status, "the guard that was started has ended"),
        Err(error) => tracing::warn!(%error, "the guard that was started can't be waited for"),
    });
    if let Err(error) = waiting {
        tracing::warn!(%error, "nobody waits for the guard that was started");
    }
}

fn done(reply: Reply) -> Result<State, GuardError> {
    reply
        .refused
        .map_or(Ok(reply.state), |refusal| Err(GuardError::Refused(refusal)))
}

/// Asks once; none if nobody listens, or the guard has ended meanwhile.
fn ask(request: &Request, begun: Instant) -> Result<Option<Reply>, GuardError> {
    let Some(mut guard) = connected()? else {
        return Ok(None);
    };
    let line = protocol::line(request).map_err(io_error("write the request"))?;
    let left = || match WITHIN.saturating_sub(begun.elapsed()) {
        Duration::ZERO => Err(GuardError::Silent),
        left => Ok(Some(left)),
    };
    let limited = guard
        .set_write_timeout(left()?)
        .and_then(|()| guard.set_nonblocking(false));
    limited.map_err(io_error("set the time limit"))?;
    let mut answer = Vec::new();
    let mut buffer = [0; LONGEST_LINE];
    let mut said = guard.write_all(&line);
    while said.is_ok() && !answer.ends_with(b"\n") {
        guard
            .set_read_timeout(left()?)
            .map_err(io_error("set the time limit"))?;
        said = match guard.read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                answer.extend(&buffer[..length]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        };
    }
    match said {
        Ok(()) => serde_json::from_slice(&answer).map(Some).map_err(GuardError::Unread),
        // It ended just now, as one does that has nothing to guard.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(io_error("ask")(error)),
    }
}

/// A conversation with the guard; none if nobody listens. An abstract name can be taken by anybody, so it is seen to that root
/// listens.
fn connected() -> Result<Option<UnixStream>, GuardError> {
    // Without waiting: a guard that hangs lets nobody in once enough have knocked.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| io_error("open a socket")(errno.into()))?;
    let address = UnixAddr::new_abstract(protocol::NAME).map_err(|errno| io_error("name the socket")(errno.into()))?;
    match connect(fd.as_raw_fd(), &address) {
        Ok(()) => {}
        Err(Errno::ECONNREFUSED) => return Ok(None),
        Err(errno) => return Err(io_error("connect")(errno.into())),
    }
    let uid = getsockopt(&fd, PeerCredentials)
        .map_err(|errno| io_error("ask who listens")(errno.into()))?
        .uid();
    if uid != 0 {
        return Err(GuardError::Stranger { uid });
    }
    Ok(Some(UnixStream::from(fd)))
}
