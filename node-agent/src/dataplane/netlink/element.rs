//! Elements as bytes: the keys and data of our sets and maps.
//!
//! Written by hand instead of through libnftnl, because this is the hot path: a full load is hundreds of thousands of
//! elements (docs/decisions/0003-element-encoder.md). Every field takes whole 32-bit words; addresses and ports are in
//! network order, a slot is in host order because `numgen` writes it so.

use std::net::IpAddr;

use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};

use crate::dataplane::desired::Element;
use crate::dataplane::layout::names;

/// The name of the set or map that holds an element.
pub fn set_of(element: &Element) -> String {
    match element {
        Element::Slot(vip, ..) => names::endpoints(Family::of(vip.address)),
        Element::Class(vip, class) => names::service(Family::of(vip.address), *class),
        Element::ClusterIp(address) => names::cluster_ips(Family::of(*address)),
        Element::Local(_, endpoint) => names::hairpin(Family::of(endpoint.address)),
    }
}

/// Appends an element's key.
pub fn write_key(element: &Element, bytes: &mut Vec<u8>) {
    match element {
        Element::Slot(vip, slot, _) => {
            write_vip(vip, bytes);
            bytes.extend(u32::from(*slot).to_ne_bytes());
        }
        Element::Class(vip, _) => write_vip(vip, bytes),
        Element::ClusterIp(address) => write_address(*address, bytes),
        Element::Local(protocol, endpoint) => {
            write_address(endpoint.address, bytes);
            let same = Vip {
                address: endpoint.address,
                protocol: *protocol,
                port: endpoint.port,
            };
            write_vip(&same, bytes);
        }
    }
}

/// Appends an element's data, if its map has any, and says whether it did.
pub fn write_data(element: &Element, bytes: &mut Vec<u8>) -> bool {
    let Element::Slot(_, _, endpoint) = element else {
        return false;
    };
    write_address(endpoint.address, bytes);
    write_port(endpoint.port, bytes);
    true
}

fn write_vip(vip: &Vip, bytes: &mut Vec<u8>) {
    write_address(vip.address, bytes);
    bytes.extend([vip.protocol.number(), 0, 0, 0]);
    write_port(vip.port, bytes);
}

fn write_address(address: IpAddr, bytes: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
}

fn write_port(port: u16, bytes: &mut Vec<u8>) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
}

/// What a set or map holds, so that its bytes can be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `endpointsN`.
    Slots,
    /// `serviceN-C`.
    Class(u16),
    /// `cluster-ipsN`.
    ClusterIps,
    /// `hairpinN`.
    Local,
}

/// Reads an element back; none if the bytes are not of this kind, which means that somebody else wrote them.
pub fn read(kind: Kind, family: Family, key: &[u8], data: &[u8]) -> Option<Element> {
    let mut key = Reader { family, bytes: key };
    let element = match kind {
        Kind::Slots => {
            let vip = key.vip()?;
            let slot = u16::try_from(u32::from_ne_bytes(key.take()?)).ok()?;
            let mut data = Reader { family, bytes: data };
            let endpoint = Endpoint {
                address: data.address()?,
                port: data.port()?,
            };
            Element::Slot(vip, slot, endpoint)
        }
        Kind::Class(class) => Element::Class(key.vip()?, class),
        Kind::ClusterIps => Element::ClusterIp(key.address()?),
        Kind::Local => {
            let source = key.address()?;
            let Vip {
                address,
                protocol,
                port,
            } = key.vip()?;
            if source != address {
                return None;
            }
            Element::Local(protocol, Endpoint { address, port })
        }
    };
    key.bytes.is_empty().then_some(element)
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

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            address in address(), protocol in protocol(), port in 1u16.., slot in 0u16.., target in 1u16..
        ) {
            let vip = Vip { address, protocol, port };
            let endpoint = Endpoint { address, port: target };
            let cases = [
                (Kind::Slots, Element::Slot(vip, slot, endpoint)),
                (Kind::Class(12), Element::Class(vip, 12)),
                (Kind::ClusterIps, Element::ClusterIp(address)),
                (Kind::Local, Element::Local(protocol, endpoint)),
            ];
            for (kind, element) in cases {
                let (mut key, mut data) = (Vec::new(), Vec::new());
                write_key(&element, &mut key);
                write_data(&element, &mut data);
                prop_assert_eq!(read(kind, Family::of(address), &key, &data), Some(element));
                key.push(0);
                prop_assert_eq!(read(kind, Family::of(address), &key, &data), None);
            }
        }
    }
}
