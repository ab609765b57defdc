//! Who asks a guard, and what: lines from sockets that are never waited for.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};

use super::protocol::{LONGEST_LINE, Refusal, Reply, Request, line};

/// How long somebody who has connected may take to ask.
const WITHIN: Duration = Duration::from_secs(5);

/// How many may be connected. One agent asks one thing at a time.
const MOST: usize = 8;

/// Those who have connected and not asked yet.
#[derive(Debug)]
pub struct Conversations {
    listener: UnixListener,
    open: Vec<Conversation>,
}

#[derive(Debug)]
struct Conversation {
    stream: UnixStream,
    line: Vec<u8>,
    begun: Duration,
}

impl Conversations {
    /// Listens on this socket from now on.
    ///
    /// # Errors
    /// It can't be told not to wait.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let open = Vec::new();
        Ok(Self { listener, open })
    }

    /// What to wait for: these can be read from when there is something to do.
    pub fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        // With all places taken nobody else is let in, and waiting for them would be no waiting.
        let listener = (self.open.len() < MOST).then(|| self.listener.as_fd());
        listener
            .into_iter()
            .chain(self.open.iter().map(|talk| talk.stream.as_fd()))
    }

    /// When the first of them has taken too long.
    pub fn due(&self) -> Option<Duration> {
        self.open.iter().map(|talk| talk.begun.saturating_add(WITHIN)).min()
    }

    /// Takes up who has connected, and has everybody who has asked answered. A line that makes no sense is answered too: `state`
    /// tells what that answer needs.
    pub fn go_on(&mut self, now: Duration, mut answer: impl FnMut(Result<Request, Refusal>) -> Reply) {
        self.accept(now);
        self.open.retain_mut(|talk| match talk.read() {
            Ok(None) => now < talk.begun.saturating_add(WITHIN),
            Ok(Some(asked)) => {
                talk.say(&answer(asked));
                false
            }
            // Gone without a word.
            Err(_) => false,
        });
    }

    fn accept(&mut self, now: Duration) {
        // Not as long as they come: whoever connects without end must not keep the guard from its work.
        for _ in self.open.len()..MOST {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::error!(%error, "somebody can't be listened to");
                    return;
                }
            };
            match admitted(&stream) {
                Ok(()) => self.open.push(Conversation {
                    stream,
                    line: Vec::new(),
                    begun: now,
                }),
                Err(error) => tracing::debug!(%error, "somebody is not listened to"),
            }
        }
    }
}

/// Who may put the table to sleep by other means may ask: nobody but root. An abstract socket has no permissions of its own.
fn admitted(stream: &UnixStream) -> io::Result<()> {
    let uid = getsockopt(stream, sockopt::PeerCredentials)?.uid();
    if uid != 0 {
        let said = format!("a process of user {uid} has connected; only root may");
        return Err(io::Error::new(ErrorKind::PermissionDenied, said));
    }
    stream.set_nonblocking(true)
}

impl Conversation {
    /// What was asked, once the line is whole.
    fn read(&mut self) -> io::Result<Option<Result<Request, Refusal>>> {
        let unread = |why: String| Some(Err(Refusal::Unread { why }));
        let mut buffer = [0; LONGEST_LINE];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.line.extend(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let request = serde_json::from_slice(&self.line[..end]);
                return Ok(request.map_or_else(|error| unread(error.to_string()), |request| Some(Ok(request))));
            }
            if self.line.len() >= LONGEST_LINE {
                return Ok(unread(format!("a line has {LONGEST_LINE} bytes at most")));
            }
        }
    }

    fn say(&mut self, reply: &Reply) {
        let said = line(reply).and_then(|line| self.stream.write_all(&line));
        if let Err(error) = said {
            tracing::warn!(%error, "somebody did not wait for the answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::protocol::State;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;

    fn reply(asked: Result<Request, Refusal>) -> Reply {
        Reply {
            refused: asked.err(),
            state: State::Idle,
        }
    }

    fn conversations(name: &str) -> (Conversations, SocketAddr) {
        let name = format!("nftfleet-guard-test-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        (Conversations::new(listener).unwrap(), address)
    }

    #[test]
    fn a_line_may_come_in_pieces_and_nobody_holds_the_others_up() {
        let (mut conversations, address) = conversations("pieces");
        let mut slow = UnixStream::connect_addr(&address).unwrap();
        let mut quick = UnixStream::connect_addr(&address).unwrap();
        slow.write_all(b"\"que").unwrap();
        quick.write_all(b"\"query\"\n").unwrap();
        let mut asked = Vec::new();
        let mut go_on = |conversations: &mut Conversations| {
            conversations.go_on(Duration::ZERO, |request| {
                asked.push(request.clone());
                reply(request)
            });
        };
        go_on(&mut conversations);
        let mut text = String::new();
        quick.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{\"state\":\"idle\"}\n");
        slow.write_all(b"ry\"\n").unwrap();
        go_on(&mut conversations);
        text.clear();
        slow.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{\"state\":\"idle\"}\n");
        assert_eq!(asked, [Ok(Request::Query), Ok(Request::Query)]);
    }

    #[test]
    fn what_makes_no_sense_is_told_so_and_who_says_nothing_is_left() {
        let (mut conversations, address) = conversations("nonsense");
        let mut odd = UnixStream::connect_addr(&address).unwrap();
        let mut long = UnixStream::connect_addr(&address).unwrap();
        let mut mute = UnixStream::connect_addr(&address).unwrap();
        odd.write_all(b"arm!\n").unwrap();
        long.write_all(&[b' '; 4 * LONGEST_LINE]).unwrap();
        conversations.go_on(Duration::ZERO, reply);
        let mut text = String::new();
        odd.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("{\"refused\":{\"unread\":"), "{text}");
        text.clear();
        // What it has not read yet is thrown away with the connection, which tells the sender so.
        let told = long.read_to_string(&mut text);
        assert!(told.is_err() || text.contains("bytes at most"), "{text}");
        assert_eq!(conversations.due(), Some(WITHIN));
        conversations.go_on(WITHIN, reply);
        assert_eq!(mute.read(&mut [0]).unwrap(), 0);
        assert_eq!(conversations.due(), None);
    }
}
