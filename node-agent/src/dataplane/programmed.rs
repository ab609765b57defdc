//! What the kernel's table holds, as last committed or read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};

use super::desired::{Key, Name, Route};

/// Which of a VIP's two lists is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// All endpoints.
    All,
    /// Those of this node.
    Local,
}

impl Which {
    /// Both, in the order in which everything is listed.
    pub const BOTH: [Self; 2] = [Self::All, Self::Local];
}

/// The sets that send a list's VIPs to a chain which picks an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Slots are drawn, from as many as the class says.
    Class(u16),
    /// Clients stick for so many seconds, and new ones draw a ticket of as many as the class says.
    Sticky {
        /// Seconds.
        timeout: u32,
        /// The class.
        class: u16,
    },
}

/// Sets and a chain for session affinity, which exist only once they are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sticky {
    /// The family of its VIPs.
    pub family: Family,
    /// Their list.
    pub which: Which,
    /// Seconds.
    pub timeout: u32,
    /// How many tickets are drawn from.
    pub class: u16,
}

/// One element of a set or map of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element {
    /// A VIP's slot and its endpoint, in `endpointsN`.
    Slot(Vip, Which, u16, Endpoint),
    /// A VIP's ticket and its endpoint, in `stickyN`.
    Ticket(Vip, Which, u16, Endpoint),
    /// A VIP of a group, in `serviceN-C`, `localN-C`, `affinityN-T-C` or `local-affinityN-T-C`.
    Member(Vip, Which, Group),
    /// What a VIP's clients are remembered under, in `affinity-idsN` or `affinity-local-idsN`.
    Number(Vip, Which, u32),
    /// A VIP and what becomes of its packets, in `to-allN`, `to-localN`, `no-endpointsN` or `no-local-endpointsN`.
    Route(Vip, Route, Name),
    /// A VIP to which not everybody may connect, in `firewalledN`.
    Firewalled(Vip),
    /// Who may, in `firewall-sourcesN`.
    Source(Vip, IpNet),
    /// A `ClusterIP`, in `cluster-ipsN`.
    ClusterIp(IpAddr, Name),
    /// An external address, in `external-ipsN`.
    ExternalIp(IpAddr),
    /// A node port address, in `nodeport-ipsN`.
    NodePortIp(IpAddr),
    /// A network, in `service-cidrsN`.
    ServiceCidr(IpNet),
    /// A local endpoint, in `hairpinN`.
    Hairpin(Protocol, Endpoint),
}

/// A step of a transaction. Steps are applied all or none, removals first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Takes an element away.
    Remove(Element),
    /// Puts an element in.
    Add(Element),
}

impl Change {
    /// The element.
    pub const fn element(&self) -> &Element {
        let (Self::Remove(element) | Self::Add(element)) = self;
        element
    }
}

/// One of a VIP's lists as the kernel holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldList {
    /// The endpoint of each slot; the last one is filled.
    pub slots: Vec<Option<Endpoint>>,
    /// The endpoint of each ticket.
    pub tickets: BTreeMap<u16, Endpoint>,
    /// The groups that the VIP is in. More than one only between a change and the commit after it.
    pub groups: Vec<Group>,
    /// What its clients are remembered under.
    pub number: Option<u32>,
}

/// One VIP as the kernel holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// All endpoints.
    pub all: HeldList,
    /// Those of this node.
    pub local: HeldList,
    /// What becomes of its packets. More than one only between a change and the commit after it.
    pub routes: BTreeMap<Route, Name>,
    /// Whether not everybody may connect.
    pub firewalled: bool,
    /// Who may.
    pub sources: BTreeSet<IpNet>,
}

impl Held {
    /// One of its lists.
    pub const fn list(&self, which: Which) -> &HeldList {
        match which {
            Which::All => &self.all,
            Which::Local => &self.local,
        }
    }

    const fn list_mut(&mut self, which: Which) -> &mut HeldList {
        match which {
            Which::All => &mut self.all,
            Which::Local => &mut self.local,
        }
    }
}

/// For how many Services' ports burnt tickets are kept.
const MOST_BURNT: usize = 4096;

/// The elements of the kernel's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Programmed {
    /// Each VIP that any element is about.
    pub vips: BTreeMap<Vip, Held>,
    /// All `ClusterIP`s.
    pub cluster_ips: BTreeMap<IpAddr, Name>,
    /// External addresses.
    pub external_ips: BTreeSet<IpAddr>,
    /// Node port addresses.
    pub nodeport_ips: BTreeSet<IpAddr>,
    /// Networks of `ClusterIP`s.
    pub service_cidrs: BTreeSet<IpNet>,
    /// Local endpoints that may reach themselves.
    pub hairpins: BTreeSet<(Protocol, Endpoint)>,
    /// Tickets whose endpoint has gone, the oldest first, by family and number of the Service's port. Nothing of it is in the
    /// kernel, but in clients' hands. Some may be held again.
    pub burnt: BTreeMap<(Family, u32), Vec<u16>>,
    /// The groups for session affinity that have VIPs, and how many.
    pub sticky: BTreeMap<Sticky, usize>,
    elements: usize,
}

impl Programmed {
    /// Takes committed changes in: removals first, as the kernel does.
    pub fn apply(&mut self, changes: Vec<Change>) {
        let (removed, added): (Vec<_>, Vec<_>) = changes.into_iter().partition(|c| matches!(c, Change::Remove(_)));
        for change in removed.into_iter().chain(added) {
            match change {
                Change::Remove(element) => self.remove(&element),
                Change::Add(element) => self.insert(element),
            }
        }
    }

    /// How many elements the kernel holds.
    pub const fn elements(&self) -> usize {
        self.elements
    }

    /// Every key that anything is held for.
    pub fn keys(&self) -> BTreeSet<Key> {
        let vips = self.vips.keys().map(|vip| Key::Vip(*vip));
        let cluster_ips = self.cluster_ips.keys().map(|address| Key::ClusterIp(*address));
        let external_ips = self.external_ips.iter().map(|address| Key::ExternalIp(*address));
        let nodeport_ips = self.nodeport_ips.iter().map(|address| Key::NodePortIp(*address));
        let service_cidrs = self.service_cidrs.iter().map(|network| Key::ServiceCidr(*network));
        let hairpins = self.hairpins.iter().map(|(p, e)| Key::Hairpin(*p, *e));
        vips.chain(cluster_ips)
            .chain(external_ips)
            .chain(nodeport_ips)
            .chain(service_cidrs)
            .chain(hairpins)
            .collect()
    }

    /// Puts an element in.
    pub fn insert(&mut self, element: Element) {
        let new = match element {
            Element::Slot(vip, which, slot, endpoint) => {
                let slots = &mut self.list(vip, which).slots;
                let slot = usize::from(slot);
                if slots.len() <= slot {
                    slots.resize(slot + 1, None);
                }
                slots[slot].replace(endpoint).is_none()
            }
            Element::Ticket(vip, which, ticket, endpoint) => {
                self.list(vip, which).tickets.insert(ticket, endpoint).is_none()
            }
            Element::Member(vip, which, group) => {
                let groups = &mut self.list(vip, which).groups;
                let new = !groups.contains(&group);
                if new {
                    groups.push(group);
                    groups.sort_unstable();
                    if let Some(sticky) = sticky_of(vip, which, group) {
                        *self.sticky.entry(sticky).or_default() += 1;
                    }
                }
                new
            }
            Element::Number(vip, which, number) => self.list(vip, which).number.replace(number).is_none(),
            Element::Route(vip, route, name) => self.held(vip).routes.insert(route, name).is_none(),
            Element::Firewalled(vip) => !std::mem::replace(&mut self.held(vip).firewalled, true),
            Element::Source(vip, network) => self.held(vip).sources.insert(network),
            Element::ClusterIp(address, name) => self.cluster_ips.insert(address, name).is_none(),
            Element::ExternalIp(address) => self.external_ips.insert(address),
            Element::NodePortIp(address) => self.nodeport_ips.insert(address),
            Element::ServiceCidr(network) => self.service_cidrs.insert(network),
            Element::Hairpin(protocol, endpoint) => self.hairpins.insert((protocol, endpoint)),
        };
        self.elements += usize::from(new);
    }

    fn held(&mut self, vip: Vip) -> &mut Held {
        self.vips.entry(vip).or_default()
    }

    fn list(&mut self, vip: Vip, which: Which) -> &mut HeldList {
        self.held(vip).list_mut(which)
    }

    fn remove(&mut self, element: &Element) {
        let gone = match element {
            Element::ClusterIp(address, _) => self.cluster_ips.remove(address).is_some(),
            Element::ExternalIp(address) => self.external_ips.remove(address),
            Element::NodePortIp(address) => self.nodeport_ips.remove(address),
            Element::ServiceCidr(network) => self.service_cidrs.remove(network),
            Element::Hairpin(protocol, endpoint) => self.hairpins.remove(&(*protocol, *endpoint)),
            Element::Slot(vip, ..)
            | Element::Ticket(vip, ..)
            | Element::Member(vip, ..)
            | Element::Number(vip, ..)
            | Element::Route(vip, ..)
            | Element::Firewalled(vip)
            | Element::Source(vip, _) => self.remove_of_vip(*vip, element),
        };
        self.elements -= usize::from(gone);
    }

    fn remove_of_vip(&mut self, vip: Vip, element: &Element) -> bool {
        let Some(held) = self.vips.get_mut(&vip) else {
            return false;
        };
        let gone = match element {
            Element::Slot(_, which, slot, _) => {
                let slots = &mut held.list_mut(*which).slots;
                let gone = slots
                    .get_mut(usize::from(*slot))
                    .is_some_and(|endpoint| endpoint.take().is_some());
                while slots.last().is_some_and(Option::is_none) {
                    slots.pop();
                }
                gone
            }
            Element::Ticket(_, which, ticket, _) => {
                let list = held.list_mut(*which);
                let gone = list.tickets.remove(ticket).is_some();
                if gone && let Some(number) = list.number {
                    // Numbers of Services that are long gone; to forget the others as well only costs evenness.
                    if self.burnt.len() > MOST_BURNT {
                        self.burnt.clear();
                    }
                    let burnt = self.burnt.entry((Family::of(vip.address), number)).or_default();
                    burnt.retain(|other| other != ticket);
                    burnt.push(*ticket);
                }
                gone
            }
            Element::Member(_, which, group) => {
                let groups = &mut held.list_mut(*which).groups;
                let before = groups.len();
                groups.retain(|other| other != group);
                let gone = groups.len() < before;
                if gone && let Some(sticky) = sticky_of(vip, *which, *group) {
                    let members = self.sticky.entry(sticky).or_default();
                    *members -= 1;
                    if *members == 0 {
                        self.sticky.remove(&sticky);
                    }
                }
                gone
            }
            Element::Number(_, which, _) => held.list_mut(*which).number.take().is_some(),
            Element::Route(_, route, _) => held.routes.remove(route).is_some(),
            Element::Firewalled(_) => std::mem::take(&mut held.firewalled),
            Element::Source(_, network) => held.sources.remove(network),
            _ => false,
        };
        if *held == Held::default() {
            self.vips.remove(&vip);
        }
        gone
    }
}

/// The sets and the chain that a group needs, if it is one for session affinity.
pub fn sticky_of(vip: Vip, which: Which, group: Group) -> Option<Sticky> {
    match group {
        Group::Class(_) => None,
        Group::Sticky { timeout, class } => Some(Sticky {
            family: Family::of(vip.address),
            which,
            timeout,
            class,
        }),
    }
}
