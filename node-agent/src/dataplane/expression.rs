//! The instructions of rules as plain values, in the shape that `nft` itself writes: its listing must print them again.

use nftfleet_domain::service::Family;

/// A field of a packet, or the slot that is drawn for it, as part of a set's key or data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The source address.
    Source,
    /// The destination address.
    Destination,
    /// The transport protocol's number.
    Protocol,
    /// The destination port.
    DestinationPort,
    /// A number drawn at random.
    Slot,
}

impl Field {
    /// How many 32-bit words it takes in a key.
    pub const fn words(self, family: Family) -> u32 {
        match (self, family) {
            (Self::Source | Self::Destination, Family::V6) => 4,
            _ => 1,
        }
    }

    /// An address's offset in the network header, in bytes; 0 for other fields.
    pub const fn offset(self, family: Family) -> u32 {
        match (self, family) {
            (Self::Source, Family::V4) => 12,
            (Self::Destination, Family::V4) => 16,
            (Self::Source, Family::V6) => 8,
            (Self::Destination, Family::V6) => 24,
            _ => 0,
        }
    }
}

/// Which header an offset counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The network header.
    Network,
    /// The transport header.
    Transport,
}

/// A property of the packet that is not in its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    /// `nfproto`: the packet's family.
    Family,
    /// `l4proto`: its transport protocol.
    Protocol,
    /// Its mark.
    Mark,
}

/// A property of the packet's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtKey {
    /// The `IPS_*` bits.
    Status,
}

/// How a register is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Goes on if equal.
    Equal,
    /// Goes on if not equal.
    NotEqual,
}

/// Where a rule ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Runs a chain and comes back.
    Jump(String),
    /// Runs a chain and comes back to whoever jumped here.
    Goto(String),
}

/// One instruction. Registers are nftables' own numbers: 1-4 of 16 bytes, 8-23 of 4 bytes over the same memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads bytes of a header.
    LoadPayload {
        /// The header.
        base: Base,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        length: u32,
        /// Where to.
        register: u32,
    },
    /// Loads a property of the packet.
    LoadMeta {
        /// Which.
        key: MetaKey,
        /// Where to.
        register: u32,
    },
    /// Sets a property of the packet.
    SetMeta {
        /// Which.
        key: MetaKey,
        /// Where from.
        register: u32,
    },
    /// Loads a property of the connection.
    LoadCt {
        /// Which.
        key: CtKey,
        /// Where to.
        register: u32,
    },
    /// Ends the rule unless the comparison holds.
    Compare {
        /// What is compared.
        register: u32,
        /// How.
        comparison: Comparison,
        /// With what.
        value: Vec<u8>,
    },
    /// `register = (register & mask) ^ xor`.
    Bitwise {
        /// From and to.
        register: u32,
        /// The mask.
        mask: Vec<u8>,
        /// What is flipped after.
        xor: Vec<u8>,
    },
    /// Draws a number from 0 to `modulus` - 1.
    Random {
        /// One more than the largest.
        modulus: u32,
        /// Where to.
        register: u32,
    },
    /// Looks a key up; ends the rule on a miss.
    Lookup {
        /// Where the key begins.
        register: u32,
        /// The set's or map's name.
        set: String,
        /// Where a map's data goes.
        into: Option<u32>,
    },
    /// Translates the destination; ends the evaluation.
    Dnat {
        /// The address's family.
        family: Family,
        /// The register of the address.
        address: u32,
        /// The register of the port.
        port: u32,
    },
    /// Translates the source to the outgoing device's address, at a random free port.
    MasqueradeFullyRandom,
    /// Refuses a TCP connection.
    RejectTcpReset,
    /// Refuses with ICMP's port unreachable, of the packet's own family.
    RejectPortUnreachable,
    /// Goes to another chain.
    Verdict(Verdict),
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its instructions, in order.
    pub expressions: Vec<Expression>,
    /// For the reader of a listing.
    pub comment: Option<&'static str>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(expressions: Vec<Expression>) -> Self {
        Self {
            expressions,
            comment: None,
        }
    }

    /// A rule with a comment.
    pub fn with_comment(expressions: Vec<Expression>, comment: &'static str) -> Self {
        Self {
            expressions,
            comment: Some(comment),
        }
    }
}

/// The register at which `nft` puts the `word`-th 32-bit word of a concatenation: every fourth is a 16-byte register.
pub const fn register_of_word(word: u32) -> u32 {
    if word.is_multiple_of(4) { 1 + word / 4 } else { 8 + word }
}

/// Loads the fields one after another, as a key begins at register 1. The slot is drawn, not loaded: see
/// [`Expression::Random`].
pub fn load_fields(family: Family, fields: &[Field]) -> Vec<Expression> {
    let mut word = 0;
    let mut loads = Vec::with_capacity(fields.len());
    for field in fields {
        let register = register_of_word(word);
        word += field.words(family);
        loads.push(match field {
            Field::Source | Field::Destination => Expression::LoadPayload {
                base: Base::Network,
                offset: field.offset(family),
                length: 4 * field.words(family),
                register,
            },
            Field::Protocol => Expression::LoadMeta {
                key: MetaKey::Protocol,
                register,
            },
            Field::DestinationPort => Expression::LoadPayload {
                base: Base::Transport,
                offset: 2,
                length: 2,
                register,
            },
            Field::Slot => continue,
        });
    }
    loads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_those_that_nft_uses() {
        // From `nft --debug=netlink` 1.0.6 for concatenations of IPv4 and IPv6.
        assert_eq!([0, 1, 2, 3].map(register_of_word), [1, 9, 10, 11]);
        assert_eq!([0, 4, 5, 6].map(register_of_word), [1, 2, 13, 14]);
    }
}
