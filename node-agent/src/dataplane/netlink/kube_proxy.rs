//! The tables of kube-proxy's nftables mode: whether they are at work, and taking them away.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::batch::Batch;
use super::message::{self, SUBSYSTEM, begin_message, end_message, find, flag, kind, number, text, text_attribute};
use super::socket::{Socket, SocketError};
use super::{KernelError, Netlink, settled};

/// Its tables, each with the number of its family (`NFPROTO_*`).
const TABLES: [(&str, u8); 2] = [("ip kube-proxy", 2), ("ip6 kube-proxy", 10)];

/// The name that they have in common.
const NAME: &str = "kube-proxy";

/// The chains through which packets come to Services, since its first release with this mode (1.29).
const ENTRIES: [&str; 2] = ["nat-prerouting", "nat-output"];

/// The maps that have an element for every address of a Service with endpoints, and of one without.
const SERVICES: [&str; 2] = ["service-ips", "no-endpoint-services"];

/// `NFT_TABLE_F_DORMANT`.
const DORMANT: u32 = 1;

/// One of kube-proxy's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KubeProxyTable {
    /// Its family and name, for example `ip kube-proxy`.
    pub name: &'static str,
    /// Whether it answers for Services: it is not dormant, its chains are hooked in, and there is a Service in its maps.
    pub live: bool,
}

impl Netlink {
    /// kube-proxy's tables. Cheap at any size: of no chain, rule or element but the first more is read than asked for.
    ///
    /// # Errors
    /// They could not be read.
    pub fn kube_proxy_tables(&mut self) -> Result<Vec<KubeProxyTable>, KernelError> {
        let flags = settled(|| self.kube_proxy_flags())?;
        let mut tables = Vec::new();
        for (name, family) in TABLES {
            let Some(flags) = flags.get(&family) else { continue };
            let live = flags & DORMANT == 0 && self.is_hooked(family)? && has_services(family)?;
            tables.push(KubeProxyTable { name, live });
        }
        Ok(tables)
    }

    /// Deletes kube-proxy's tables with all that is in them, in one transaction. That there are none is no error.
    ///
    /// # Errors
    /// The kernel refused; then all of them still stand.
    pub fn delete_kube_proxy_tables(&mut self) -> Result<(), KernelError> {
        let there = settled(|| self.kube_proxy_flags())?;
        let mut batch = Batch::begin(self.sequence.wrapping_add(1));
        for family in there.keys() {
            batch.delete_table(*family, NAME);
        }
        let Some(batch) = batch.end() else { return Ok(()) };
        self.sequence = batch.sequence;
        let done = self.socket.commit(&batch.bytes, batch.first, batch.last);
        done.map_err(|error| KernelError::Refused {
            at: "kube-proxy's tables".to_owned(),
            source: error.into(),
        })
    }

    /// Flags of its tables, by their family.
    fn kube_proxy_flags(&mut self) -> Result<BTreeMap<u8, u32>, KernelError> {
        let mut found = BTreeMap::new();
        let request = self.request(kind::GET_TABLE, 0, None);
        let each = |message: message::Received<'_>| {
            let family = message.payload().first().copied().unwrap_or_default();
            let is_its = TABLES.iter().any(|(_, its)| *its == family);
            if is_its && find(message.body(), 1).map(text).as_deref() == Some(NAME) {
                let flags = find(message.body(), 2).and_then(number).unwrap_or(0);
                found.insert(family, flags);
            }
        };
        self.socket.dump(&request, each)?;
        Ok(found)
    }

    fn is_hooked(&mut self, family: u8) -> Result<bool, KernelError> {
        for chain in ENTRIES {
            let mut hooked = false;
            let sequence = self.next_sequence();
            // Without the flag for a dump the kernel looks up the one chain.
            let request = request(kind::GET_CHAIN, flag::ACKNOWLEDGE, sequence, family, (3, chain));
            let each = |message: message::Received<'_>| hooked |= find(message.body(), 4).is_some();
            match self.socket.dump(&request, each) {
                Err(error) if is_absent(&error) => {}
                done => done?,
            }
            if hooked {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether there is a Service in the maps of the table of this family. Of each map only the beginning is read, through a
/// socket of its own: what is left of an answer dies with it.
fn has_services(family: u8) -> Result<bool, KernelError> {
    for set in SERVICES {
        let socket = Socket::open()?;
        let request = request(kind::GET_ELEMENTS, flag::ACKNOWLEDGE | flag::DUMP, 1, family, (2, set));
        let has_element = |message: message::Received<'_>| {
            message.kind == SUBSYSTEM << 8 | kind::NEW_ELEMENTS
                && find(message.body(), 3).is_some_and(|elements| !elements.is_empty())
        };
        match socket.any_of_dump(&request, has_element) {
            Err(error) if is_absent(&error) => {}
            found => {
                if found? {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// A request about an object of its table, which is named by the attribute.
fn request(kind: u16, flags: u16, sequence: u32, family: u8, (attribute, name): (u16, &str)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let start = begin_message(&mut bytes, SUBSYSTEM << 8 | kind, flags, sequence, family, 0);
    text_attribute(&mut bytes, 1, NAME);
    text_attribute(&mut bytes, attribute, name);
    end_message(&mut bytes, start);
    bytes
}

/// The object is not there, or not any more.
fn is_absent(error: &SocketError) -> bool {
    matches!(error, SocketError::Refused { source, .. } if source.raw_os_error() == Some(Errno::ENOENT as i32))
}
