//! What the data plane should hold, and what it does hold, as plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nftfleet_domain::service::{Endpoint, Protocol, Vip};

/// All Services as the data plane should know them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Each VIP's endpoints, without repetition; none means that connections are refused.
    pub services: BTreeMap<Vip, BTreeSet<Endpoint>>,
    /// All `ClusterIP`s: a port that no Service has is refused there.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Endpoints on this node that may reach themselves through a Service.
    pub local: BTreeSet<(Protocol, Endpoint)>,
}

/// One VIP as the kernel holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// The endpoint of each filled slot.
    pub endpoints: BTreeMap<u16, Endpoint>,
    /// The classes whose sets hold the VIP. More than one only between a change of class and the commit after it.
    pub classes: BTreeSet<u16>,
}

/// The elements of the kernel's table, as last committed or read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Programmed {
    /// Each VIP with a slot or a class.
    pub services: BTreeMap<Vip, Slots>,
    /// All `ClusterIP`s.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Endpoints on this node that may reach themselves.
    pub local: BTreeSet<(Protocol, Endpoint)>,
}

/// One element of a set or map of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A VIP's slot and its endpoint, in `endpointsN`.
    Slot(Vip, u16, Endpoint),
    /// A VIP of a class, in `serviceN-C`.
    Class(Vip, u16),
    /// A `ClusterIP`, in `cluster-ipsN`.
    ClusterIp(IpAddr),
    /// A local endpoint, in `hairpinN`.
    Local(Protocol, Endpoint),
}

/// A step of a transaction. Steps are applied in order, all or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Takes an element away.
    Remove(Element),
    /// Puts an element in.
    Add(Element),
}

impl Programmed {
    /// The state after `changes`.
    pub fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match *change {
                Change::Add(element) => self.insert(element),
                Change::Remove(element) => self.remove(element),
            }
        }
    }

    /// Puts an element in.
    pub fn insert(&mut self, element: Element) {
        match element {
            Element::Slot(vip, slot, endpoint) => {
                self.services.entry(vip).or_default().endpoints.insert(slot, endpoint);
            }
            Element::Class(vip, class) => {
                self.services.entry(vip).or_default().classes.insert(class);
            }
            Element::ClusterIp(address) => {
                self.cluster_ips.insert(address);
            }
            Element::Local(protocol, endpoint) => {
                self.local.insert((protocol, endpoint));
            }
        }
    }

    fn remove(&mut self, element: Element) {
        let vip = match element {
            Element::Slot(vip, slot, _) => {
                if let Some(slots) = self.services.get_mut(&vip) {
                    slots.endpoints.remove(&slot);
                }
                vip
            }
            Element::Class(vip, class) => {
                if let Some(slots) = self.services.get_mut(&vip) {
                    slots.classes.remove(&class);
                }
                vip
            }
            Element::ClusterIp(address) => {
                self.cluster_ips.remove(&address);
                return;
            }
            Element::Local(protocol, endpoint) => {
                self.local.remove(&(protocol, endpoint));
                return;
            }
        };
        if self
            .services
            .get(&vip)
            .is_some_and(|s| s.endpoints.is_empty() && s.classes.is_empty())
        {
            self.services.remove(&vip);
        }
    }

    /// How many elements the kernel holds.
    pub fn elements(&self) -> usize {
        let slots: usize = self
            .services
            .values()
            .map(|s| s.endpoints.len() + s.classes.len())
            .sum();
        slots + self.cluster_ips.len() + self.local.len()
    }
}
