//! Hears of every change that others make to our table.

use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;

use super::Netlink;
use super::message::{INET, SUBSYSTEM, find, kind, text};
use super::socket::{Socket, SocketError};
use super::sys;
use crate::dataplane::layout::TABLE;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// A subscription to the changes of the ruleset.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    own: u32,
}

impl Listener {
    /// Subscribes in the calling thread's network namespace. What `own` writes is none of others; while it writes much, the
    /// subscription is interrupted.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(own: &mut Netlink) -> Result<Self, SocketError> {
        let socket = Socket::subscribed(GROUP)?;
        own.heard_by = Some(Subscription(socket.duplicate()?));
        Ok(Self {
            socket,
            own: own.socket.port()?,
        })
    }

    /// Waits until somebody else has changed our table, or may have: more was told than could be heard.
    ///
    /// # Errors
    /// The socket failed.
    pub fn foreign_edit(&mut self) -> Result<(), SocketError> {
        let own = self.own;
        let heard = self.socket.listen(|message| {
            let number = message.kind.checked_sub(SUBSYSTEM << 8);
            let is_ours = message.payload().first() == Some(&INET)
                && number.is_some_and(|number| number != kind::NEW_GENERATION)
                && find(message.body(), 1).map(text).as_deref() == Some(TABLE);
            Ok(is_ours && message.port != own)
        });
        match heard {
            Err(SocketError::Io { source, .. }) if source.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(()),
            heard => heard,
        }
    }
}

/// A listener's subscription, which can be interrupted.
#[derive(Debug)]
pub(super) struct Subscription(OwnedFd);

impl Subscription {
    /// Interrupts it, or takes it up again.
    pub fn set(&self, wanted: bool) -> Result<(), SocketError> {
        sys::subscribe(self.0.as_fd(), GROUP, wanted).map_err(|source| SocketError::Io {
            what: "change the subscription",
            source,
        })
    }
}
