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
    /// The packet's priority, in which a ticket or the number of a Service's port stands while its chain is run.
    Priority,
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
    /// Its priority (`skb->priority`).
    Priority,
    /// The name of the device through which it came, 16 bytes; empty for packets of the node's own.
    InputName,
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
    /// Lets the packet go on as it is.
    Accept,
    /// Throws the packet away without a word.
    Drop,
}

/// What a rule does to a dynamic map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DynamicOperation {
    /// Puts an element in, or only renews the time limit of one that is there.
    Update,
    /// Takes an element out.
    Delete,
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
    /// Puts a value into a register.
    Immediate {
        /// Where to.
        register: u32,
        /// The value.
        value: Vec<u8>,
    },
    /// Hashes a register with Jenkins' hash.
    Hash {
        /// From where.
        from: u32,
        /// How many bytes.
        length: u32,
        /// One more than the largest result.
        modulus: u32,
        /// The seed.
        seed: u32,
        /// Where to.
        register: u32,
    },
    /// Changes a dynamic map.
    Dynamic {
        /// What is done.
        operation: DynamicOperation,
        /// The map.
        set: String,
        /// Where the key begins.
        key: u32,
        /// Where the data stands.
        data: u32,
        /// After how many milliseconds the element goes; 0 leaves the map's own, or means nothing.
        timeout: u64,
    },
    /// Loads the kind of address (`RTN_*`) that the packet's source is to this node.
    LoadSourceKind {
        /// Where to.
        register: u32,
    },
    /// Turns the bytes of every `size`-byte number in `length` bytes.
    ByteOrder {
        /// From and to.
        register: u32,
        /// Bytes in all.
        length: u32,
        /// Bytes of one number.
        size: u32,
    },
    /// Draws a number from `offset` to `offset` + `modulus` - 1.
    Random {
        /// How many numbers there are.
        modulus: u32,
        /// The smallest.
        offset: u32,
        /// Where to.
        register: u32,
    },
    /// Looks a key up; ends the rule at a miss.
    Lookup {
        /// Where the key begins.
        register: u32,
        /// The set's or map's name.
        set: String,
        /// Where a map's data goes.
        into: Option<u32>,
        /// Whether the rule goes on at a miss instead.
        inverted: bool,
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
            Field::Priority => Expression::LoadMeta {
                key: MetaKey::Priority,
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
