//! The kernel's side: reads the table whole or not at all, and writes it in one transaction.

mod batch;
mod element;
mod message;
mod object;
mod observe;
mod socket;
mod userdata;

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::Family;
use nix::errno::Errno;

pub use socket::SocketError;

use self::batch::Batch;
use self::message::{INET, SUBSYSTEM, begin_message, end_message, find, flag, kind, number, text, text_attribute};
use self::socket::Socket;
use super::kernel::{Kernel, KernelError, Observed, Transaction};
use super::layout::{Layout, TABLE, names};

/// How often an observation is tried again when the ruleset changes under it.
const OBSERVATION_TRIES: usize = 8;

/// `nf_tables` of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a conversation with the kernel.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open() -> Result<Self, SocketError> {
        Ok(Self {
            socket: Socket::open()?,
            sequence: 0,
        })
    }

    /// The names of all tables with their family, for example `ip kube-proxy`.
    ///
    /// # Errors
    /// The dump failed.
    pub fn tables(&mut self) -> Result<Vec<String>, KernelError> {
        let tables = settled(|| {
            let mut tables = Vec::new();
            let request = self.request(kind::GET_TABLE, 0, None);
            let each = |message: message::Received<'_>| {
                let family = match message.payload().first() {
                    Some(1) => "inet",
                    Some(2) => "ip",
                    Some(3) => "arp",
                    Some(5) => "netdev",
                    Some(7) => "bridge",
                    Some(10) => "ip6",
                    _ => "unknown",
                };
                if let Some(name) = find(message.body(), 1) {
                    tables.push(format!("{family} {}", text(name)));
                }
            };
            self.socket.dump(&request, each)?;
            Ok(tables)
        });
        tables.map(|mut tables| {
            tables.sort();
            tables
        })
    }

    /// A dump request for objects of our table, if a set is named for its elements.
    fn request(&mut self, kind: u16, family: u8, set: Option<&str>) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let flags = flag::ACKNOWLEDGE | flag::DUMP;
        let start = begin_message(&mut bytes, SUBSYSTEM << 8 | kind, flags, self.sequence, family, 0);
        if kind != message::kind::GET_TABLE {
            text_attribute(&mut bytes, 1, TABLE);
        }
        if let Some(set) = set {
            text_attribute(&mut bytes, 2, set);
        }
        end_message(&mut bytes, start);
        bytes
    }
}

impl From<SocketError> for KernelError {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::Interrupted => Self::Restless,
            other => Self::Read(other.into()),
        }
    }
}

/// Reads again while the ruleset changes under the reading: others (kube-proxy, for one) write at any time.
fn settled<T>(mut read: impl FnMut() -> Result<T, KernelError>) -> Result<T, KernelError> {
    for _ in 0..OBSERVATION_TRIES {
        match read() {
            Err(KernelError::Restless) => {}
            done => return done,
        }
    }
    Err(KernelError::Restless)
}

impl Kernel for Netlink {
    fn observe(&mut self, expected: &Layout) -> Result<Option<Observed>, KernelError> {
        settled(|| match self.observe_once(expected) {
            // The table went while it was read: look again.
            Err(KernelError::Read(error)) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {
                Err(KernelError::Restless)
            }
            done => done,
        })
    }

    fn state(&mut self) -> Result<TableState, KernelError> {
        settled(|| {
            let mut state = TableState::Absent;
            let request = self.request(kind::GET_TABLE, INET, None);
            let each = |message: message::Received<'_>| {
                if find(message.body(), 1).map(text).as_deref() == Some(TABLE) {
                    let flags = find(message.body(), 2).and_then(number).unwrap_or(0);
                    state = if flags & 1 == 0 {
                        TableState::Active
                    } else {
                        TableState::Dormant
                    };
                }
            };
            self.socket.dump(&request, each)?;
            Ok(state)
        })
    }

    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<(), KernelError> {
        let mut batch = Batch::begin(self.sequence.wrapping_add(1));
        if transaction.replace {
            batch.step("the old table", object::delete_table)?;
        }
        if let Some(layout) = transaction.make {
            batch.make(layout, transaction.dormant.unwrap_or(false))?;
        }
        for chain in transaction.rewrite {
            batch.rewrite(chain)?;
        }
        batch.changes(transaction.changes);
        if transaction.make.is_none()
            && let Some(dormant) = transaction.dormant
        {
            // The kernel makes a table that is missing when it is told flags: an empty one, which would pass for ours. To put
            // a table to sleep is the way back, which must not fail because somebody damaged the table.
            if !dormant {
                batch.require(&names::cluster_ips(Family::V4));
            }
            batch.step("the table's flags", |bytes, sequence| {
                object::new_table(bytes, sequence, dormant)
            })?;
        }
        let Some(batch) = batch.end() else { return Ok(()) };
        self.sequence = batch.sequence;
        self.socket
            .commit(&batch.bytes, batch.first, batch.last)
            .map_err(|error| {
                let at = match &error {
                    SocketError::Refused { sequence, .. } => batch.named(*sequence),
                    _ => "sending".to_owned(),
                };
                KernelError::Refused {
                    at,
                    source: error.into(),
                }
            })
    }
}
