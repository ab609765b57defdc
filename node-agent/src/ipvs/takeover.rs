//! The steps from IPVS to our table, each of which may be done again at any time.
//!
//! ```text
//! blockers   none          before anything is touched
//!            (our table becomes active: new connections go through it, IPVS carries on with its own)
//! hand_over                IPVS' live connections are written into the handover table
//!            (kube-proxy's iptables chains are removed: switchover/cleanup.rs)
//! remove                   hand_over once more; kube-proxy's virtual services go, and IPVS forgets their connections;
//!                          the node connects from its own address; what it connected from a Service's address drains;
//!                          kube-ipvs0 goes, last
//! settle                   again and again: the handover table loses what has been picked up, and goes when it is empty
//! remove_sets              kube-proxy's ipsets go
//! leftovers  none          it is gone
//! ```
//!
//! The order is measured on Debian's 6.1 kernel. With the interface gone first, packets to its addresses no longer reach IPVS,
//! and connections stall. With the chains there still, KUBE-IPVS-FILTER rejects what an endpoint sends to one of the node's own
//! connections, if that is how it is picked up: a new packet to a Service's address, at a port that no Service has.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::{Family, Protocol, Vip};

use super::connection;
use super::handover::{self, Key, Pin, Pins};
use super::known::{Known, Sorted};
use super::netlink::Ipvs;
use super::service::{Forwarding, Frontend, VirtualService};
use super::{Blocker, IpvsError, blocker, interface, run_well, sets, sockets};
use crate::dataplane::netlink::conntrack::{Conntrack, Tracked};
use crate::dataplane::{Kernel as _, Netlink};
use crate::facts::iptables::{Backend, SavedRule, tables};
use crate::host::Host;

/// Whether connections are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// They are: the caller asks again.
    Wait,
    /// The deadline has passed: what is not over is given up.
    Now,
}

/// How far the removal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Virtual services are gone, `kube-ipvs0` waits.
    Draining {
        /// For so many sockets of the node's own that have an address of it.
        sockets: usize,
        /// For so many connections that IPVS has not forgotten yet. It forgets one that a packet holds at that moment only
        /// with the next packet to its VIP, or after a minute; without the interface there is no such packet.
        carried: usize,
    },
    /// Virtual services and `kube-ipvs0` are gone.
    Gone,
}

/// What was written into the handover table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandedOver {
    /// Connections that are in it now.
    pub connections: usize,
    /// Live SCTP associations, which can't be picked up in their middle: they end with their virtual service.
    pub left_out: usize,
}

/// Something of kube-proxy's IPVS mode, or of the move from it, that is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// A virtual service of kube-proxy's.
    Service(Frontend),
    /// `kube-ipvs0`.
    Interface,
    /// An ipset of kube-proxy's.
    Set(String),
    /// The node has no program to list ipsets with, or it fails: there may be some.
    SetsUnknown(String),
    /// The handover table.
    Handover,
}

/// A node's IPVS and all that must be asked while it is taken over, of the network namespace in which it was opened and is
/// used.
pub struct Takeover<'a> {
    host: &'a dyn Host,
    ipvs: Ipvs,
    conntrack: Conntrack,
    tables: Netlink,
}

impl<'a> Takeover<'a> {
    /// Opens conversations with the kernel.
    ///
    /// # Errors
    /// See [`IpvsError`].
    pub fn open(host: &'a dyn Host) -> Result<Self, IpvsError> {
        Ok(Self {
            host,
            ipvs: Ipvs::open()?,
            conntrack: Conntrack::open()?,
            tables: Netlink::open().map_err(IpvsError::netlink("open nf_tables"))?,
        })
    }

    /// All virtual services by their owner.
    ///
    /// # Errors
    /// They can't be listed.
    pub fn services(&mut self, known: &Known) -> Result<Sorted, IpvsError> {
        // The addresses first: a Service that comes meanwhile is foreign until the next look, never the other way round.
        let on_interface = interface::addresses()?;
        Ok(known.sort(self.ipvs.services()?, &on_interface))
    }

    /// Why the node can't be moved from IPVS as it is; empty if it can, or has nothing of kube-proxy's in IPVS.
    ///
    /// # Errors
    /// Something can't be read.
    pub fn blockers(&mut self, known: &Known) -> Result<Vec<Blocker>, IpvsError> {
        let kube_proxys = self.services(known)?.kube_proxys;
        if kube_proxys.is_empty() {
            return Ok(Vec::new());
        }
        let mut blockers = blocker::switches(self.host)?;
        for VirtualService { frontend, .. } in kube_proxys {
            for destination in self.ipvs.destinations(&frontend)? {
                if destination.forwarding != Forwarding::Masquerade {
                    blockers.push(Blocker::NotMasqueraded {
                        service: frontend,
                        destination: destination.address,
                        forwarding: destination.forwarding,
                    });
                }
            }
        }
        let families: BTreeSet<Family> = interface::addresses()?.into_iter().map(Family::of).collect();
        let without = families.into_iter().filter(|family| known.source(*family).is_none());
        blockers.extend(without.map(Blocker::NoNodeAddress));
        Ok(blockers)
    }

    /// Writes every live connection of kube-proxy's virtual services into the handover table, beside those that are in it.
    /// Our table must be active: then no connection comes to IPVS any more.
    ///
    /// # Errors
    /// Our table is not active, or something can't be read or written.
    pub fn hand_over(&mut self, known: &Known) -> Result<HandedOver, IpvsError> {
        let services = self.services(known)?.kube_proxys;
        self.hand_over_these(&services)
    }

    fn hand_over_these(&mut self, services: &[VirtualService]) -> Result<HandedOver, IpvsError> {
        self.must_be_active()?;
        let frontends: BTreeSet<Frontend> = services.iter().map(|service| service.frontend).collect();
        let is_ours = |vip: Vip| frontends.contains(&Frontend::Vip(vip));
        let tracked = self.tracked()?;
        let mut live = carried(&tracked, is_ours);
        // The file of IPVS' connections may leave some out while others end, but has those that conntrack lost.
        for connection in connection::list(self.host)? {
            if connection.is_live() && is_ours(connection.vip) {
                let key = Key {
                    protocol: connection.vip.protocol,
                    client: connection.client,
                    vip: SocketAddr::new(connection.vip.address, connection.vip.port),
                };
                live.entry(key).or_insert(Pin {
                    endpoint: connection.endpoint,
                    seen: connection.client,
                });
            }
        }
        let all = live.len();
        live.retain(|key, _| key.protocol != Protocol::Sctp);
        let left_out = all - live.len();
        let before = self.pins()?;
        let mut pins = before.clone().unwrap_or_default();
        pins.extend(live);
        // An empty one says nothing, and would only have to be deleted.
        if !pins.is_empty() && before.as_ref() != Some(&pins) {
            handover::write(self.host, &pins)?;
        }
        Ok(HandedOver {
            connections: pins.len(),
            left_out,
        })
    }

    /// Removes kube-proxy's virtual services and `kube-ipvs0`, as far as that can be done now.
    ///
    /// # Errors
    /// Our table is not active, kube-proxy's chains stand, or something can't be read or removed. What was done stays done.
    pub fn remove(&mut self, known: &Known, patience: Patience) -> Result<Progress, IpvsError> {
        self.must_be_active()?;
        let services = self.services(known)?.kube_proxys;
        if !services.is_empty() {
            self.must_be_without_filter()?;
            self.hand_over_these(&services)?;
            for service in &services {
                self.ipvs.delete(&service.frontend)?;
            }
        }
        if !interface::exists()? {
            return Ok(Progress::Gone);
        }
        let addresses = interface::addresses()?;
        interface::move_sources(self.host, known, &addresses)?;
        if patience == Patience::Wait {
            let sockets = sockets::connected_from(self.host, &addresses)?;
            let carried = carried(&self.tracked()?, |vip| addresses.contains(&vip.address)).len();
            if sockets + carried > 0 {
                return Ok(Progress::Draining { sockets, carried });
            }
        }
        interface::delete(self.host)?;
        Ok(Progress::Gone)
    }

    /// Takes out of the handover table what needs it no more, and deletes it once it is empty; gives how many connections still
    /// need it.
    ///
    /// A connection needs it until it has been picked up: conntrack has it, translated as the table says, and by NAT rather
    /// than by IPVS. One that sends nothing is not picked up, nor is one that ended before: who waits no longer gives these up.
    ///
    /// # Errors
    /// Our table is not active, or something can't be read or written.
    pub fn settle(&mut self, patience: Patience) -> Result<usize, IpvsError> {
        // It takes over from the handover table the task of keeping conntrack and translation hooked in.
        self.must_be_active()?;
        let Some(before) = self.pins()? else {
            return Ok(0);
        };
        let mut pins = before.clone();
        if patience == Patience::Now {
            pins.clear();
        } else {
            let tracked = self.tracked()?;
            pins.retain(|key, pin| !is_picked_up(key, pin, &tracked));
        }
        if pins.is_empty() {
            handover::delete(self.host)?;
        } else if pins != before {
            handover::write(self.host, &pins)?;
        }
        Ok(pins.len())
    }

    /// Destroys kube-proxy's ipsets that no rule looks into any more; those that are still there.
    ///
    /// # Errors
    /// There is no `ipset`, or it fails.
    pub fn remove_sets(&mut self) -> Result<Vec<String>, IpvsError> {
        sets::remove(self.host)
    }

    /// What is still there; nothing if all is gone.
    ///
    /// # Errors
    /// Something can't be read.
    pub fn leftovers(&mut self, known: &Known) -> Result<Vec<Leftover>, IpvsError> {
        let services = self.services(known)?.kube_proxys;
        let mut leftovers: Vec<Leftover> = services.iter().map(|s| Leftover::Service(s.frontend)).collect();
        if interface::exists()? {
            leftovers.push(Leftover::Interface);
        }
        match sets::list(self.host) {
            Ok(sets) => leftovers.extend(sets.into_iter().map(Leftover::Set)),
            Err(error @ (IpvsError::Start { .. } | IpvsError::Failed { .. })) => {
                leftovers.push(Leftover::SetsUnknown(error.to_string()));
            }
            Err(error) => return Err(error),
        }
        if self.has_handover()? {
            leftovers.push(Leftover::Handover);
        }
        Ok(leftovers)
    }

    fn must_be_active(&mut self) -> Result<(), IpvsError> {
        match self.tables.state()? {
            TableState::Active => Ok(()),
            _ => Err(IpvsError::NotActive),
        }
    }

    /// kube-proxy's chain that would reject connections which are picked up is gone.
    fn must_be_without_filter(&self) -> Result<(), IpvsError> {
        for (save, _) in Backend::BOTH.into_iter().flat_map(Backend::commands) {
            // Of all tables: asked for one by name, the old backend makes it.
            match run_well(self.host, save, &[], "") {
                Ok(saved) if tables(&saved).iter().any(|table| table.rules.iter().any(is_filter)) => {
                    return Err(IpvsError::ChainsStand);
                }
                Ok(_) => {}
                // A backend that is not installed has no rules that anybody can have written.
                Err(IpvsError::Start { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn has_handover(&mut self) -> Result<bool, IpvsError> {
        Ok(self.tables.tables()?.contains(&format!("inet {}", handover::TABLE)))
    }

    /// What is in the handover table; none if it is not there.
    fn pins(&mut self) -> Result<Option<Pins>, IpvsError> {
        let is_there = self.has_handover()?;
        is_there.then(|| handover::read(self.host)).transpose()
    }

    /// All tracked connections.
    fn tracked(&mut self) -> Result<Table, IpvsError> {
        let mut table = Table::new();
        for family in Family::BOTH {
            let entries = self.conntrack.tracked(family)?;
            table.extend(
                entries
                    .into_iter()
                    .map(|entry| ((entry.protocol, entry.original), entry)),
            );
        }
        Ok(table)
    }
}

fn is_filter(rule: &SavedRule<'_>) -> bool {
    rule.target == Some("KUBE-IPVS-FILTER")
}

/// What conntrack has, by protocol and original direction.
type Table = BTreeMap<(Protocol, (SocketAddr, SocketAddr)), Tracked>;

/// The live connections that IPVS carries at these VIPs: translated, and not by NAT.
fn carried(table: &Table, is_ours: impl Fn(Vip) -> bool) -> Pins {
    let of_ipvs = table.values().filter(|entry| {
        let (_, vip) = entry.original;
        let is_translated = entry.reply.0 != vip && !entry.by_nat;
        is_translated
            && !entry.is_over
            && is_ours(Vip {
                address: vip.ip(),
                protocol: entry.protocol,
                port: vip.port(),
            })
    });
    let pin = |entry: &Tracked| {
        let key = Key {
            protocol: entry.protocol,
            client: entry.original.0,
            vip: entry.original.1,
        };
        let (endpoint, seen) = entry.reply;
        (key, Pin { endpoint, seen })
    };
    of_ipvs.map(pin).collect()
}

/// Whether conntrack has a connection translated as its pin says, from whichever end it was picked up.
fn is_picked_up(key: &Key, pin: &Pin, table: &Table) -> bool {
    let from_client = table.get(&(key.protocol, (key.client, key.vip)));
    let from_endpoint = table.get(&(key.protocol, (pin.endpoint, pin.seen)));
    from_client.is_some_and(|entry| entry.by_nat && entry.reply == (pin.endpoint, pin.seen))
        || from_endpoint.is_some_and(|entry| entry.reply == (key.client, key.vip))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn table(original: [&str; 2], reply: [&str; 2], by_nat: bool) -> Table {
        let [original, reply] = [original, reply].map(|[source, destination]| (at(source), at(destination)));
        let entry = Tracked {
            protocol: Protocol::Tcp,
            original,
            reply,
            by_nat,
            is_over: false,
        };
        [((entry.protocol, entry.original), entry)].into()
    }

    const ORIGINAL: [&str; 2] = ["172.16.0.1:4000", "10.96.0.9:80"];
    const REPLY: [&str; 2] = ["10.1.0.1:8080", "192.0.2.1:61000"];

    #[test]
    fn what_is_translated_and_not_by_nat_is_ipvs() {
        let of_ipvs = table(ORIGINAL, REPLY, false);
        let key = Key {
            protocol: Protocol::Tcp,
            client: at(ORIGINAL[0]),
            vip: at(ORIGINAL[1]),
        };
        let pin = Pin {
            endpoint: at(REPLY[0]),
            seen: at(REPLY[1]),
        };
        assert_eq!(carried(&of_ipvs, |vip| vip.port == 80), [(key, pin)].into());
        assert_eq!(carried(&of_ipvs, |vip| vip.port == 90), Pins::new());
        assert_eq!(carried(&table(ORIGINAL, REPLY, true), |_| true), Pins::new());
        // To the node itself, at the same address.
        let untranslated = table(ORIGINAL, ["10.96.0.9:80", "172.16.0.1:4000"], false);
        assert_eq!(carried(&untranslated, |_| true), Pins::new());
        let mut over = of_ipvs;
        for entry in over.values_mut() {
            entry.is_over = true;
        }
        assert_eq!(carried(&over, |_| true), Pins::new());
    }

    #[test]
    fn a_connection_is_picked_up_from_either_end_and_not_by_ipvs() {
        let pins = carried(&table(ORIGINAL, REPLY, false), |_| true);
        let (key, pin) = pins.first_key_value().unwrap();
        let is = |original, reply, by_nat| is_picked_up(key, pin, &table(original, reply, by_nat));
        assert!(is(ORIGINAL, REPLY, true));
        assert!(!is(ORIGINAL, REPLY, false));
        assert!(is(REPLY, ORIGINAL, true));
        // Not masqueraded, so only the source is translated.
        assert!(is(REPLY, ORIGINAL, false));
        // Not translated, or otherwise.
        assert!(!is(ORIGINAL, ["10.96.0.9:80", "172.16.0.1:4000"], false));
        assert!(!is(ORIGINAL, ["10.1.0.2:8080", "192.0.2.1:61000"], true));
        assert!(!is(REPLY, ["192.0.2.1:61000", "10.1.0.1:8080"], false));
    }
}
