//! What all objects together mean for the data plane. Pure: a watch's events in, changes of what is desired out, at the cost
//! of what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use nftfleet_domain::ids::NodeName;
use nftfleet_domain::rollout::ProbeTarget;
use nftfleet_domain::service::{Endpoint, ObjectName, Protocol, Vip};

use super::id::Id;
use super::known::{Event, Known};
use super::meaning::{HealthCheck, Meaning, NoLocal, Place, meaning};
use super::object::{self, BadObject, Node, Object, Service, ServiceCidr, Slice};
use super::place::{LocalTraffic, NodePortAddresses, place, pods};
use crate::dataplane::desired::{Frontend, Name, Pods, Update};

/// The kinds of objects that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `Service`.
    Service,
    /// `EndpointSlice`.
    Slice,
    /// `Node`: this one.
    Node,
    /// `ServiceCIDR`.
    ServiceCidr,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Service, Self::Slice, Self::Node, Self::ServiceCidr];

    /// As Kubernetes writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Slice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }
}

/// What the index is told at the agent's start.
#[derive(Clone, Debug)]
pub struct IndexSettings {
    /// This node's name.
    pub node: NodeName,
    /// On which of its addresses node ports listen.
    pub nodeport_addresses: NodePortAddresses,
    /// How pods of this node are told from others.
    pub local_traffic: LocalTraffic,
}

/// A VIP that two Services claim: the older one keeps it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The VIP.
    pub vip: Vip,
    /// Who has it.
    pub holder: ObjectName,
    /// Who does not.
    pub loser: ObjectName,
}

/// Who claims something, the oldest first.
type Claims = Vec<(Option<Timestamp>, Id)>;

/// All objects that are known, and what they mean.
#[derive(Debug)]
pub struct Index {
    settings: IndexSettings,
    services: Known<Service>,
    slices: Known<Slice>,
    nodes: Known<Node>,
    /// This one, as it was last seen.
    node: Option<Arc<Node>>,
    service_cidrs: Known<ServiceCidr>,
    /// The names of each Service's slices, sorted.
    slices_of: BTreeMap<Id, Vec<Id>>,
    kernel_addresses: BTreeSet<IpAddr>,
    place: Place,
    meanings: BTreeMap<Id, Meaning>,
    claimed_vips: BTreeMap<Vip, Claims>,
    claimed_cluster_ips: BTreeMap<IpAddr, Claims>,
    external_ips: BTreeMap<IpAddr, usize>,
    hairpins: BTreeMap<(Protocol, Endpoint), usize>,
    /// VIPs that more than one Service claims.
    contested: BTreeSet<Vip>,
    health_checks: BTreeMap<ObjectName, HealthCheck>,
    too_long: BTreeMap<Id, Vec<String>>,
    no_local: NoLocal,
    /// Services to look at again.
    dirty: BTreeSet<Id>,
    /// Whether the first lists have been stowed away.
    is_dense: bool,
    told: Told,
}

/// What was told of all that is not a Service's.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    nodeport_ips: BTreeSet<IpAddr>,
    service_cidrs: BTreeSet<IpNet>,
    pods: Pods,
}

/// What is touched by an update, as it was before.
#[derive(Default)]
struct Before {
    frontends: BTreeMap<Vip, Option<Frontend>>,
    cluster_ips: BTreeMap<IpAddr, Option<Name>>,
    external_ips: BTreeMap<IpAddr, bool>,
    hairpins: BTreeMap<(Protocol, Endpoint), bool>,
}

impl Index {
    /// An index that knows nothing yet.
    pub fn new(settings: IndexSettings) -> Self {
        Self {
            settings,
            services: Known::default(),
            slices: Known::default(),
            nodes: Known::default(),
            node: None,
            service_cidrs: Known::default(),
            slices_of: BTreeMap::new(),
            kernel_addresses: BTreeSet::new(),
            place: Place::default(),
            meanings: BTreeMap::new(),
            claimed_vips: BTreeMap::new(),
            claimed_cluster_ips: BTreeMap::new(),
            external_ips: BTreeMap::new(),
            hairpins: BTreeMap::new(),
            contested: BTreeSet::new(),
            health_checks: BTreeMap::new(),
            too_long: BTreeMap::new(),
            no_local: NoLocal::default(),
            dirty: BTreeSet::new(),
            is_dense: false,
            told: Told::default(),
        }
    }

    /// Takes an event in. Gives what made no sense; the rest of the object counts.
    pub fn take(&mut self, kind: Kind, event: Event) -> Vec<BadObject> {
        match kind {
            Kind::Service => {
                let (changed, bad) = self.services.take(event, |object| object::service(object).map(Some));
                self.dirty.extend(changed.into_iter().map(|(name, ..)| name));
                bad
            }
            Kind::Slice => {
                let node = self.settings.node.as_str();
                let (changed, bad) = self.slices.take(event, |object| object::slice(object, node));
                for (name, before, after) in changed {
                    self.slice_changed(name, before, after);
                }
                bad
            }
            Kind::Node => {
                let (changed, bad) = self.nodes.take(event, |object| object::node(object).map(Some));
                // A Node that is deleted by mistake is made anew by its kubelet; its Services must not notice.
                self.node = changed.into_iter().find_map(|(_, _, after)| after).or(self.node.take());
                bad
            }
            Kind::ServiceCidr => {
                let read = |object: &Object| object::service_cidr(object).map(Some);
                let (_, bad) = self.service_cidrs.take(event, read);
                bad
            }
        }
    }

    fn slice_changed(&mut self, name: Id, before: Option<Arc<Slice>>, after: Option<Arc<Slice>>) {
        if let Some(before) = before {
            if let Some(slices) = self.slices_of.get_mut(&before.service) {
                slices.retain(|slice| *slice != name);
                if slices.is_empty() {
                    self.slices_of.remove(&before.service);
                }
            }
            self.dirty.insert(before.service.clone());
        }
        if let Some(after) = after {
            let slices = self.slices_of.entry(after.service.clone()).or_default();
            if let Err(at) = slices.binary_search(&name) {
                slices.reserve_exact(1);
                slices.insert(at, name);
            }
            self.dirty.insert(after.service.clone());
        }
    }

    /// The node's own addresses as the kernel has them.
    pub fn set_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        self.kernel_addresses = addresses;
    }

    /// Whether every first list is in.
    pub fn is_complete(&self) -> bool {
        self.services.complete && self.slices.complete && self.nodes.complete && self.service_cidrs.complete
    }

    /// What has changed since the last call, the first time everything; none until every first list is in, since a start would
    /// wipe what is missing.
    pub fn update(&mut self) -> Option<Update> {
        if !self.is_complete() {
            return None;
        }
        let mut update = Update::default();
        self.update_place(&mut update);
        let mut before = Before::default();
        for name in std::mem::take(&mut self.dirty) {
            let after = self.services.all.get(&name).map(|service| {
                let names = self.slices_of.get(&name).into_iter().flatten();
                let slices: Vec<&Slice> = names
                    .filter_map(|slice| self.slices.all.get(slice).map(|slice| &**slice))
                    .collect();
                meaning(&name, service, &slices, &self.place)
            });
            let created = self.services.all.get(&name).and_then(|service| service.created);
            for meaning in self.meanings.get(&name).into_iter().chain(&after) {
                self.note(meaning, &mut before);
            }
            self.disclaim(&name);
            if let Some(after) = after {
                self.claim(&name, created, after);
            }
        }
        self.differences(before, &mut update);
        if !std::mem::replace(&mut self.is_dense, true) {
            self.make_dense();
        }
        Some(update)
    }

    /// Maps that grew in the order of their keys are half empty; those that are collected are full.
    fn make_dense(&mut self) {
        self.slices_of = std::mem::take(&mut self.slices_of).into_iter().collect();
        self.meanings = std::mem::take(&mut self.meanings).into_iter().collect();
        self.claimed_vips = std::mem::take(&mut self.claimed_vips).into_iter().collect();
        self.claimed_cluster_ips = std::mem::take(&mut self.claimed_cluster_ips).into_iter().collect();
    }

    fn update_place(&mut self, update: &mut Update) {
        let node = self.node.as_deref();
        let place = place(node, &self.kernel_addresses, &self.settings.nodeport_addresses);
        let networks: Vec<IpNet> = self
            .service_cidrs
            .all
            .values()
            .flat_map(|c| c.networks.clone())
            .collect();
        let told = Told {
            nodeport_ips: place.nodeport_ips.clone(),
            service_cidrs: IpNet::aggregate(&networks).into_iter().collect(),
            pods: pods(&self.settings.local_traffic, node),
        };
        if place != self.place {
            self.place = place;
            self.dirty.extend(self.services.all.keys().cloned());
        }
        update.nodeport_ips = changed_members(&self.told.nodeport_ips, &told.nodeport_ips);
        update.service_cidrs = changed_members(&self.told.service_cidrs, &told.service_cidrs);
        update.pods = (told.pods != self.told.pods).then(|| told.pods.clone());
        self.told = told;
    }

    /// Remembers how everything stands that a Service has a part in, unless that is remembered already.
    fn note(&self, meaning: &Meaning, before: &mut Before) {
        for vip in meaning.frontends.keys() {
            before.frontends.entry(*vip).or_insert_with(|| self.frontend(vip));
        }
        for address in meaning.cluster_ips.keys() {
            before
                .cluster_ips
                .entry(*address)
                .or_insert_with(|| self.cluster_ip(address));
        }
        for address in &meaning.rest().external_ips {
            let there = self.external_ips.contains_key(address);
            before.external_ips.entry(*address).or_insert(there);
        }
        for hairpin in &meaning.rest().hairpins {
            let there = self.hairpins.contains_key(hairpin);
            before.hairpins.entry(*hairpin).or_insert(there);
        }
    }

    fn frontend(&self, vip: &Vip) -> Option<Frontend> {
        let (_, holder) = self.claimed_vips.get(vip)?.first()?;
        self.meanings.get(holder)?.frontends.get(vip).cloned()
    }

    fn cluster_ip(&self, address: &IpAddr) -> Option<Name> {
        let (_, holder) = self.claimed_cluster_ips.get(address)?.first()?;
        self.meanings.get(holder)?.cluster_ips.get(address).cloned()
    }

    fn disclaim(&mut self, name: &Id) {
        let Some(meaning) = self.meanings.remove(name) else {
            return;
        };
        let rest = meaning.rest();
        self.no_local.internal -= rest.no_local.internal;
        self.no_local.external -= rest.no_local.external;
        if rest.health_check.is_some() {
            self.health_checks.remove(&name.name());
        }
        if !rest.too_long.is_empty() {
            self.too_long.remove(name);
        }
        for vip in meaning.frontends.keys() {
            if release(&mut self.claimed_vips, vip, name) < 2 {
                self.contested.remove(vip);
            }
        }
        for address in meaning.cluster_ips.keys() {
            release(&mut self.claimed_cluster_ips, address, name);
        }
        for address in &meaning.rest().external_ips {
            count_down(&mut self.external_ips, address);
        }
        for hairpin in &meaning.rest().hairpins {
            count_down(&mut self.hairpins, hairpin);
        }
    }

    fn claim(&mut self, name: &Id, created: Option<Timestamp>, meaning: Meaning) {
        let claim = || (created, name.clone());
        for vip in meaning.frontends.keys() {
            if insert(self.claimed_vips.entry(*vip).or_default(), claim()) > 1 {
                self.contested.insert(*vip);
            }
        }
        for address in meaning.cluster_ips.keys() {
            insert(self.claimed_cluster_ips.entry(*address).or_default(), claim());
        }
        for address in &meaning.rest().external_ips {
            *self.external_ips.entry(*address).or_default() += 1;
        }
        for hairpin in &meaning.rest().hairpins {
            *self.hairpins.entry(*hairpin).or_default() += 1;
        }
        let rest = meaning.rest();
        self.no_local.internal += rest.no_local.internal;
        self.no_local.external += rest.no_local.external;
        if let Some(check) = rest.health_check {
            self.health_checks.insert(name.name(), check);
        }
        if !rest.too_long.is_empty() {
            self.too_long.insert(name.clone(), rest.too_long.clone());
        }
        self.meanings.insert(name.clone(), meaning);
    }

    fn differences(&self, before: Before, update: &mut Update) {
        for (vip, before) in before.frontends {
            let after = self.frontend(&vip);
            if before != after {
                update.frontends.insert(vip, after);
            }
        }
        for (address, before) in before.cluster_ips {
            let after = self.cluster_ip(&address);
            if before != after {
                update.cluster_ips.insert(address, after);
            }
        }
        for (address, before) in before.external_ips {
            let after = self.external_ips.contains_key(&address);
            if before != after {
                update.external_ips.insert(address, after);
            }
        }
        for (hairpin, before) in before.hairpins {
            let after = self.hairpins.contains_key(&hairpin);
            if before != after {
                update.hairpins.insert(hairpin, after);
            }
        }
    }

    /// VIPs that more than one Service claims.
    pub fn conflicts(&self) -> BTreeSet<Conflict> {
        let of_vip = |vip: &Vip| {
            let claims = self.claimed_vips.get(vip).into_iter().flatten();
            let mut claimants = claims.map(|(_, id)| id.name());
            let (vip, holder) = (*vip, claimants.next());
            let conflict = move |loser| {
                let holder = holder.clone()?;
                Some(Conflict { vip, holder, loser })
            };
            claimants.filter_map(conflict).collect::<Vec<_>>()
        };
        self.contested.iter().flat_map(of_vip).collect()
    }

    /// Where load balancers ask for Services' endpoints on this node.
    pub const fn health_checks(&self) -> &BTreeMap<ObjectName, HealthCheck> {
        &self.health_checks
    }

    /// How many ports have endpoints on other nodes alone, although a policy asks for those of this one.
    pub const fn no_local(&self) -> NoLocal {
        self.no_local
    }

    /// On which addresses node ports listen.
    pub const fn nodeport_ips(&self) -> &BTreeSet<IpAddr> {
        &self.place.nodeport_ips
    }

    /// This node's addresses, internal ones first, as its Node has them; empty until it is seen.
    pub fn node_addresses(&self) -> &[IpAddr] {
        self.node.as_ref().map_or(&[], |node| &node.addresses)
    }

    /// Whether load balancers may send new connections to this node.
    pub fn is_eligible(&self) -> bool {
        self.node.as_ref().is_none_or(|node| node.eligible)
    }

    /// Services with more endpoints than the table has room for, in words.
    pub fn too_long(&self) -> Vec<String> {
        self.too_long.values().flatten().cloned().collect()
    }

    /// Where a probe's target answers, empty if there is no such Service or TCP port.
    pub fn addresses(&self, target: &ProbeTarget) -> Vec<SocketAddr> {
        let id = Id::new(&target.namespace, &target.name);
        let Some(service) = self.services.all.get(&id) else {
            return vec![];
        };
        let has = |p: &object::ServicePort| p.protocol == Protocol::Tcp && p.port == target.port;
        let addresses = service.cluster_ips.iter().filter(|_| service.ports.iter().any(has));
        addresses
            .map(|address| SocketAddr::new(*address, target.port))
            .collect()
    }
}

fn changed_members<T: Copy + Ord>(before: &BTreeSet<T>, after: &BTreeSet<T>) -> BTreeMap<T, bool> {
    let gone = before.difference(after).map(|member| (*member, false));
    let new = after.difference(before).map(|member| (*member, true));
    gone.chain(new).collect()
}

/// Puts a claim in its place, and says how many there are.
fn insert(claims: &mut Claims, claim: (Option<Timestamp>, Id)) -> usize {
    if let Err(at) = claims.binary_search(&claim) {
        // Nearly all have a single one.
        claims.reserve_exact(1);
        claims.insert(at, claim);
    }
    claims.len()
}

/// Takes a claim back, and says how many are left.
fn release<K: Copy + Ord>(claims: &mut BTreeMap<K, Claims>, key: &K, name: &Id) -> usize {
    let Some(claimants) = claims.get_mut(key) else {
        return 0;
    };
    claimants.retain(|(_, claimant)| claimant != name);
    let left = claimants.len();
    if left == 0 {
        claims.remove(key);
    }
    left
}

fn count_down<K: Copy + Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "index/tests.rs"]
mod tests;
