//! Elements as bytes: the keys and data of our sets and maps.
//!
//! Written by hand instead of through libnftnl, because this is the hot path: a full load is hundreds of thousands of
//! elements (docs/decisions/0003-element-encoder.md). Every field takes whole 32-bit words; addresses and ports are in
//! network order; slots, tickets and numbers are in host order because `numgen` and `meta` write them so.

use std::net::IpAddr;

use ipnet::IpNet;
use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};

use super::message::{attribute, attributes, begin_attribute, begin_nested, end_attribute, find, number};
use super::userdata;
use crate::dataplane::desired::{Name, Route};
use crate::dataplane::layout::{LOCAL_SLOTS, TICKETS, names};
use crate::dataplane::programmed::{Element, Group, Which};

/// Attributes of an element (`NFTA_SET_ELEM_*`).
mod kind {
    pub const KEY: u16 = 1;
    pub const DATA: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const USERDATA: u16 = 6;
    pub const KEY_END: u16 = 10;
}

/// `NFT_SET_ELEM_INTERVAL_END`: the first key after a range.
const INTERVAL_END: u32 = 1;

/// A set or map that holds elements of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetId {
    /// `endpointsN`.
    Slots(Family),
    /// `stickyN`.
    Tickets(Family),
    /// `affinity-idsN` and `affinity-local-idsN`.
    Numbers(Family, Which),
    /// `cluster-ipsN`.
    ClusterIps(Family),
    /// `external-ipsN`.
    ExternalIps(Family),
    /// `nodeport-ipsN`.
    NodePortIps(Family),
    /// `service-cidrsN`.
    ServiceCidrs(Family),
    /// `to-allN`, `to-localN`, `no-endpointsN`, `no-local-endpointsN`.
    Route(Family, Route),
    /// `firewalledN`.
    Firewalled(Family),
    /// `firewall-sourcesN`.
    Sources(Family),
    /// `hairpinN`.
    Hairpins(Family),
    /// `serviceN-C`, `localN-C`, `affinityN-T-C`, `local-affinityN-T-C`.
    Group(Family, Which, Group),
}

impl SetId {
    /// The set or map that holds an element.
    pub const fn of(element: &Element) -> Self {
        match element {
            Element::Slot(vip, ..) => Self::Slots(Family::of(vip.address)),
            Element::Ticket(vip, ..) => Self::Tickets(Family::of(vip.address)),
            Element::Number(vip, which, _) => Self::Numbers(Family::of(vip.address), *which),
            Element::ClusterIp(address, _) => Self::ClusterIps(Family::of(*address)),
            Element::ExternalIp(address) => Self::ExternalIps(Family::of(*address)),
            Element::NodePortIp(address) => Self::NodePortIps(Family::of(*address)),
            Element::ServiceCidr(network) => Self::ServiceCidrs(family_of(network)),
            Element::Route(vip, route, _) => Self::Route(Family::of(vip.address), *route),
            Element::Firewalled(vip) => Self::Firewalled(Family::of(vip.address)),
            Element::Source(vip, _) => Self::Sources(Family::of(vip.address)),
            Element::Hairpin(_, endpoint) => Self::Hairpins(Family::of(endpoint.address)),
            Element::Member(vip, which, group) => Self::Group(Family::of(vip.address), *which, *group),
        }
    }

    /// Those that are always there and hold elements of ours, but the sets of groups.
    pub fn constant(family: Family) -> Vec<Self> {
        let mut sets = vec![
            Self::Slots(family),
            Self::Tickets(family),
            Self::ClusterIps(family),
            Self::ExternalIps(family),
            Self::NodePortIps(family),
            Self::ServiceCidrs(family),
            Self::Firewalled(family),
            Self::Sources(family),
            Self::Hairpins(family),
        ];
        sets.extend(Which::BOTH.map(|which| Self::Numbers(family, which)));
        sets.extend(Route::ALL.map(|route| Self::Route(family, route)));
        sets
    }

    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Slots(family) => names::endpoints(family),
            Self::Tickets(family) => names::sticky(family),
            Self::Numbers(family, which) => names::affinity_ids(family, which),
            Self::ClusterIps(family) => names::cluster_ips(family),
            Self::ExternalIps(family) => names::external_ips(family),
            Self::NodePortIps(family) => names::nodeport_ips(family),
            Self::ServiceCidrs(family) => names::service_cidrs(family),
            Self::Route(family, route) => names::route(family, route),
            Self::Firewalled(family) => names::firewalled(family),
            Self::Sources(family) => names::firewall_sources(family),
            Self::Hairpins(family) => names::hairpin(family),
            Self::Group(family, which, group) => names::group(family, which, group),
        }
    }

    const fn family(self) -> Family {
        match self {
            Self::Slots(family)
            | Self::Tickets(family)
            | Self::Numbers(family, _)
            | Self::ClusterIps(family)
            | Self::ExternalIps(family)
            | Self::NodePortIps(family)
            | Self::ServiceCidrs(family)
            | Self::Route(family, _)
            | Self::Firewalled(family)
            | Self::Sources(family)
            | Self::Hairpins(family)
            | Self::Group(family, ..) => family,
        }
    }
}

const fn family_of(network: &IpNet) -> Family {
    match network {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    }
}

/// Appends an element to a list of elements; its key alone if it is to be taken away.
pub fn append(bytes: &mut Vec<u8>, element: &Element, adding: bool) {
    let entry = begin_nested(bytes, 1);
    nested(bytes, kind::KEY, |bytes| write_key(bytes, element, End::First));
    match element {
        Element::Source(..) => nested(bytes, kind::KEY_END, |bytes| write_key(bytes, element, End::Last)),
        Element::Slot(_, _, _, endpoint) | Element::Ticket(_, _, _, endpoint) if adding => {
            nested(bytes, kind::DATA, |bytes| {
                write_address(bytes, endpoint.address);
                write_port(bytes, endpoint.port);
            });
        }
        Element::Number(_, _, number) if adding => {
            nested(bytes, kind::DATA, |bytes| bytes.extend(number.to_ne_bytes()));
        }
        Element::ClusterIp(_, name) | Element::Route(_, _, name) if adding => {
            attribute(bytes, kind::USERDATA, &userdata::comment(name));
        }
        _ => {}
    }
    end_attribute(bytes, entry);
    // A range of a set without concatenation is two elements. The last address of all has none after it.
    if let Element::ServiceCidr(network) = element
        && let Some(after) = after(network.broadcast())
    {
        let entry = begin_nested(bytes, 1);
        nested(bytes, kind::KEY, |bytes| write_address(bytes, after));
        attribute(bytes, kind::FLAGS, &INTERVAL_END.to_be_bytes());
        end_attribute(bytes, entry);
    }
}

fn nested(bytes: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let outer = begin_nested(bytes, kind);
    let value = begin_attribute(bytes, 1);
    write(bytes);
    end_attribute(bytes, value);
    end_attribute(bytes, outer);
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_add(1).map(|n| IpAddr::from(n.to_be_bytes())),
        IpAddr::V6(address) => u128::from(address)
            .checked_add(1)
            .map(|n| IpAddr::from(n.to_be_bytes())),
    }
}

/// Which end of a range a key is for; both are the same for what is no range.
#[derive(Clone, Copy)]
enum End {
    First,
    Last,
}

fn write_key(bytes: &mut Vec<u8>, element: &Element, end: End) {
    match element {
        Element::Slot(vip, which, slot, _) => {
            write_vip(bytes, vip);
            bytes.extend((first_slot(*which) + u32::from(*slot)).to_ne_bytes());
        }
        Element::Ticket(vip, which, ticket, _) => {
            write_vip(bytes, vip);
            bytes.extend((first_ticket(*which) + u32::from(*ticket)).to_ne_bytes());
        }
        Element::Member(vip, ..) | Element::Number(vip, ..) | Element::Route(vip, ..) | Element::Firewalled(vip) => {
            write_vip(bytes, vip);
        }
        Element::Source(vip, network) => {
            write_vip(bytes, vip);
            write_address(
                bytes,
                match end {
                    End::First => network.network(),
                    End::Last => network.broadcast(),
                },
            );
        }
        Element::ClusterIp(address, _) | Element::ExternalIp(address) | Element::NodePortIp(address) => {
            write_address(bytes, *address);
        }
        Element::ServiceCidr(network) => write_address(bytes, network.network()),
        Element::Hairpin(protocol, endpoint) => {
            write_address(bytes, endpoint.address);
            let same = Vip {
                address: endpoint.address,
                protocol: *protocol,
                port: endpoint.port,
            };
            write_vip(bytes, &same);
        }
    }
}

const fn first_slot(which: Which) -> u32 {
    match which {
        Which::All => 0,
        Which::Local => LOCAL_SLOTS,
    }
}

const fn first_ticket(which: Which) -> u32 {
    match which {
        Which::All => TICKETS[0],
        Which::Local => TICKETS[1],
    }
}

fn write_vip(bytes: &mut Vec<u8>, vip: &Vip) {
    write_address(bytes, vip.address);
    bytes.extend([vip.protocol.number(), 0, 0, 0]);
    write_port(bytes, vip.port);
}

fn write_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
}

fn write_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
}

/// What was read of a list of elements.
#[derive(Debug, Default)]
pub struct Elements {
    /// Those that we may have written.
    pub read: Vec<Element>,
    /// How many there are that we never write.
    pub foreign: usize,
    firsts: Vec<IpAddr>,
    afters: Vec<IpAddr>,
}

impl Elements {
    /// Reads the elements of a list.
    pub fn take(&mut self, set: SetId, list: &[u8]) {
        for (_, element) in attributes(list) {
            let value = |kind| find(element, kind).and_then(|data| find(data, 1));
            let key = value(kind::KEY).unwrap_or_default();
            if let SetId::ServiceCidrs(family) = set {
                let is_end = find(element, kind::FLAGS).and_then(number) == Some(INTERVAL_END);
                match (Reader { family, bytes: key }.address(), is_end) {
                    (Some(address), false) => self.firsts.push(address),
                    (Some(address), true) => self.afters.push(address),
                    (None, _) => self.foreign += 1,
                }
                continue;
            }
            let comment = find(element, kind::USERDATA).and_then(userdata::commented);
            let key_end = value(kind::KEY_END).unwrap_or(key);
            match read(
                set,
                key,
                key_end,
                value(kind::DATA).unwrap_or_default(),
                comment.as_deref(),
            ) {
                Some(element) => self.read.push(element),
                None => self.foreign += 1,
            }
        }
    }

    /// Puts ranges together from their ends, once all lists of the set are read.
    pub fn close_ranges(&mut self) {
        self.afters.sort_unstable();
        for first in std::mem::take(&mut self.firsts) {
            let next = self.afters.partition_point(|after| *after <= first);
            let network = network_of(first, self.afters.get(next).copied());
            match network {
                Some(network) => self.read.push(Element::ServiceCidr(network)),
                None => self.foreign += 1,
            }
        }
    }
}

/// The network from one address to before another; none if that is no single network. No end means the last address.
fn network_of(first: IpAddr, after: Option<IpAddr>) -> Option<IpNet> {
    let bits = if first.is_ipv4() { 32 } else { 128 };
    (0..=bits)
        .filter_map(|prefix| IpNet::new(first, prefix).ok())
        .find(|network| network.network() == first && self::after(network.broadcast()) == after)
}

/// An element of a list in words, by its key; none if the bytes are not of this kind.
pub fn describe(set: SetId, element: &[u8]) -> Option<String> {
    let value = |kind| find(element, kind).and_then(|data| find(data, 1));
    let family = set.family();
    let mut key = Reader {
        family,
        bytes: value(kind::KEY)?,
    };
    Some(match set {
        SetId::Slots(_) => {
            let (vip, n) = (key.vip()?, u32::from_ne_bytes(key.take()?));
            format!("{vip}, slot {n}")
        }
        SetId::Tickets(_) => {
            let (vip, n) = (key.vip()?, u32::from_ne_bytes(key.take()?));
            format!("{vip}, ticket {n:#x}")
        }
        SetId::Sources(_) => format!("{} from {}", key.vip()?, key.address()?),
        SetId::ClusterIps(_) | SetId::ExternalIps(_) | SetId::NodePortIps(_) | SetId::ServiceCidrs(_) => {
            key.address()?.to_string()
        }
        SetId::Hairpins(_) => {
            key.address()?;
            key.vip()?.to_string()
        }
        SetId::Numbers(..) | SetId::Route(..) | SetId::Firewalled(_) | SetId::Group(..) => key.vip()?.to_string(),
    })
}

/// Reads an element back; none if the bytes are not of this kind, which means that somebody else wrote them.
fn read(set: SetId, key: &[u8], last: &[u8], data: &[u8], comment: Option<&str>) -> Option<Element> {
    let family = set.family();
    let mut key = Reader { family, bytes: key };
    let endpoint = || {
        let mut data = Reader { family, bytes: data };
        Some(Endpoint {
            address: data.address()?,
            port: data.port()?,
        })
    };
    let name = || Name::from(comment.unwrap_or_default());
    let element = match set {
        SetId::Slots(_) => {
            let (vip, n) = (key.vip()?, u32::from_ne_bytes(key.take()?));
            let (which, slot) = split(n, Which::BOTH.map(first_slot), LOCAL_SLOTS)?;
            Element::Slot(vip, which, slot, endpoint()?)
        }
        SetId::Tickets(_) => {
            let (vip, n) = (key.vip()?, u32::from_ne_bytes(key.take()?));
            let (which, ticket) = split(n, TICKETS, 1 << 16)?;
            Element::Ticket(vip, which, ticket, endpoint()?)
        }
        SetId::Numbers(_, which) => {
            let number = u32::from_ne_bytes(data.try_into().ok()?);
            Element::Number(key.vip()?, which, number)
        }
        SetId::ClusterIps(_) => Element::ClusterIp(key.address()?, name()),
        SetId::ExternalIps(_) => Element::ExternalIp(key.address()?),
        SetId::NodePortIps(_) => Element::NodePortIp(key.address()?),
        SetId::ServiceCidrs(_) => return None,
        SetId::Route(_, route) => Element::Route(key.vip()?, route, name()),
        SetId::Firewalled(_) => Element::Firewalled(key.vip()?),
        SetId::Sources(_) => {
            let (vip, first) = (key.vip()?, key.address()?);
            let mut last = Reader { family, bytes: last };
            if last.vip()? != vip {
                return None;
            }
            Element::Source(vip, network_of(first, after(last.address()?))?)
        }
        SetId::Hairpins(_) => {
            let source = key.address()?;
            let Vip {
                address,
                protocol,
                port,
            } = key.vip()?;
            if source != address {
                return None;
            }
            Element::Hairpin(protocol, Endpoint { address, port })
        }
        SetId::Group(_, which, group) => Element::Member(key.vip()?, which, group),
    };
    key.bytes.is_empty().then_some(element)
}

/// Which of two ranges of numbers a number is in, and where.
fn split(number: u32, firsts: [u32; 2], length: u32) -> Option<(Which, u16)> {
    Which::BOTH.into_iter().zip(firsts).find_map(|(which, first)| {
        let n = number.checked_sub(first).filter(|n| *n < length)?;
        Some((which, u16::try_from(n).ok()?))
    })
}

struct Reader<'a> {
    family: Family,
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = rest;
        Some(*taken)
    }

    fn address(&mut self) -> Option<IpAddr> {
        Some(match self.family {
            Family::V4 => IpAddr::from(self.take::<4>()?),
            Family::V6 => IpAddr::from(self.take::<16>()?),
        })
    }

    fn port(&mut self) -> Option<u16> {
        let [high, low, _, _] = self.take()?;
        Some(u16::from_be_bytes([high, low]))
    }

    fn vip(&mut self) -> Option<Vip> {
        let address = self.address()?;
        let [number, ..] = self.take::<4>()?;
        Some(Vip {
            address,
            protocol: Protocol::from_number(number)?,
            port: self.port()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(IpAddr::from)
        ]
    }

    fn protocol() -> impl Strategy<Value = Protocol> {
        prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)]
    }

    fn which() -> impl Strategy<Value = Which> {
        prop_oneof![Just(Which::All), Just(Which::Local)]
    }

    /// Writes one element and reads the list back.
    fn round_trip(element: &Element) -> Vec<Element> {
        let mut bytes = Vec::new();
        append(&mut bytes, element, true);
        let mut elements = Elements::default();
        elements.take(SetId::of(element), &bytes);
        elements.close_ranges();
        assert_eq!(elements.foreign, 0, "{element:?}");
        elements.read
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            address in address(), protocol in protocol(), port in 1u16.., slot in 0u16..32768, ticket in any::<u16>(),
            target in 1u16.., which in which(), prefix in 0u8..=32, number in any::<u32>(), timeout in 1u32..86401,
        ) {
            let vip = Vip { address, protocol, port };
            let endpoint = Endpoint { address, port: target };
            let network = IpNet::new(address, prefix).unwrap().trunc();
            let name = || Name::from("shop/web:http");
            let cases = [
                Element::Slot(vip, which, slot, endpoint),
                Element::Ticket(vip, which, ticket, endpoint),
                Element::Member(vip, which, Group::Class(12)),
                Element::Member(vip, which, Group::Sticky { timeout, class: 12 }),
                Element::Number(vip, which, number),
                Element::Route(vip, Route::ToAll, name()),
                Element::Route(vip, Route::ToLocal, name()),
                Element::Route(vip, Route::NoEndpoints, name()),
                Element::Route(vip, Route::NoLocalEndpoints, name()),
                Element::Firewalled(vip),
                Element::Source(vip, network),
                Element::ClusterIp(address, name()),
                Element::ExternalIp(address),
                Element::NodePortIp(address),
                Element::ServiceCidr(network),
                Element::Hairpin(protocol, endpoint),
            ];
            for element in cases {
                prop_assert_eq!(round_trip(&element), [element]);
            }
        }

        #[test]
        fn ranges_that_touch_are_told_apart(networks in proptest::collection::btree_set(0u8..=255, 1..20)) {
            let networks: Vec<IpNet> = networks
                .into_iter()
                .map(|n| IpNet::new(IpAddr::from([10, n, 0, 0]), 16).unwrap())
                .collect();
            let mut bytes = Vec::new();
            for network in networks.iter().rev() {
                append(&mut bytes, &Element::ServiceCidr(*network), true);
            }
            let mut elements = Elements::default();
            elements.take(SetId::ServiceCidrs(Family::V4), &bytes);
            elements.close_ranges();
            let read: std::collections::BTreeSet<_> = elements
                .read
                .iter()
                .map(|element| if let Element::ServiceCidr(network) = element { *network } else { panic!("{element:?}") })
                .collect();
            prop_assert_eq!(read.into_iter().collect::<Vec<_>>(), networks);
        }
    }

    #[test]
    fn what_we_never_write_is_counted() {
        let mut bytes = Vec::new();
        append(&mut bytes, &Element::ExternalIp(IpAddr::from([10, 0, 0, 1])), true);
        let mut elements = Elements::default();
        elements.take(SetId::Slots(Family::V4), &bytes);
        elements.take(SetId::ExternalIps(Family::V6), &bytes);
        assert_eq!((elements.read.len(), elements.foreign), (0, 2));
    }
}
