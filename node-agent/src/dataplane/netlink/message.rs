//! Netlink messages and attributes as bytes.

/// Numbers of `nf_tables`' messages (`NFT_MSG_*`) and of the batch around them.
pub mod kind {
    pub const NEW_TABLE: u16 = 0;
    pub const GET_TABLE: u16 = 1;
    pub const DELETE_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const GET_CHAIN: u16 = 4;
    pub const DELETE_CHAIN: u16 = 5;
    pub const NEW_RULE: u16 = 6;
    pub const GET_RULE: u16 = 7;
    pub const DELETE_RULE: u16 = 8;
    pub const NEW_SET: u16 = 9;
    pub const GET_SET: u16 = 10;
    pub const DELETE_SET: u16 = 11;
    pub const NEW_ELEMENTS: u16 = 12;
    pub const GET_ELEMENTS: u16 = 13;
    pub const DELETE_ELEMENTS: u16 = 14;
    pub const NEW_GENERATION: u16 = 15;
    pub const GET_GENERATION: u16 = 16;
    /// Begins a batch.
    pub const BATCH_BEGIN: u16 = 0x10;
    /// Ends a batch.
    pub const BATCH_END: u16 = 0x11;
    /// `NLMSG_ERROR`: an error or an acknowledgement.
    pub const ERROR: u16 = 2;
    /// `NLMSG_DONE`: the end of a dump.
    pub const DONE: u16 = 3;
}

/// Flags of a message (`NLM_F_*`).
pub mod flag {
    pub const REQUEST: u16 = 0x01;
    pub const ACKNOWLEDGE: u16 = 0x04;
    /// The dump met a change on its way: what was read is of no one moment.
    pub const DUMP_INTERRUPTED: u16 = 0x10;
    pub const DUMP: u16 = 0x300;
    /// Of an error message: it does not repeat the request, only its header.
    pub const CAPPED: u16 = 0x100;
    /// Of an error message: it ends with attributes of its own.
    pub const ERROR_ATTRIBUTES: u16 = 0x200;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
}

/// The subsystem of `nf_tables` (`NFNL_SUBSYS_NFTABLES`), the high byte of its messages' types.
pub const SUBSYSTEM: u16 = 10;

/// The family `inet` (`NFPROTO_INET`).
pub const INET: u8 = 1;

/// Length of a message's header with nfnetlink's own after it.
pub const HEADER: usize = 20;

/// The largest element list of one message: its length has 16 bits, and what else the message holds needs some.
pub const LARGEST_LIST: usize = 60_000;

/// Starts a message; its length is set by [`end_message`]. Gives the place of its first byte.
pub fn begin_message(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) -> usize {
    let start = bytes.len();
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | flag::REQUEST).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    start
}

/// Sets the length of the message that began at `start`.
pub fn end_message(bytes: &mut [u8], start: usize) {
    let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Appends an attribute.
pub fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let start = begin_attribute(bytes, kind);
    bytes.extend(value);
    end_attribute(bytes, start);
}

/// Appends a text attribute with its closing zero.
pub fn text_attribute(bytes: &mut Vec<u8>, kind: u16, value: &str) {
    let start = begin_attribute(bytes, kind);
    bytes.extend(value.as_bytes());
    bytes.push(0);
    end_attribute(bytes, start);
}

/// Begins an attribute that holds others.
pub fn begin_nested(bytes: &mut Vec<u8>, kind: u16) -> usize {
    begin_attribute(bytes, kind | 0x8000)
}

/// Begins an attribute; its length is set by [`end_attribute`].
pub fn begin_attribute(bytes: &mut Vec<u8>, kind: u16) -> usize {
    let start = bytes.len();
    bytes.extend([0, 0]);
    bytes.extend(kind.to_ne_bytes());
    start
}

/// Sets the length of the attribute that began at `start`, and fills up to a whole word.
pub fn end_attribute(bytes: &mut Vec<u8>, start: usize) {
    let length = u16::try_from(bytes.len() - start).unwrap_or(u16::MAX);
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    while !bytes.len().is_multiple_of(4) {
        bytes.push(0);
    }
}

/// The attributes in `bytes`, in order: kind without its flags, and value. Stops at the first that is cut short.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of this kind.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// A text attribute's value without its closing zero.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// A number in network order.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*value.first_chunk::<4>()?))
}

/// A message that was received.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Its kind, with the subsystem.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The sequence number of the request that it answers.
    pub sequence: u32,
    /// The socket that it answers; in a notification, the one whose request is told of.
    pub port: u32,
    /// The whole message.
    pub whole: &'a [u8],
}

impl<'a> Received<'a> {
    /// What stands after netlink's own header.
    pub fn payload(&self) -> &'a [u8] {
        self.whole.get(16..).unwrap_or_default()
    }

    /// The attributes of an `nf_tables` message.
    pub fn body(&self) -> &'a [u8] {
        self.whole.get(HEADER..).unwrap_or_default()
    }

    /// The error number of an error message; 0 is an acknowledgement.
    pub fn error(&self) -> Option<i32> {
        (self.kind == kind::ERROR)
            .then(|| {
                self.payload()
                    .first_chunk::<4>()
                    .map(|bytes| -i32::from_ne_bytes(*bytes))
            })
            .flatten()
    }

    /// At which attribute of the request the kernel stopped, as an offset from the request's first byte, if an error message
    /// says so (`NLMSGERR_ATTR_OFFS`).
    pub fn error_offset(&self) -> Option<usize> {
        let says = self.kind == kind::ERROR && self.flags & flag::ERROR_ATTRIBUTES != 0;
        let request = self.payload().get(4..).filter(|_| says)?;
        let length = match self.flags & flag::CAPPED {
            0 => u32::from_ne_bytes(*request.first_chunk::<4>()?) as usize,
            _ => 16,
        };
        let offset = find(request.get(length.next_multiple_of(4)..)?, 2)?;
        Some(u32::from_ne_bytes(*offset.first_chunk::<4>()?) as usize)
    }
}

/// The messages in a datagram. Stops at the first that is cut short.
pub fn received(datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<16>()?;
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = word(0) as usize;
        let whole = rest.get(..length).filter(|whole| whole.len() >= 16)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received {
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            port: word(12),
            whole,
        })
    })
}
