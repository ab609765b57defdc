//! What the kernel itself tells of the table, over `NFNLGRP_NFTABLES`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nftfleet_tests::netns::Netns;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// `NFNLGRP_NFTABLES` as a bit (`linux/netfilter/nfnetlink.h`).
const GROUP: u32 = 1 << (7 - 1);

/// Messages of the subsystem nftables (`linux/netfilter/nf_tables.h`).
const NEW_ELEMENTS: u16 = 0x0a0c;
const DELETED_ELEMENTS: u16 = 0x0a0e;

/// A whole table's worth of notifications comes at once.
const ROOM: usize = 512 << 20;

/// What was heard so far.
#[derive(Debug, Default)]
pub struct Heard {
    /// Elements that were added and deleted.
    pub elements: u32,
    /// When each address first came in as an endpoint, counted from the start of the listening or the last [`Listener::take`].
    pub endpoints: BTreeMap<Ipv4Addr, Instant>,
}

/// Listens on a thread until it is dropped.
pub struct Listener {
    heard: Arc<Mutex<Heard>>,
    stop: Arc<()>,
}

impl Listener {
    /// Listens in `netns`.
    pub fn start(netns: &Netns) -> Self {
        let heard = Arc::new(Mutex::new(Heard::default()));
        let stop = Arc::new(());
        let (notes, stopped) = (Arc::clone(&heard), Arc::downgrade(&stop));
        // Opened here: what happens after this call is heard.
        let socket = netns.run(open);
        netns.spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            while stopped.strong_count() > 0 {
                match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(length) => notes
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .take_in(&buffer[..length], Instant::now()),
                    Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                    Err(error) => panic!("the kernel's notifications can't be heard: {error}"),
                }
            }
        });
        Self { heard, stop }
    }

    /// Looks at what was heard.
    pub fn look<T>(&self, at: impl FnOnce(&Heard) -> T) -> T {
        at(&self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the listening, and gives what was heard.
    pub fn take(self) -> Heard {
        drop(self.stop);
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn open() -> OwnedFd {
    let (raw, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
    let fd = socket(AddressFamily::Netlink, raw, flags, SockProtocol::NetlinkNetFilter).expect("a netlink socket");
    setsockopt(&fd, sockopt::RcvBufForce, &ROOM).expect("root may have a large buffer");
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 200_000)).expect("a limit");
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUP)).expect("notifications can be asked for");
    fd
}

impl Heard {
    fn take_in(&mut self, mut datagram: &[u8], now: Instant) {
        while let Some(length) = u32_at(datagram, 0).map(|length| length as usize) {
            let Some(message) = datagram.get(..length).filter(|message| message.len() >= 20) else {
                return;
            };
            let kind = u16::from_ne_bytes([message[4], message[5]]);
            // Behind the headers of netlink and nfnetlink. Every message but the generation's begins with the table's name.
            let body = &message[20..];
            let ours = || attribute(body, 1) == Some(b"nftfleet\0".as_slice());
            match kind {
                NEW_ELEMENTS | DELETED_ELEMENTS if ours() => self.take_elements(body, kind == NEW_ELEMENTS, now),
                _ => {}
            }
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn take_elements(&mut self, body: &[u8], new: bool, now: Instant) {
        let is_map = attribute(body, 2) == Some(b"endpoints4\0".as_slice());
        for (_, element) in attributes(attribute(body, 3).unwrap_or_default()) {
            self.elements += 1;
            // NFTA_SET_ELEM_DATA, and in it NFTA_DATA_VALUE: the address, then the port.
            let data = attribute(element, 2).and_then(|data| attribute(data, 1));
            if let Some(&[a, b, c, d, ..]) = data.filter(|_| is_map && new) {
                self.endpoints.entry(Ipv4Addr::new(a, b, c, d)).or_insert(now);
            }
        }
    }
}

/// The attributes of a message, or those in an attribute: their kinds and contents.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (u16_at(bytes, 0)? as usize, u16_at(bytes, 2)?);
        let content = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The top bits say how it is laid out.
        Some((kind & 0x3fff, content))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, content)| content)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
