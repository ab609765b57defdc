//! What would become of the first packet of a connection, and why: told from the kernel's own state.
//!
//! Pure: what [`Netlink::snapshot`](super::Netlink::snapshot) read goes in, typed steps and an outcome come out. It follows the
//! rules of [`Layout`](super::Layout) chain by chain, which is why a table of another make is refused before.

mod fate;
mod packet;
mod spread;
mod text;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::{Family, Protocol};
use serde::{Serialize, Serializer};

pub use fate::{
    Affinity, Client, DroppedFor, Fate, Finding, Kind, LeftFor, Mark, Masquerade, Note, Other, Outcome, Policy,
    Refusal, RefusedFor, Spread, Step,
};
pub use packet::{BadPacket, Origin, Packet};

use self::packet::Source;
use self::walk::walk;
use super::desired::{PodMatch, Pods};
use super::layout::LayoutSettings;
use super::place::LAST_RESORT;
use super::programmed::Programmed;

/// What the kernel holds that matters to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The node's own addresses.
    pub own: BTreeSet<IpAddr>,
    /// Our table, if there is one.
    pub table: Option<Table>,
}

/// Our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Whether it hooks nothing.
    pub dormant: bool,
    /// What its rules were made for.
    pub settings: LayoutSettings,
    /// How its rules tell pods from others.
    pub pods: Pods,
    /// Its elements.
    pub programmed: Programmed,
    /// What the packet's client holds, by the number of a Service's port.
    pub clients: BTreeMap<u32, Remembered>,
    /// Whether the ruleset changed while it was read.
    pub unsettled: bool,
}

/// What is remembered of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Its ticket.
    pub ticket: u32,
    /// After how long without a new connection it is forgotten.
    pub expires: Duration,
}

/// What would become of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The destination's address.
    pub address: IpAddr,
    /// The protocol.
    #[serde(serialize_with = "as_text")]
    pub protocol: Protocol,
    /// The destination's port.
    pub port: u16,
    /// The source, if it was given.
    pub from: Option<IpAddr>,
    /// Who sends it.
    pub origin: Origin,
    /// Whether the table is there and hooked in; if not, nothing of what follows happens.
    pub table: TableState,
    /// The Service, and its port where the table names it.
    pub service: Option<String>,
    /// What kind of address it is.
    pub kind: Option<Kind>,
    /// What happens; none if there is no table.
    pub fate: Option<Fate>,
    /// What would differ for others, if no source was given.
    pub others: Vec<Other>,
    /// What else must be known.
    pub notes: Vec<Note>,
}

/// Says what would become of the packet.
pub fn explain(snapshot: &Snapshot, packet: &Packet) -> Explanation {
    let family = Family::of(packet.to.address);
    let pods = snapshot.table.as_ref().and_then(|table| table.pods.of(family));
    let source = Source::of(packet, &snapshot.own, pods);
    let mut explanation = Explanation {
        address: packet.to.address,
        protocol: packet.to.protocol,
        port: packet.to.port,
        from: packet.from,
        origin: source.origin,
        table: TableState::Absent,
        service: None,
        kind: None,
        fate: None,
        others: Vec::new(),
        notes: Vec::new(),
    };
    let Some(table) = &snapshot.table else {
        return explanation;
    };
    explanation.table = if table.dormant {
        TableState::Dormant
    } else {
        TableState::Active
    };
    explanation.service = service(table, packet);
    explanation.kind = Some(kind(&table.programmed, packet.to.address));
    let fate = walk(table, packet, source);
    if packet.from.is_none() {
        // Nobody can be a pod where pods can't be told from others.
        let origins = [pods.map(|_| Origin::Pod), Some(Origin::Node)];
        explanation.others = origins
            .into_iter()
            .flatten()
            .map(|origin| {
                let outcome = walk(table, packet, Source::some(origin)).outcome;
                let same = outcome == fate.outcome;
                Other { origin, outcome, same }
            })
            .collect();
    }
    explanation.notes = notes(table, packet, source, pods, &fate);
    explanation.fate = Some(fate);
    explanation
}

/// The Service's name: with the port's, where the VIP's route carries it.
fn service(table: &Table, packet: &Packet) -> Option<String> {
    let held = table.programmed.vips.get(&packet.to);
    let named = held.and_then(|held| held.routes.values().next());
    let named = named.or_else(|| table.programmed.cluster_ips.get(&packet.to.address));
    named.map(ToString::to_string)
}

fn kind(programmed: &Programmed, address: IpAddr) -> Kind {
    if programmed.cluster_ips.contains_key(&address) {
        Kind::ClusterIp
    } else if programmed.external_ips.contains(&address) {
        Kind::External
    } else if programmed.nodeport_ips.contains(&address) {
        Kind::NodePort
    } else if programmed.service_cidrs.iter().any(|cidr| cidr.contains(&address)) {
        Kind::Unallocated
    } else {
        Kind::Unknown
    }
}

fn notes(table: &Table, packet: &Packet, source: Source, pods: Option<&PodMatch>, fate: &Fate) -> Vec<Note> {
    let mut notes = Vec::new();
    let told_by_device = matches!(pods, Some(PodMatch::Interface(_) | PodMatch::InterfacePrefix(_)));
    if told_by_device && packet.from.is_some() && packet.device.is_none() && source.origin == Origin::Outside {
        notes.extend(pods.map(|pods| Note::DeviceNotGiven(text::pods(pods))));
    }
    if table.unsettled {
        notes.push(Note::Unsettled);
    }
    let Some(held) = table.programmed.vips.get(&packet.to) else {
        return notes;
    };
    if held.routes.len() > 1 || held.all.groups.len() > 1 || held.local.groups.len() > 1 {
        notes.push(Note::Changing);
    }
    if let Some(spread) = &fate.spread {
        let list = held.list(spread.list);
        let has_last_resort = match spread.affinity {
            None => list.slots.first().is_some_and(Option::is_some),
            Some(_) => list.tickets.contains_key(&LAST_RESORT),
        };
        if !has_last_resort {
            notes.push(Note::NoLastResort);
        }
    }
    notes
}

fn as_text<S: Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests;
