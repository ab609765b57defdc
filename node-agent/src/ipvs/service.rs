//! Virtual services and destinations as plain values.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use nftfleet_domain::service::{Family, Protocol, Vip};

/// `IP_VS_SVC_F_PERSISTENT`: a client stays with its destination.
const PERSISTENT: u32 = 1;

/// What a virtual service answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// An address, protocol and port. Port 0 stands for all.
    Vip(Vip),
    /// The packets of a family that carry a firewall mark.
    Mark {
        /// The family.
        family: Family,
        /// The mark.
        mark: u32,
    },
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vip(vip) => vip.fmt(f),
            Self::Mark { family, mark } => write!(f, "{family} mark {mark}"),
        }
    }
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VirtualService {
    /// What it answers to.
    pub frontend: Frontend,
    /// The scheduler's name, for example `rr`.
    pub scheduler: String,
    /// The kernel's flags (`IP_VS_SVC_F_*`).
    pub flags: u32,
    /// For how many seconds a client stays with its destination, if it does.
    pub timeout: u32,
}

impl VirtualService {
    /// Whether clients stay with their destination.
    pub const fn is_persistent(&self) -> bool {
        self.flags & PERSISTENT != 0
    }
}

/// How packets come to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forwarding {
    /// The destination is translated, as kube-proxy does it (`-m`).
    Masquerade,
    /// To the node itself.
    Local,
    /// Through a tunnel (`-i`).
    Tunnel,
    /// As they are, to another machine (`-g`).
    Direct,
    /// Past the destination: of a cache cluster.
    Bypass,
    /// A way that we don't know.
    Unknown(u32),
}

impl Forwarding {
    /// By the kernel's number (`IP_VS_CONN_F_FWD_MASK`).
    pub const fn from_number(number: u32) -> Self {
        match number & 7 {
            0 => Self::Masquerade,
            1 => Self::Local,
            2 => Self::Tunnel,
            3 => Self::Direct,
            4 => Self::Bypass,
            other => Self::Unknown(other),
        }
    }

    /// The kernel's number.
    pub const fn number(self) -> u32 {
        match self {
            Self::Masquerade => 0,
            Self::Local => 1,
            Self::Tunnel => 2,
            Self::Direct => 3,
            Self::Bypass => 4,
            Self::Unknown(number) => number,
        }
    }
}

/// A destination of a virtual service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Its address and port.
    pub address: SocketAddr,
    /// Its share of new connections; 0 gets none, and keeps those that it has.
    pub weight: u32,
    /// How packets come to it.
    pub forwarding: Forwarding,
    /// At how many connections it gets no more, and at how many some again; 0 for no limit.
    pub thresholds: (u32, u32),
}

/// The 16 bytes in which IPVS writes an address of any family.
pub(super) fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// The address in IPVS' 16 bytes.
pub(super) fn address(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    Some(match family {
        Family::V4 => IpAddr::from(*bytes.first_chunk::<4>()?),
        Family::V6 => IpAddr::from(*bytes.first_chunk::<16>()?),
    })
}

/// The family's number (`AF_INET`, `AF_INET6`).
pub(super) const fn family_number(family: Family) -> u16 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// The protocol in an attribute.
pub(super) fn protocol(number: u16) -> Option<Protocol> {
    Protocol::from_number(u8::try_from(number).ok()?)
}
