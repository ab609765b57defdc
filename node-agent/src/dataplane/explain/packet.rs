//! The question: the first packet of which connection, from whom.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nftfleet_domain::service::{Family, Vip};
use serde::Serialize;

use crate::dataplane::desired::PodMatch;

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it goes.
    pub to: Vip,
    /// Where it comes from; none means anybody outside.
    pub from: Option<IpAddr>,
    /// The device through which it comes.
    pub device: Option<String>,
}

/// No packet is like that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// The two addresses are of different families.
    #[error("--from is an {from} address, but the destination is an {to} address: both must be of one family")]
    Families {
        /// The source's.
        from: Family,
        /// The destination's.
        to: Family,
    },
}

impl Packet {
    /// A packet, if there can be one like that.
    ///
    /// # Errors
    /// See [`BadPacket`].
    pub fn new(to: Vip, from: Option<IpAddr>, device: Option<String>) -> Result<Self, BadPacket> {
        let families = (from.map(Family::of), Family::of(to.address));
        match families {
            (Some(from), to) if from != to => Err(BadPacket::Families { from, to }),
            _ => Ok(Self { to, from, device }),
        }
    }
}

/// Who sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Neither a pod nor the node.
    Outside,
    /// Who the rules take for a pod.
    Pod,
    /// The node itself.
    Node,
}

/// A packet's source as the rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Who sends it.
    pub origin: Origin,
    /// Whether the rules take it for a pod's. So they take the node's own too, if its address is among those of pods.
    pub is_pod: bool,
}

impl Source {
    /// Somebody of this kind.
    pub fn some(origin: Origin) -> Self {
        Self {
            origin,
            is_pod: origin == Origin::Pod,
        }
    }

    /// Who sends this packet. Packets of the node itself come through no device.
    pub fn of(packet: &Packet, own: &BTreeSet<IpAddr>, pods: Option<&PodMatch>) -> Self {
        let Some(from) = packet.from else {
            return Self::some(Origin::Outside);
        };
        let is_own = from.is_loopback() || own.contains(&from);
        let device = packet.device.as_deref().filter(|_| !is_own);
        let is_pod = match pods {
            None => false,
            Some(PodMatch::Source(network)) => network.contains(&from),
            Some(PodMatch::Interface(name)) => device == Some(name),
            Some(PodMatch::InterfacePrefix(prefix)) => device.is_some_and(|device| device.starts_with(prefix)),
        };
        let origin = match (is_own, is_pod) {
            (true, _) => Origin::Node,
            (false, true) => Origin::Pod,
            (false, false) => Origin::Outside,
        };
        Self { origin, is_pod }
    }
}
