//! What `nft` keeps beside our objects in the kernel so that its listing can print them: comments, and the expressions that
//! a set's key and data are types of.
//!
//! The kernel does not look at these bytes. Their shape is that of nft 1.0.6 (libnftables' `udata`), which readers of
//! Debian 12 understand; newer writers add types that crash older readers (kubernetes/kubernetes#136786).

use nftfleet_domain::service::Family;

use crate::dataplane::expression::Field;
use crate::dataplane::layout::Set;

/// `NFTNL_UDATA_SET_*`.
mod kind {
    pub const KEY_BYTE_ORDER: u8 = 0;
    pub const DATA_BYTE_ORDER: u8 = 1;
    pub const KEY_TYPEOF: u8 = 3;
    pub const DATA_TYPEOF: u8 = 4;
    pub const DATA_INTERVAL: u8 = 6;
    pub const COMMENT: u8 = 7;
}

/// Kinds of expression, numbered as in libnftables.
mod expression {
    pub const PAYLOAD: u32 = 7;
    pub const META: u32 = 9;
    pub const CONCATENATION: u32 = 13;
    pub const NUMGEN: u32 = 23;
}

/// Byte orders, numbered as in libnftables: none for a concatenation, the host's for a priority, big endian for an address.
const BYTE_ORDER_NONE: u32 = 0;
const BYTE_ORDER_HOST_ENDIAN: u32 = 1;
const BYTE_ORDER_BIG_ENDIAN: u32 = 2;

/// A value behind its kind and length, each one byte.
fn entry(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    let mut bytes = Vec::with_capacity(2 + value.len());
    bytes.extend([kind, length]);
    bytes.extend(&value[..usize::from(length)]);
    bytes
}

fn number(kind: u8, value: u32) -> Vec<u8> {
    entry(kind, &value.to_ne_bytes())
}

fn text(kind: u8, value: &str) -> Vec<u8> {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    entry(kind, &bytes)
}

/// The comment of a table, chain or rule.
pub fn comment(value: &str) -> Vec<u8> {
    text(0, value)
}

/// The text of a comment.
pub fn commented(bytes: &[u8]) -> Option<String> {
    let [0, length, value @ ..] = bytes else {
        return None;
    };
    let value = value.get(..usize::from(*length))?;
    Some(String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned())
}

/// What a set keeps.
pub fn of_set(set: &Set) -> Vec<u8> {
    let mut bytes = number(kind::KEY_BYTE_ORDER, byte_order(&set.key));
    if !set.data.is_empty() {
        bytes.extend(number(kind::DATA_BYTE_ORDER, byte_order(&set.data)));
    }
    bytes.extend(entry(kind::KEY_TYPEOF, &typeof_fields(set.family, &set.key)));
    if !set.data.is_empty() {
        bytes.extend(entry(kind::DATA_TYPEOF, &typeof_fields(set.family, &set.data)));
        bytes.extend(number(kind::DATA_INTERVAL, 0));
    }
    if let Some(comment) = &set.comment {
        bytes.extend(text(kind::COMMENT, comment));
    }
    bytes
}

fn byte_order(fields: &[Field]) -> u32 {
    match fields {
        [Field::Priority] => BYTE_ORDER_HOST_ENDIAN,
        [_] => BYTE_ORDER_BIG_ENDIAN,
        _ => BYTE_ORDER_NONE,
    }
}

fn typeof_fields(family: Family, fields: &[Field]) -> Vec<u8> {
    if let [field] = fields {
        return typeof_field(family, *field);
    }
    let parts: Vec<u8> = (0u8..)
        .zip(fields)
        .flat_map(|(i, field)| entry(i, &typeof_field(family, *field)))
        .collect();
    [number(0, expression::CONCATENATION), entry(1, &parts)].concat()
}

/// The kind of expression, then its own properties.
fn typeof_field(family: Family, field: Field) -> Vec<u8> {
    let (kind, properties) = match field {
        Field::Source | Field::Destination | Field::DestinationPort => {
            let (header, property) = header_property(family, field);
            (expression::PAYLOAD, [number(0, header), number(1, property)].concat())
        }
        // NFT_META_L4PROTO.
        Field::Protocol => (expression::META, number(0, 16)),
        // NFT_META_PRIORITY.
        Field::Priority => (expression::META, number(0, 2)),
        // Random, modulus 65536, offset 0. The modulus does not bind the rules, which draw from fewer.
        Field::Slot => (
            expression::NUMGEN,
            [number(0, 1), number(1, 65536), number(2, 0)].concat(),
        ),
    };
    [number(0, kind), entry(1, &properties)].concat()
}

/// A header and the property in it, numbered as in libnftables.
fn header_property(family: Family, field: Field) -> (u32, u32) {
    match (family, field) {
        (Family::V4, Field::Source) => (12, 11),
        (Family::V4, _) if field == Field::Destination => (12, 12),
        (Family::V6, Field::Source) => (13, 8),
        (Family::V6, _) if field == Field::Destination => (13, 9),
        _ => (11, 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes
            .iter()
            .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }

    /// Read from the kernel after nft 1.0.6 had made the set.
    #[test]
    fn the_bytes_are_those_of_nft() {
        let map = Set {
            name: "endpoints6".to_owned(),
            family: Family::V6,
            key: vec![Field::Destination, Field::Protocol, Field::DestinationPort, Field::Slot],
            data: vec![Field::Destination, Field::DestinationPort],
            interval: false,
            dynamic: None,
            comment: Some("VIP and slot to endpoint".to_owned()),
        };
        assert_eq!(
            hex(&of_set(&map)),
            "000400000000010400000000036000040d00000001580014000407000000010c00040d000000010409000000010e000409000000010600\
             04100000000214000407000000010c00040b000000010402000000031a000417000000011200040100000001040000010002040000000004\
             3400040d000000012c0014000407000000010c00040d0000000104090000000114000407000000010c00040b0000000104020000000604\
             00000000071956495020616e6420736c6f7420746f20656e64706f696e7400"
        );
        let set = Set {
            name: "cluster-ips4".to_owned(),
            family: Family::V4,
            key: vec![Field::Destination],
            data: vec![],
            interval: false,
            dynamic: None,
            comment: Some("all ClusterIPs".to_owned()),
        };
        assert_eq!(
            hex(&of_set(&set)),
            "0004020000000314000407000000010c00040c00000001040c000000070f616c6c20436c757374657249507300"
        );
    }
}
