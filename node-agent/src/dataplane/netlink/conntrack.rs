//! Connection tracking: UDP, cleaned up as kube-proxy does it, and what is tracked at all, for who must know how a
//! connection is translated.
//!
//! The kernel picks an endpoint once per tracked connection. TCP finds out by itself when its endpoint has gone; a UDP client
//! that keeps its source port (a DNS resolver, a log shipper) would go on sending to nobody for as long as it sends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};
use nix::errno::Errno;

use super::message::{
    Received, attribute, begin_message, begin_nested, end_attribute, end_message, find, flag, number,
};
use super::socket::{Socket, SocketError};

/// The subsystem of connection tracking (`NFNL_SUBSYS_CTNETLINK`).
const SUBSYSTEM: u16 = 1;

/// What is asked (`IPCTNL_MSG_CT_*`). A listing answers with `NEW`.
mod kind {
    pub const NEW: u16 = 0;
    pub const GET: u16 = 1;
    pub const DELETE: u16 = 2;
}

/// Attributes of a tracked connection (`CTA_*`).
mod entry {
    pub const ORIGINAL: u16 = 1;
    pub const REPLY: u16 = 2;
    pub const STATUS: u16 = 3;
    pub const PROTOCOL_STATE: u16 = 4;
    pub const ID: u16 = 12;
    pub const ZONE: u16 = 18;
    pub const FILTER: u16 = 25;
}

/// Attributes of one of its directions (`CTA_TUPLE_*`).
mod tuple {
    pub const ADDRESSES: u16 = 1;
    pub const TRANSPORT: u16 = 2;
    pub const ZONE: u16 = 3;
}

/// Attributes of a direction's addresses (`CTA_IP_*`).
mod addresses {
    pub const SOURCE4: u16 = 1;
    pub const DESTINATION4: u16 = 2;
    pub const SOURCE6: u16 = 3;
    pub const DESTINATION6: u16 = 4;
}

/// Attributes of a direction's protocol and ports (`CTA_PROTO_*`).
mod transport {
    pub const PROTOCOL: u16 = 1;
    pub const SOURCE: u16 = 2;
    pub const DESTINATION: u16 = 3;
}

/// `CTA_PROTOINFO_TCP`, and in it `CTA_PROTOINFO_TCP_STATE`.
const TCP_STATE: [u16; 2] = [1, 1];

/// `TCP_CONNTRACK_TIME_WAIT` and `TCP_CONNTRACK_CLOSE`.
const TCP_OVER: [u8; 2] = [7, 8];

/// `IPS_DST_NAT`: the kernel's own NAT translates the destination.
const DESTINATION_TRANSLATED: u32 = 1 << 5;

/// `CTA_FILTER_ORIG_FLAGS`: which fields of the original direction the kernel is to compare.
const FILTER_ORIGINAL: u16 = 1;

/// Compare the protocol (`CTA_FILTER_F_CTA_PROTO_NUM`).
const FILTER_PROTOCOL: u32 = 1 << 3;

/// How often a listing is tried again when it was interrupted, or refused with its filter.
const TRIES: usize = 8;

/// A tracked UDP connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// What the client sent: its own address, and the one that it knocked at.
    pub original: (SocketAddr, SocketAddr),
    /// Who answers: the endpoint, after translation.
    pub reply_source: SocketAddr,
    /// The zone of the original direction, if it is in one.
    pub zone: Option<u16>,
    /// The kernel's number for this entry. A later one with the same addresses has another.
    pub id: u32,
}

/// A tracked connection of any protocol that Services balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tracked {
    /// Its protocol.
    pub protocol: Protocol,
    /// Source and destination of its first packet, before translation.
    pub original: (SocketAddr, SocketAddr),
    /// Source and destination of an answer, before that is translated back.
    pub reply: (SocketAddr, SocketAddr),
    /// Whether the kernel's NAT translates its destination. IPVS, which translates by itself, writes what it does into `reply`
    /// alone.
    pub by_nat: bool,
    /// Whether it is a TCP connection that has ended.
    pub is_over: bool,
}

/// The tracked connections can't be listed, or one of them can't be deleted.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// No conversation with the kernel.
    #[error("connection tracking can't be spoken to: {0}")]
    Open(#[source] SocketError),
    /// The listing failed.
    #[error("the tracked connections can't be listed: {0}")]
    List(#[source] SocketError),
    /// The listing was interrupted each time it was tried.
    #[error("the tracked connections can't be listed: interrupted {TRIES} times")]
    Restless,
    /// One can't be deleted.
    #[error("the tracked connection from {client} to {service} can't be deleted: {source}")]
    Delete {
        /// Who sent.
        client: SocketAddr,
        /// Whereto.
        service: SocketAddr,
        /// Why.
        source: SocketError,
    },
}

/// Connection tracking of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    sequence: u32,
    /// The fields that the kernel compares for us; none once it has refused to.
    filter: Option<u32>,
}

impl Conntrack {
    /// Opens a conversation with the kernel.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open() -> Result<Self, ConntrackError> {
        Ok(Self {
            socket: Socket::open().map_err(ConntrackError::Open)?,
            sequence: 0,
            filter: Some(FILTER_PROTOCOL),
        })
    }

    /// The tracked UDP connections of a family, sorted. One that can't be understood is left out.
    ///
    /// # Errors
    /// The kernel refused, or the listing was interrupted again and again.
    pub fn udp_flows(&mut self, family: Family) -> Result<Vec<Flow>, ConntrackError> {
        let mut flows = retried(|| {
            let mut flows = Vec::new();
            match self.list(family, self.filter, |message| flows.extend(flow(message))) {
                // What a kernel from before 5.8 makes of the filter is its own affair; it can do without.
                Err(SocketError::Refused { .. }) if self.filter.take().is_some() => Err(SocketError::Interrupted),
                done => done.map(|()| flows),
            }
        })?;
        flows.sort_unstable();
        // When the kernel's table grows during the listing, an entry may be seen twice.
        flows.dedup();
        Ok(flows)
    }

    /// All tracked connections of a family, sorted. One that can't be understood is left out.
    ///
    /// # Errors
    /// The kernel refused, or the listing was interrupted again and again.
    pub fn tracked(&mut self, family: Family) -> Result<Vec<Tracked>, ConntrackError> {
        let mut all = retried(|| {
            let mut all = Vec::new();
            self.list(family, None, |message| all.extend(tracked(message)))?;
            Ok(all)
        })?;
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Deletes an entry, so that its client's next datagram picks an endpoint anew. Tells if it was there still.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn delete(&mut self, flow: &Flow) -> Result<bool, ConntrackError> {
        let (client, service) = flow.original;
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let kind = SUBSYSTEM << 8 | kind::DELETE;
        let family = number_of(Family::of(service.ip()));
        let start = begin_message(&mut bytes, kind, flag::ACKNOWLEDGE, self.sequence, family, 0);
        // Never without the addresses: then the kernel would forget every connection of the node.
        let direction = begin_nested(&mut bytes, entry::ORIGINAL);
        write_addresses(&mut bytes, client.ip(), service.ip());
        write_transport(&mut bytes, Some((client.port(), service.port())));
        end_attribute(&mut bytes, direction);
        if let Some(zone) = flow.zone {
            attribute(&mut bytes, entry::ZONE, &zone.to_be_bytes());
        }
        // With its number, so that an entry that was made anew meanwhile stays.
        attribute(&mut bytes, entry::ID, &flow.id.to_be_bytes());
        end_message(&mut bytes, start);
        match self.socket.commit(&bytes, self.sequence, self.sequence) {
            Ok(()) => Ok(true),
            Err(SocketError::Refused { source, .. }) if is(&source, Errno::ENOENT) => Ok(false),
            Err(source) => Err(ConntrackError::Delete {
                client,
                service,
                source,
            }),
        }
    }

    /// Hands every entry of a family to `each`; of UDP only, if the kernel is to compare these fields.
    fn list(&mut self, family: Family, filter: Option<u32>, each: impl FnMut(Received<'_>)) -> Result<(), SocketError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let kind = SUBSYSTEM << 8 | kind::GET;
        let start = begin_message(&mut bytes, kind, flag::DUMP, self.sequence, number_of(family), 0);
        if let Some(fields) = filter {
            let direction = begin_nested(&mut bytes, entry::ORIGINAL);
            write_transport(&mut bytes, None);
            end_attribute(&mut bytes, direction);
            let filter = begin_nested(&mut bytes, entry::FILTER);
            attribute(&mut bytes, FILTER_ORIGINAL, &fields.to_ne_bytes());
            end_attribute(&mut bytes, filter);
        }
        end_message(&mut bytes, start);
        self.socket.dump(&bytes, each)
    }
}

/// The flows that no serving endpoint answers: their original destination is a VIP of these, and who replies serves it no
/// more. A VIP without any endpoint is left alone, as kube-proxy does: there is nobody to whom its clients could go instead.
pub fn stale<'a>(flows: &'a [Flow], serving: &BTreeMap<Vip, BTreeSet<Endpoint>>) -> Vec<&'a Flow> {
    let is_stale = |flow: &&Flow| {
        let vip = Vip {
            address: flow.original.1.ip(),
            protocol: Protocol::Udp,
            port: flow.original.1.port(),
        };
        let replies = Endpoint {
            address: flow.reply_source.ip(),
            port: flow.reply_source.port(),
        };
        serving
            .get(&vip)
            .is_some_and(|endpoints| !endpoints.is_empty() && !endpoints.contains(&replies))
    };
    flows.iter().filter(is_stale).collect()
}

/// Tries an interrupted listing again, a bounded number of times.
fn retried<T>(mut read: impl FnMut() -> Result<T, SocketError>) -> Result<T, ConntrackError> {
    for _ in 0..TRIES {
        match read() {
            Err(SocketError::Interrupted) => {}
            Err(SocketError::Refused { source, .. }) if is(&source, Errno::EINTR) => {}
            done => return done.map_err(ConntrackError::List),
        }
    }
    Err(ConntrackError::Restless)
}

fn is(error: &std::io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// The family's number (`AF_INET`, `AF_INET6`).
const fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Both addresses are of one family: a flow has no other.
fn write_addresses(bytes: &mut Vec<u8>, source: IpAddr, destination: IpAddr) {
    let start = begin_nested(bytes, tuple::ADDRESSES);
    for (address, kind4, kind6) in [
        (source, addresses::SOURCE4, addresses::SOURCE6),
        (destination, addresses::DESTINATION4, addresses::DESTINATION6),
    ] {
        match address {
            IpAddr::V4(address) => attribute(bytes, kind4, &address.octets()),
            IpAddr::V6(address) => attribute(bytes, kind6, &address.octets()),
        }
    }
    end_attribute(bytes, start);
}

/// UDP, and its source and destination ports if they matter.
fn write_transport(bytes: &mut Vec<u8>, ports: Option<(u16, u16)>) {
    let start = begin_nested(bytes, tuple::TRANSPORT);
    attribute(bytes, transport::PROTOCOL, &[Protocol::Udp.number()]);
    if let Some((source, destination)) = ports {
        attribute(bytes, transport::SOURCE, &source.to_be_bytes());
        attribute(bytes, transport::DESTINATION, &destination.to_be_bytes());
    }
    end_attribute(bytes, start);
}

/// The UDP flow in a message; none if it is another protocol's, or makes no sense.
fn flow(message: Received<'_>) -> Option<Flow> {
    if message.kind != SUBSYSTEM << 8 | kind::NEW {
        return None;
    }
    let original = find(message.body(), entry::ORIGINAL)?;
    // A zone may hold for one direction only; then it stands there.
    let zone = find(message.body(), entry::ZONE).or_else(|| find(original, tuple::ZONE));
    let (Protocol::Udp, original) = direction(original)? else {
        return None;
    };
    Some(Flow {
        original,
        reply_source: direction(find(message.body(), entry::REPLY)?)?.1.0,
        zone: zone.and_then(half),
        id: find(message.body(), entry::ID).and_then(number)?,
    })
}

/// The connection in a message; none if its protocol is none that Services balance, or if it makes no sense.
fn tracked(message: Received<'_>) -> Option<Tracked> {
    if message.kind != SUBSYSTEM << 8 | kind::NEW {
        return None;
    }
    let (protocol, original) = direction(find(message.body(), entry::ORIGINAL)?)?;
    let status = find(message.body(), entry::STATUS).and_then(number)?;
    let tcp_state = find(message.body(), entry::PROTOCOL_STATE)
        .and_then(|of_protocol| find(find(of_protocol, TCP_STATE[0])?, TCP_STATE[1])?.first());
    Some(Tracked {
        protocol,
        original,
        reply: direction(find(message.body(), entry::REPLY)?)?.1,
        by_nat: status & DESTINATION_TRANSLATED != 0,
        is_over: tcp_state.is_some_and(|state| TCP_OVER.contains(state)),
    })
}

/// Protocol, and source and destination, of a direction.
fn direction(direction: &[u8]) -> Option<(Protocol, (SocketAddr, SocketAddr))> {
    let ips = find(direction, tuple::ADDRESSES)?;
    let transport = find(direction, tuple::TRANSPORT)?;
    let protocol = Protocol::from_number(*find(transport, transport::PROTOCOL)?.first()?)?;
    let address = |kind4, kind6| {
        find(ips, kind4)
            .and_then(|bytes| Some(IpAddr::from(*bytes.first_chunk::<4>()?)))
            .or_else(|| find(ips, kind6).and_then(|bytes| Some(IpAddr::from(*bytes.first_chunk::<16>()?))))
    };
    let port = |kind| find(transport, kind).and_then(half);
    let source = SocketAddr::new(
        address(addresses::SOURCE4, addresses::SOURCE6)?,
        port(transport::SOURCE)?,
    );
    let destination = SocketAddr::new(
        address(addresses::DESTINATION4, addresses::DESTINATION6)?,
        port(transport::DESTINATION)?,
    );
    Some((protocol, (source, destination)))
}

/// A short number in network order.
fn half(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*value.first_chunk::<2>()?))
}

#[cfg(test)]
mod tests;
