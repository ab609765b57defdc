//! Firewalls that are written for nft: base chains that drop what is forwarded.

use super::message::{self, INET, SUBSYSTEM, begin_message, end_message, find, flag, kind, number, text};
use super::{KernelError, Netlink, settled};

/// The families whose base chains see forwarded packets of IP (`NFPROTO_*`), with their names.
const FAMILIES: [(u8, &str); 3] = [(INET, "inet"), (2, "ip"), (10, "ip6")];

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;

/// `NF_DROP`.
const DROP: u32 = 0;

impl Netlink {
    /// Base chains whose policy is to drop what is forwarded, for example `inet site onward`, but those of `iptables-nft`, which
    /// its own tools show. What rules in a base chain drop is not seen.
    ///
    /// # Errors
    /// They could not be read.
    pub fn closed_forward_chains(&mut self) -> Result<Vec<String>, KernelError> {
        settled(|| {
            let mut closed = Vec::new();
            let sequence = self.next_sequence();
            let mut request = Vec::new();
            let flags = flag::ACKNOWLEDGE | flag::DUMP;
            let start = begin_message(&mut request, SUBSYSTEM << 8 | kind::GET_CHAIN, flags, sequence, 0, 0);
            end_message(&mut request, start);
            let each = |message: message::Received<'_>| closed.extend(closed_forward_chain(&message));
            self.socket.dump(&request, each)?;
            Ok(closed)
        })
    }
}

fn closed_forward_chain(message: &message::Received<'_>) -> Option<String> {
    let family = *message.payload().first()?;
    let (_, family) = FAMILIES.iter().find(|(number, _)| *number == family)?;
    let body = message.body();
    let (table, chain) = (text(find(body, 1)?), text(find(body, 3)?));
    let hook = find(find(body, 4)?, 1).and_then(number)?;
    let policy = find(body, 5).and_then(number)?;
    let is_of_iptables = *family != "inet" && table == "filter" && chain == "FORWARD";
    (hook == FORWARD && policy == DROP && !is_of_iptables).then(|| format!("{family} {table} {chain}"))
}
