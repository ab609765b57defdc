//! The netlink socket: sends a batch and reads every answer; sends a request and reads the whole dump or fails.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::message::{Received, flag, kind, received};
use super::sys::ask_for_extended_errors;

/// Room for answers: every failing message of a batch sends one, and an overrun would lose them.
const RECEIVE_BUFFER: usize = 8 << 20;

/// How long the kernel may take over an answer. A full load is committed within seconds; what takes longer will not come.
const ANSWER_WITHIN: TimeVal = TimeVal::new(60, 0);

/// The largest datagram that the kernel sends is 32 KiB; errors repeat their request's message.
const LARGEST_DATAGRAM: usize = 256 << 10;

/// A conversation with `nf_tables` that failed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The socket itself failed.
    #[error("netlink: {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("the kernel refused: {source}")]
    Refused {
        /// The sequence number of the request's message.
        sequence: u32,
        /// The place in that message at which the kernel stopped, if it says so.
        offset: Option<usize>,
        /// Why.
        source: io::Error,
    },
    /// Something changed while a dump went on: what was read is of no one moment. Try again.
    #[error("the ruleset changed while it was read")]
    Interrupted,
}

impl SocketError {
    fn io(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Io {
            what,
            source: errno.into(),
        }
    }

    fn refused(message: &Received<'_>, number: i32) -> Self {
        Self::Refused {
            sequence: message.sequence,
            offset: message.error_offset(),
            source: io::Error::from_raw_os_error(number),
        }
    }
}

impl From<SocketError> for io::Error {
    fn from(error: SocketError) -> Self {
        match error {
            // The kernel's own number stays, for who wants to tell one refusal from another.
            SocketError::Refused { source, .. } => source,
            other => Self::other(other),
        }
    }
}

/// A netlink socket of the namespace in which it was opened. It is kept open: closing one waits for the kernel's clean-up.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel has no nfnetlink, or the process lacks `CAP_NET_ADMIN`.
    pub fn open() -> Result<Self, SocketError> {
        Self::answering(SockProtocol::NetlinkNetFilter)
    }

    /// Opens a socket for generic netlink, through which other parts of the kernel are spoken to than netfilter.
    ///
    /// # Errors
    /// The socket can't be made.
    pub fn generic() -> Result<Self, SocketError> {
        Self::answering(SockProtocol::NetlinkGeneric)
    }

    /// Opens a socket that hears of changes, and waits for them without a limit.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub fn subscribed(group: u32) -> Result<Self, SocketError> {
        Self::bound(SockProtocol::NetlinkNetFilter, 1 << (group - 1))
    }

    /// A socket on which an answer that does not come is an error.
    fn answering(protocol: SockProtocol) -> Result<Self, SocketError> {
        let socket = Self::bound(protocol, 0)?;
        setsockopt(&socket.fd, sockopt::ReceiveTimeout, &ANSWER_WITHIN)
            .map_err(SocketError::io("set the time limit"))?;
        Ok(socket)
    }

    fn bound(protocol: SockProtocol, groups: u32) -> Result<Self, SocketError> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(SocketError::io("open"))?;
        setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).map_err(SocketError::io("set the receive buffer"))?;
        ask_for_extended_errors(fd.as_fd()).map_err(|source| SocketError::Io {
            what: "ask for extended errors",
            source,
        })?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(SocketError::io("bind"))?;
        Ok(Self {
            fd,
            buffer: vec![0; LARGEST_DATAGRAM],
        })
    }

    /// The number by which the kernel knows this socket.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn port(&self) -> Result<u32, SocketError> {
        let address =
            getsockname::<NetlinkAddr>(self.fd.as_raw_fd()).map_err(SocketError::io("ask for the address"))?;
        Ok(address.pid())
    }

    /// Another handle to the same socket.
    ///
    /// # Errors
    /// There are too many open files.
    pub fn duplicate(&self) -> Result<OwnedFd, SocketError> {
        self.fd.try_clone().map_err(|source| SocketError::Io {
            what: "duplicate",
            source,
        })
    }

    /// Waits for the next datagram, and hands its messages to `each` until that says that it has heard enough.
    ///
    /// # Errors
    /// Messages were lost, or the socket failed.
    pub fn listen(&mut self, each: impl FnMut(Received<'_>) -> Result<bool, SocketError>) -> Result<(), SocketError> {
        self.receive(each)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), SocketError> {
        // The kernel counts its own overhead into the buffer, hence twice the length and some.
        let room = bytes.len() * 2 + (1 << 16);
        setsockopt(&self.fd, sockopt::SndBufForce, &room).map_err(SocketError::io("set the send buffer"))?;
        loop {
            match sendto(self.fd.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(SocketError::io("send")(errno)),
            }
        }
    }

    /// Hands the messages of the next datagram to `each`, until it says that it has the end.
    fn receive(&mut self, mut each: impl FnMut(Received<'_>) -> Result<bool, SocketError>) -> Result<(), SocketError> {
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(SocketError::io("receive")(errno)),
            };
            for message in received(&self.buffer[..length]) {
                if each(message)? {
                    return Ok(());
                }
            }
        }
    }

    /// Throws away what an earlier, failed conversation left.
    fn drain(&mut self) {
        while recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT).is_ok_and(|length| length > 0) {}
    }

    /// Sends a batch whose first message has the sequence number `first`, and whose last but the closing one, `last`, asks for
    /// an acknowledgement; waits for the kernel's word.
    ///
    /// # Errors
    /// The first refusal. Then nothing of the batch has been done.
    pub fn commit(&mut self, batch: &[u8], first: u32, last: u32) -> Result<(), SocketError> {
        self.drain();
        self.send(batch)?;
        let mut refusal = None;
        self.receive(|message| {
            // What answers an earlier conversation is none of ours.
            let is_ours = message.sequence.wrapping_sub(first) <= last.wrapping_sub(first);
            let Some(number) = message.error().filter(|_| is_ours) else {
                return Ok(false);
            };
            if number != 0 && refusal.is_none() {
                refusal = Some(SocketError::refused(&message, number));
            }
            // A batch that is refused as a whole is answered at its first message, and no other answer follows.
            Ok(message.sequence == last || (message.sequence == first && number != 0))
        })?;
        refusal.map_or(Ok(()), Err)
    }

    /// Sends a dump request and says whether `is_it` is true of a message of the answer. At the first of which it is the rest
    /// is not read: hence the socket is given away.
    ///
    /// # Errors
    /// Refused. That the dump met a change on its way is no error: what was seen was there.
    pub fn any_of_dump(mut self, request: &[u8], is_it: impl Fn(Received<'_>) -> bool) -> Result<bool, SocketError> {
        self.send(request)?;
        let mut found = false;
        self.receive(|message| {
            if let Some(number) = message.error().filter(|number| *number != 0) {
                return Err(SocketError::refused(&message, number));
            }
            found = is_it(message);
            Ok(found || message.kind == kind::DONE)
        })?;
        Ok(found)
    }

    /// Sends a dump request and hands every message of the answer to `each`.
    ///
    /// # Errors
    /// Refused, or interrupted by a change: a dump is whole or an error.
    pub fn dump(&mut self, request: &[u8], mut each: impl FnMut(Received<'_>)) -> Result<(), SocketError> {
        self.drain();
        self.send(request)?;
        let sequence = received(request).next().map(|message| message.sequence);
        let mut interrupted = false;
        self.receive(|message| {
            if Some(message.sequence) != sequence {
                return Ok(false);
            }
            interrupted |= message.flags & flag::DUMP_INTERRUPTED != 0;
            if let Some(number) = message.error() {
                return if number == 0 {
                    Ok(true)
                } else {
                    Err(SocketError::refused(&message, number))
                };
            }
            if message.kind == kind::DONE {
                // A dump that failed half way ends with the error in place of an error message.
                let number = message
                    .payload()
                    .first_chunk()
                    .map_or(0, |bytes| -i32::from_ne_bytes(*bytes));
                return if number == 0 {
                    Ok(true)
                } else {
                    Err(SocketError::refused(&message, number))
                };
            }
            each(message);
            Ok(false)
        })?;
        if interrupted {
            Err(SocketError::Interrupted)
        } else {
            Ok(())
        }
    }
}
