//! What the data plane should hold, as plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};

/// The name of a Service or of one of its ports, as a person reads it: `shop/web` or `shop/web:http`.
pub type Name = Arc<str>;

/// How a packet from a pod of this node is told from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodMatch {
    /// By its source address, of the match's own family.
    Source(IpNet),
    /// By the device through which it came, named in full.
    Interface(String),
    /// By the beginning of that device's name.
    InterfacePrefix(String),
}

/// How pods are told from others in each family; none if they can't be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// In IPv4.
    pub v4: Option<PodMatch>,
    /// In IPv6.
    pub v6: Option<PodMatch>,
}

impl Pods {
    /// In this family.
    pub const fn of(&self, family: Family) -> Option<&PodMatch> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }
}

/// Session affinity of a list: a client that comes back within the timeout is sent to the same endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// After how many seconds without a new connection a client is forgotten, 1-86400.
    pub timeout: u32,
    /// What its clients are remembered under: one number for all VIPs of a Service's port in a family.
    pub number: u32,
    /// All VIPs of that number; their tickets mean the same endpoints.
    pub siblings: Arc<[Vip]>,
}

/// The endpoints that a VIP's connections are spread over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// Sorted, without repetition, at least one.
    pub endpoints: Arc<[Endpoint]>,
    /// Whether clients stick.
    pub affinity: Option<Affinity>,
}

/// What becomes of a packet to a VIP that does not simply go to an endpoint of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// From outside, to all endpoints, masqueraded: external traffic policy Cluster.
    ToAll,
    /// From outside, to the endpoints of this node, with its source: external traffic policy Local.
    ToLocal,
    /// From outside, refused: there is no endpoint.
    NoEndpoints,
    /// To a `ClusterIP` with internal traffic policy Local, dropped: all endpoints are on other nodes.
    NoLocalEndpoints,
}

impl Route {
    /// In the order in which the rules look at them.
    pub const ALL: [Self; 4] = [Self::ToAll, Self::ToLocal, Self::NoEndpoints, Self::NoLocalEndpoints];
}

/// One VIP of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The Service's port.
    pub name: Name,
    /// Set for every VIP but that of a `ClusterIP`; set there only to drop.
    pub route: Option<Route>,
    /// All endpoints that may be used, none if there is none or if only those of this node may be.
    pub all: Option<List>,
    /// Those of this node, if a traffic policy asks for them.
    pub local: Option<List>,
    /// Who may connect, without overlaps; none means everybody.
    pub sources: Option<Arc<BTreeSet<IpNet>>>,
    /// For UDP, the endpoints whose flows may go on, those that end among them. Empty for other protocols.
    pub serving: Arc<[Endpoint]>,
}

/// Everything that the table should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Each VIP.
    pub frontends: BTreeMap<Vip, Frontend>,
    /// All `ClusterIP`s with their Service: a port that no Service has is refused there.
    pub cluster_ips: BTreeMap<IpAddr, Name>,
    /// Load balancers' and external addresses.
    pub external_ips: BTreeSet<IpAddr>,
    /// The node's addresses on which node ports listen.
    pub nodeport_ips: BTreeSet<IpAddr>,
    /// Where Services' addresses come from: what is not allocated there is dropped. Without overlaps.
    pub service_cidrs: BTreeSet<IpNet>,
    /// Endpoints of this node, which may reach themselves through a Service.
    pub hairpins: BTreeSet<(Protocol, Endpoint)>,
    /// How pods are told from others.
    pub pods: Pods,
}

/// What may differ between two states: all else follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Everything about a VIP.
    Vip(Vip),
    /// An address of [`Desired::cluster_ips`].
    ClusterIp(IpAddr),
    /// An address of [`Desired::external_ips`].
    ExternalIp(IpAddr),
    /// An address of [`Desired::nodeport_ips`].
    NodePortIp(IpAddr),
    /// A network of [`Desired::service_cidrs`].
    ServiceCidr(IpNet),
    /// An endpoint of [`Desired::hairpins`].
    Hairpin(Protocol, Endpoint),
}

/// A change of what is desired, one key at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// VIPs that are new, changed, or gone.
    pub frontends: BTreeMap<Vip, Option<Frontend>>,
    /// `ClusterIP`s likewise.
    pub cluster_ips: BTreeMap<IpAddr, Option<Name>>,
    /// External addresses, and whether they are there.
    pub external_ips: BTreeMap<IpAddr, bool>,
    /// Node port addresses likewise.
    pub nodeport_ips: BTreeMap<IpAddr, bool>,
    /// `ServiceCIDR`s likewise.
    pub service_cidrs: BTreeMap<IpNet, bool>,
    /// Local endpoints likewise.
    pub hairpins: BTreeMap<(Protocol, Endpoint), bool>,
    /// How pods are told, if that has changed.
    pub pods: Option<Pods>,
    /// What was heard that led to it.
    pub heard: Heard,
}

/// What was heard from Kubernetes, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Events of Services.
    pub services: u64,
    /// Events of `EndpointSlices`.
    pub slices: u64,
    /// When the changes happened that made slices be written, where the slices say so.
    pub triggers: Vec<Timestamp>,
}

impl Heard {
    /// Both together.
    pub fn extend(&mut self, more: Self) {
        self.services += more.services;
        self.slices += more.slices;
        self.triggers.extend(more.triggers);
    }
}

impl Update {
    /// Whether nothing changes, whatever was heard.
    pub fn is_empty(&self) -> bool {
        let Self {
            frontends,
            cluster_ips,
            external_ips,
            nodeport_ips,
            service_cidrs,
            hairpins,
            pods,
            heard: _,
        } = self;
        frontends.is_empty()
            && cluster_ips.is_empty()
            && external_ips.is_empty()
            && nodeport_ips.is_empty()
            && service_cidrs.is_empty()
            && hairpins.is_empty()
            && pods.is_none()
    }
}

impl Desired {
    /// Takes a change in, and gives the keys that it touches.
    pub fn apply(&mut self, update: Update) -> BTreeSet<Key> {
        let mut keys = BTreeSet::new();
        for (vip, frontend) in update.frontends {
            keys.insert(Key::Vip(vip));
            match frontend {
                Some(frontend) => drop(self.frontends.insert(vip, frontend)),
                None => drop(self.frontends.remove(&vip)),
            }
        }
        for (address, name) in update.cluster_ips {
            keys.insert(Key::ClusterIp(address));
            match name {
                Some(name) => drop(self.cluster_ips.insert(address, name)),
                None => drop(self.cluster_ips.remove(&address)),
            }
        }
        let mut members = Members(&mut keys);
        members.change(&mut self.external_ips, update.external_ips, Key::ExternalIp);
        members.change(&mut self.nodeport_ips, update.nodeport_ips, Key::NodePortIp);
        members.change(&mut self.service_cidrs, update.service_cidrs, Key::ServiceCidr);
        members.change(&mut self.hairpins, update.hairpins, |(protocol, endpoint)| {
            Key::Hairpin(protocol, endpoint)
        });
        if let Some(pods) = update.pods {
            self.pods = pods;
        }
        keys
    }

    /// Every key that means something here.
    pub fn keys(&self) -> BTreeSet<Key> {
        let vips = self.frontends.keys().map(|vip| Key::Vip(*vip));
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
}

/// The keys of changed members.
struct Members<'a>(&'a mut BTreeSet<Key>);

impl Members<'_> {
    fn change<T: Copy + Ord>(&mut self, set: &mut BTreeSet<T>, changes: BTreeMap<T, bool>, key: impl Fn(T) -> Key) {
        for (member, present) in changes {
            self.0.insert(key(member));
            if present {
                set.insert(member);
            } else {
                set.remove(&member);
            }
        }
    }
}
