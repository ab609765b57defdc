//! Everything that says what becomes of a packet, read from the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::Family;
use nix::errno::Errno;

use super::message::{
    self, INET, SUBSYSTEM, attribute, begin_message, begin_nested, end_attribute, end_message, find, flag, kind,
    number, text_attribute,
};
use super::socket::SocketError;
use super::{Netlink, decode, settled};
use crate::dataplane::explain::{Packet, Remembered, Snapshot, Table};
use crate::dataplane::kernel::{Kernel as _, KernelError};
use crate::dataplane::layout::{Instructions, Layout, TABLE, client_key, names, recognise};
use crate::dataplane::programmed::{Programmed, Which};

/// How often the table is read again when the ruleset has changed meanwhile. On a busy node it always has; what was read is
/// then of several moments, and says so.
const TRIES: usize = 3;

/// Why the kernel's state could not be read for an explanation.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The kernel could not be read.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The table is not as this agent makes it: whatever would be said about it would be a guess.
    #[error("the table inet {TABLE} is not as this agent makes it: {0}")]
    NotOurs(String),
}

impl Netlink {
    /// What the kernel holds that matters to a packet. `own` are the node's addresses.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn snapshot(&mut self, packet: &Packet, own: BTreeSet<IpAddr>) -> Result<Snapshot, SnapshotError> {
        let mut tries = 0;
        let table = loop {
            let before = self.generation()?;
            let read = self.table(packet);
            let unsettled = self.generation()? != before;
            tries += 1;
            if !unsettled || tries == TRIES {
                break read?.map(|table| Table { unsettled, ..table });
            }
        };
        Ok(Snapshot { own, table })
    }

    fn table(&mut self, packet: &Packet) -> Result<Option<Table>, SnapshotError> {
        if self.state()? == TableState::Absent {
            return Ok(None);
        }
        let rules = settled(|| self.instructions())?;
        let (settings, pods) =
            recognise(&rules).ok_or_else(|| SnapshotError::NotOurs("its rules can't be understood".to_owned()))?;
        let layout = Layout::new(settings, &pods, &self.stickies()?);
        let Some(observed) = self.observe(&layout)? else {
            return Ok(None);
        };
        let stale = observed
            .stale_chains
            .iter()
            .map(|name| format!("chain {name} has other rules"));
        let differences: Vec<String> = observed.differences.iter().cloned().chain(stale).collect();
        if !differences.is_empty() {
            return Err(SnapshotError::NotOurs(differences.join(", ")));
        }
        Ok(Some(Table {
            dormant: observed.dormant,
            settings,
            pods,
            clients: self.clients(packet, &observed.programmed)?,
            programmed: observed.programmed,
            unsettled: false,
        }))
    }

    /// The number of the ruleset's last change.
    pub(super) fn generation(&mut self) -> Result<Option<u32>, KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        let (kind, flags) = (SUBSYSTEM << 8 | kind::GET_GENERATION, flag::ACKNOWLEDGE);
        let start = begin_message(&mut request, kind, flags, self.sequence, 0, 0);
        end_message(&mut request, start);
        let mut generation = None;
        let each = |message: message::Received<'_>| generation = find(message.body(), 1).and_then(number);
        self.socket.dump(&request, each)?;
        Ok(generation)
    }

    fn instructions(&mut self) -> Result<Instructions, KernelError> {
        let mut rules = Instructions::new();
        let request = self.request(kind::GET_RULE, INET, None);
        let each = |message: message::Received<'_>| {
            if let Some((chain, expressions)) = decode::rule(message.body()) {
                rules.entry(chain).or_default().push(expressions);
            }
        };
        self.socket.dump(&request, each)?;
        Ok(rules)
    }

    /// What the packet's client holds, by the numbers under which the VIP's lists remember it.
    fn clients(&mut self, packet: &Packet, programmed: &Programmed) -> Result<BTreeMap<u32, Remembered>, KernelError> {
        let mut clients = BTreeMap::new();
        let (Some(client), Some(held)) = (packet.from, programmed.vips.get(&packet.to)) else {
            return Ok(clients);
        };
        for number in Which::BOTH.into_iter().filter_map(|which| held.list(which).number) {
            if let Some(remembered) = self.client(client, number)? {
                clients.insert(number, remembered);
            }
        }
        Ok(clients)
    }

    /// Asks for one element: there may be a million.
    fn client(&mut self, client: IpAddr, number: u32) -> Result<Option<Remembered>, KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        let (kind, flags) = (SUBSYSTEM << 8 | kind::GET_ELEMENTS, flag::ACKNOWLEDGE);
        let start = begin_message(&mut request, kind, flags, self.sequence, INET, 0);
        text_attribute(&mut request, 1, TABLE);
        text_attribute(&mut request, 2, &names::clients(Family::of(client)));
        let nests = [3, 1, 1].map(|kind| begin_nested(&mut request, kind));
        attribute(&mut request, 1, &[client_key(client), number.to_ne_bytes()].concat());
        for nest in nests.into_iter().rev() {
            end_attribute(&mut request, nest);
        }
        end_message(&mut request, start);
        let mut found = None;
        let each = |message: message::Received<'_>| {
            found = find(message.body(), 3).and_then(|list| remembered(find(list, 1)?));
        };
        match self.socket.dump(&request, each) {
            Err(SocketError::Refused { source, .. }) if source.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(None),
            done => done.map(|()| found).map_err(Into::into),
        }
    }
}

/// Reads an element of `clientsN`: its data (`NFTA_SET_ELEM_DATA`), and when it goes (`NFTA_SET_ELEM_EXPIRATION`).
fn remembered(element: &[u8]) -> Option<Remembered> {
    let ticket = find(find(element, 2)?, 1)?;
    let expires = find(element, 5)?;
    Some(Remembered {
        ticket: u32::from_ne_bytes(ticket.try_into().ok()?),
        expires: Duration::from_millis(u64::from_be_bytes(expires.try_into().ok()?)),
    })
}
