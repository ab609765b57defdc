//! The kernel's side: reads the table whole or not at all, and writes it in one transaction.

mod batch;
pub mod conntrack;
mod decode;
mod element;
mod firewall;
mod grace;
mod instruction;
mod kube_proxy;
mod listen;
pub(crate) mod message;
mod object;
mod observe;
mod snapshot;
pub(crate) mod socket;
mod sys;
mod userdata;

use std::collections::BTreeSet;

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::Family;
use nix::errno::Errno;

pub use grace::wait_for_packets;
pub use kube_proxy::KubeProxyTable;
pub use listen::Listener;
use listen::Subscription;
pub use snapshot::SnapshotError;
pub use socket::SocketError;

use self::batch::{Batch, EndedBatch};
use self::message::{INET, SUBSYSTEM, begin_message, end_message, find, flag, kind, number, text, text_attribute};
use self::socket::Socket;
use super::kernel::{Committed, Kernel, KernelError, Observed, Transaction};
use super::layout::{Layout, TABLE, names};
use super::programmed::{Group, Sticky};

/// How often an observation is tried again when the ruleset changes under it.
const OBSERVATION_TRIES: usize = 8;

/// `nf_tables` of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    /// Who hears what is written here.
    heard_by: Option<Subscription>,
}

/// From how many bytes on a transaction is written unheard. For a listener the kernel makes a message of some 4 KB for every
/// element, and keeps them all until the end: 1.4 GB for 30,000 Services, half of the time, and more than the listener's
/// buffer takes. An element is some 60 bytes.
const UNHEARD_FROM: usize = 1 << 18;

impl Netlink {
    /// Opens a conversation with the kernel.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open() -> Result<Self, SocketError> {
        Ok(Self {
            socket: Socket::open()?,
            sequence: 0,
            heard_by: None,
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

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// A dump request for objects of our table, if a set is named for its elements.
    fn request(&mut self, kind: u16, family: u8, set: Option<&str>) -> Vec<u8> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        let flags = flag::ACKNOWLEDGE | flag::DUMP;
        let start = begin_message(&mut bytes, SUBSYSTEM << 8 | kind, flags, sequence, family, 0);
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

impl Netlink {
    /// Commits while the listener does not listen, and says whether nobody else has written meanwhile, by the number of the
    /// ruleset's generation.
    fn commit_unheard(&mut self, batch: &EndedBatch) -> Result<(Result<(), SocketError>, bool), KernelError> {
        let before = self.generation()?;
        self.listen(false)?;
        let done = self.socket.commit(&batch.bytes, batch.first, batch.last);
        self.listen(true)?;
        let after = self.generation()?;
        let steps = u32::from(done.is_ok());
        let alone = before
            .zip(after)
            .is_some_and(|(before, after)| after.wrapping_sub(before) == steps);
        Ok((done, alone))
    }

    fn listen(&self, wanted: bool) -> Result<(), SocketError> {
        self.heard_by.as_ref().map_or(Ok(()), |listener| listener.set(wanted))
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
    fn stickies(&mut self) -> Result<BTreeSet<Sticky>, KernelError> {
        settled(|| {
            let mut stickies = BTreeSet::new();
            let request = self.request(kind::GET_SET, INET, None);
            let each = |message: message::Received<'_>| {
                let name = find(message.body(), 2).map(text).unwrap_or_default();
                if let Some((family, which, Group::Sticky { timeout, class })) = names::sticky_group(&name) {
                    stickies.insert(Sticky {
                        family,
                        which,
                        timeout,
                        class,
                    });
                }
            };
            match self.socket.dump(&request, each) {
                Err(SocketError::Refused { source, .. }) if source.raw_os_error() == Some(Errno::ENOENT as i32) => {
                    Ok(BTreeSet::new())
                }
                done => done.map(|()| stickies).map_err(Into::into),
            }
        })
    }

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

    fn wait_for_packets(&mut self) {
        wait_for_packets();
    }

    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<Committed, KernelError> {
        let mut batch = Batch::begin(self.sequence.wrapping_add(1));
        if transaction.replace {
            batch.step("the old table", object::delete_table)?;
        }
        if transaction.make {
            let dormant = transaction.dormant.unwrap_or(false);
            batch.step("the table", |bytes, sequence| {
                object::new_table(bytes, sequence, dormant)
            })?;
        }
        batch.sets(transaction.sets)?;
        batch.chains(transaction.chains)?;
        for chain in transaction.rewrite {
            batch.empty(&chain.name);
            batch.rules(chain)?;
        }
        for chain in transaction.old_chains {
            batch.empty(chain);
        }
        for chain in transaction.old_chains {
            batch.step(format!("the old chain {chain}"), |bytes, sequence| {
                object::delete_chain(bytes, sequence, chain)
            })?;
        }
        for set in transaction.old_sets {
            batch.step(format!("the old set {set}"), |bytes, sequence| {
                object::delete_set(bytes, sequence, set)
            })?;
        }
        // After the rules: for every chain with rules that look into a map the kernel looks once at each element that is in it.
        batch.changes(transaction.changes);
        if let Some(dormant) = transaction.dormant.filter(|_| !transaction.make) {
            // The kernel makes a table that is missing when it is told flags: an empty one, which would pass for ours. To put
            // a table to sleep is the way back, which must not fail because somebody damaged the table.
            if !dormant {
                batch.require(&names::cluster_ips(Family::V4));
            }
            batch.step("the table's flags", |bytes, sequence| {
                object::new_table(bytes, sequence, dormant)
            })?;
        }
        let Some(batch) = batch.end() else {
            return Ok(Committed::default());
        };
        self.sequence = batch.sequence;
        let (done, alone) = if batch.bytes.len() < UNHEARD_FROM || self.heard_by.is_none() {
            (self.socket.commit(&batch.bytes, batch.first, batch.last), true)
        } else {
            self.commit_unheard(&batch)?
        };
        done.map_err(|error| {
            let at = match &error {
                SocketError::Refused { sequence, offset, .. } => batch.named(*sequence, *offset),
                _ => "sending".to_owned(),
            };
            KernelError::Refused {
                at,
                source: error.into(),
            }
        })?;
        Ok(Committed {
            bytes: batch.bytes.len(),
            disturbed: !alone,
        })
    }
}
