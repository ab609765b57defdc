//! An SCTP packet with one chunk (RFC 9260): INIT or INIT ACK.

/// A packet with one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub source: u16,
    pub destination: u16,
    /// The verification tag: what the receiver chose, 0 in an INIT.
    pub tag: u32,
    pub chunk: Chunk,
}

/// The two chunks that begin an association, with the tag that their sender wants to be addressed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    Init { tag: u32 },
    InitAck { tag: u32, cookie: Vec<u8> },
}

/// Ports, tag and checksum.
const COMMON: usize = 12;
/// Type, flags, length, tag, window, two numbers of streams and the first sequence number.
const FIXED: usize = 20;
/// The only parameter we send.
const STATE_COOKIE: u16 = 7;

impl Packet {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, tag, cookie) = match &self.chunk {
            Chunk::Init { tag } => (1, *tag, None),
            Chunk::InitAck { tag, cookie } => (2, *tag, Some(cookie)),
        };
        let parameter = cookie.map(|cookie| {
            let length = u16::try_from(4 + cookie.len()).expect("a short cookie");
            [&STATE_COOKIE.to_be_bytes(), &length.to_be_bytes(), cookie.as_slice()].concat()
        });
        let parameter = parameter.unwrap_or_default();
        let length = u16::try_from(FIXED + parameter.len()).expect("a short chunk");

        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([kind, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(tag.to_be_bytes());
        bytes.extend(65_536_u32.to_be_bytes());
        bytes.extend(1_u16.to_be_bytes());
        bytes.extend(1_u16.to_be_bytes());
        bytes.extend(1_u32.to_be_bytes());
        bytes.extend(parameter);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let checksum = crc32c(&bytes);
        bytes[8..COMMON].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None` for whatever is not one of our two chunks, and for a packet whose checksum is wrong.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let checksum = u32::from_le_bytes(bytes.get(8..COMMON)?.try_into().ok()?);
        let mut zeroed = bytes.to_vec();
        zeroed[8..COMMON].fill(0);
        if crc32c(&zeroed) != checksum {
            return None;
        }
        let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let tag = long(COMMON + 4)?;
        let chunk = match bytes.get(COMMON)? {
            1 => Chunk::Init { tag },
            2 => {
                let parameter = COMMON + FIXED;
                if word(parameter)? != STATE_COOKIE {
                    return None;
                }
                let end = parameter + usize::from(word(parameter + 2)?);
                Chunk::InitAck {
                    tag,
                    cookie: bytes.get(parameter + 4..end)?.to_vec(),
                }
            }
            _ => return None,
        };
        Some(Self {
            source: word(0)?,
            destination: word(2)?,
            tag: long(4)?,
            chunk,
        })
    }
}

/// The Castagnoli checksum, bit by bit: the packets are few and short.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_written_is_read_and_a_flipped_bit_is_noticed() {
        let cookie = b"backend-1".to_vec();
        for chunk in [Chunk::Init { tag: 7 }, Chunk::InitAck { tag: 9, cookie }] {
            let packet = Packet {
                source: 4000,
                destination: 80,
                tag: 5,
                chunk,
            };
            let mut bytes = packet.encode();
            assert_eq!(Packet::decode(&bytes), Some(packet));
            bytes[2] ^= 1;
            assert_eq!(Packet::decode(&bytes), None);
        }
    }
}
