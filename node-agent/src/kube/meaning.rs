//! What one Service means for the data plane of this node. Pure: a Service, its slices and the node's place in, VIPs out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};

use super::choice::{Chosen, candidates, choose};
use super::few::Few;
use super::id::Id;
use super::object::{Service, ServicePort, Slice};
use crate::dataplane::desired::{Affinity, Frontend, List, Name, Route};
use crate::dataplane::layout::most_endpoints;
use crate::dataplane::programmed::Which;

/// What the node contributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its zone.
    pub zone: Option<String>,
    /// Its own address in each family, which a load balancer's source ranges may hold.
    pub addresses: BTreeSet<IpAddr>,
    /// The addresses on which node ports listen.
    pub nodeport_ips: BTreeSet<IpAddr>,
}

/// Where a load balancer asks whether this node has endpoints of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port.
    pub port: u16,
    /// How many ready endpoints of the Service run on this node.
    pub local_endpoints: usize,
}

/// What a Service asks of the data plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meaning {
    /// Its VIPs.
    pub frontends: Few<Vip, Frontend>,
    /// Its virtual addresses, and the Service's name.
    pub cluster_ips: Few<IpAddr, Name>,
    /// What most Services have nothing of.
    rest: Option<Box<Rest>>,
}

/// What most Services have nothing of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rest {
    /// Its load balancers' and external addresses.
    pub external_ips: BTreeSet<IpAddr>,
    /// Its endpoints on this node.
    pub hairpins: BTreeSet<(Protocol, Endpoint)>,
    /// What its load balancers ask.
    pub health_check: Option<HealthCheck>,
    /// Lists that are longer than the table has room for, in words.
    pub too_long: Vec<String>,
    /// Its ports with endpoints on other nodes alone, although a policy asks for those of this one.
    pub no_local: NoLocal,
}

/// Counts of ports, once for each family, with endpoints on other nodes alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocal {
    /// Whose internal traffic policy is Local.
    pub internal: usize,
    /// Whose external one is, of those that can be reached from outside.
    pub external: usize,
}

impl NoLocal {
    const NONE: Self = Self {
        internal: 0,
        external: 0,
    };
}

impl Rest {
    const NOTHING: Self = Self {
        external_ips: BTreeSet::new(),
        hairpins: BTreeSet::new(),
        health_check: None,
        too_long: Vec::new(),
        no_local: NoLocal::NONE,
    };
}

impl Meaning {
    /// What most Services have nothing of.
    pub fn rest(&self) -> &Rest {
        static NOTHING: Rest = Rest::NOTHING;
        self.rest.as_deref().unwrap_or(&NOTHING)
    }
}

/// nft takes comments of up to 128 bytes.
const LONGEST_NAME: usize = 124;

/// The Service's meaning.
pub(super) fn meaning(name: &Id, service: &Service, slices: &[&Slice], place: &Place) -> Meaning {
    let mut rest = Rest::NOTHING;
    let mut frontends = BTreeMap::new();
    let mut ready_here = BTreeSet::new();
    let named = cut(name.to_string());
    let cluster_ips = service.cluster_ips.iter().map(|address| (*address, Arc::clone(&named)));
    let cluster_ips = cluster_ips.collect::<BTreeMap<_, _>>();
    // A Service is of the families of its ClusterIPs; node ports and addresses of others are none of its own.
    let is_of = |family| service.cluster_ips.iter().any(|address| Family::of(*address) == family);
    let external = service.external_ips.iter().chain(&service.load_balancer_ips);
    let external = external.filter(|address| is_of(Family::of(**address)));
    rest.external_ips = external.copied().collect();
    for family in Family::BOTH.into_iter().filter(|family| is_of(*family)) {
        let sources = sources(service, family, place);
        for port in &service.ports {
            let found = candidates(port, family, slices);
            ready_here.extend(found.iter().filter(|(_, e)| e.local && e.ready).map(|(e, _)| e.address));
            let vips = |addresses: &mut dyn Iterator<Item = &IpAddr>, number| -> Vec<Vip> {
                let of_family = addresses.filter(|address| Family::of(**address) == family);
                let vip = |address: &IpAddr| Vip {
                    address: *address,
                    protocol: port.protocol,
                    port: number,
                };
                of_family.map(vip).collect()
            };
            let mut external = vips(&mut rest.external_ips.iter(), port.port);
            if let Some(node_port) = port.node_port {
                external.extend(vips(&mut place.nodeport_ips.iter(), node_port));
            }
            let port = Port {
                service,
                name: name_of_port(name, port),
                protocol: port.protocol,
                internal: vips(&mut service.cluster_ips.iter(), port.port),
                external,
                sources: sources.clone(),
            };
            let chosen = choose(&found, place, port.protocol);
            port.note(&mut rest, &chosen, |endpoint| found[endpoint].local);
            port.add_to(&mut frontends, &chosen);
        }
    }
    rest.health_check = service.health_check_port.map(|port| {
        // Of the first family: an endpoint has an address in each.
        let first = service.cluster_ips.first().map(|address| Family::of(*address));
        let of_first = |address: &&IpAddr| Some(Family::of(**address)) == first;
        HealthCheck {
            port,
            local_endpoints: ready_here.iter().filter(of_first).count(),
        }
    });
    Meaning {
        frontends: frontends.into(),
        cluster_ips: cluster_ips.into(),
        rest: (rest != Rest::NOTHING).then(|| Box::new(rest)),
    }
}

/// Who may connect to load balancers' addresses of a family; none means everybody.
fn sources(service: &Service, family: Family, place: &Place) -> Option<Arc<BTreeSet<IpNet>>> {
    let ranges = service.source_ranges.iter();
    let mut ranges: Vec<IpNet> = ranges.filter(|r| Family::of(r.addr()) == family).copied().collect();
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    // A node's own connections to the address may loop back with that address as their source.
    let holds_node = |range: &IpNet| place.addresses.iter().any(|address| range.contains(address));
    if ranges.iter().any(holds_node) {
        let vips = service.load_balancer_ips.iter().filter(|a| Family::of(**a) == family);
        ranges.extend(vips.map(|address| IpNet::from(*address)));
    }
    Some(Arc::new(IpNet::aggregate(&ranges).into_iter().collect()))
}

/// A port of a Service in one family.
struct Port<'a> {
    service: &'a Service,
    name: Name,
    protocol: Protocol,
    /// The VIPs of the Service's own addresses.
    internal: Vec<Vip>,
    /// Those of external addresses and node ports.
    external: Vec<Vip>,
    sources: Option<Arc<BTreeSet<IpNet>>>,
}

impl Port<'_> {
    fn list(&self, which: Which, endpoints: &Arc<[Endpoint]>) -> Option<List> {
        let (inside, outside) = match which {
            Which::All => (!self.service.internal_local, true),
            Which::Local => (self.service.internal_local, self.service.external_local),
        };
        let affinity = self.service.affinity.map(|timeout| {
            let inside = self.internal.iter().filter(|_| inside);
            let outside = self.external.iter().filter(|_| outside);
            Affinity {
                timeout,
                number: number(&self.name, self.protocol, which),
                siblings: inside.chain(outside).copied().collect(),
            }
        });
        let endpoints = Arc::clone(endpoints);
        (!endpoints.is_empty()).then_some(List { endpoints, affinity })
    }

    fn add_to(self, frontends: &mut BTreeMap<Vip, Frontend>, chosen: &Chosen) {
        let all = || self.list(Which::All, &chosen.all);
        let local = || self.list(Which::Local, &chosen.local);
        let frontend = |route, all, local| Frontend {
            name: Arc::clone(&self.name),
            route,
            all,
            local,
            sources: None,
            serving: Arc::clone(&chosen.serving),
        };
        let inside = if self.service.internal_local {
            let elsewhere = chosen.local.is_empty() && chosen.any;
            frontend(elsewhere.then_some(Route::NoLocalEndpoints), None, local())
        } else {
            frontend(None, all(), None)
        };
        let outside = match (chosen.any, self.service.external_local) {
            (false, _) => frontend(Some(Route::NoEndpoints), None, None),
            (true, false) => frontend(Some(Route::ToAll), all(), None),
            (true, true) => frontend(Some(Route::ToLocal), all(), local()),
        };
        // A VIP that is there already is a repeated port of this Service: the first stays.
        for vip in self.internal {
            frontends.entry(vip).or_insert_with(|| inside.clone());
        }
        for vip in self.external {
            let is_guarded = self.service.load_balancer_ips.contains(&vip.address);
            frontends.entry(vip).or_insert_with(|| Frontend {
                sources: self.sources.clone().filter(|_| is_guarded),
                ..outside.clone()
            });
        }
    }

    /// Endpoints of this node, which may meet themselves through any list that is used, lists that are too long, and those
    /// without endpoints of this node.
    fn note(&self, rest: &mut Rest, chosen: &Chosen, is_local: impl Fn(&Endpoint) -> bool) {
        let (internal_local, external_local) = (self.service.internal_local, self.service.external_local);
        let has_external = !self.external.is_empty();
        let uses_local = internal_local || (external_local && has_external);
        if chosen.any && chosen.local.is_empty() {
            rest.no_local.internal += usize::from(internal_local);
            rest.no_local.external += usize::from(external_local && has_external);
        }
        let uses_all = !internal_local || has_external;
        let lists = [
            (Which::All, uses_all, &chosen.all),
            (Which::Local, uses_local, &chosen.local),
        ];
        for (which, _, endpoints) in lists.into_iter().filter(|(_, used, _)| *used) {
            let (count, most) = (endpoints.len(), most_endpoints(which));
            let here = endpoints.iter().take(most).filter(|endpoint| is_local(endpoint));
            rest.hairpins.extend(here.map(|endpoint| (self.protocol, *endpoint)));
            if count > most {
                rest.too_long
                    .push(format!("{}: {count} endpoints, more than {most}", self.name));
            }
        }
    }
}

/// As a person reads it: by its name, or by its number if it has none.
fn name_of_port(service: &Id, port: &ServicePort) -> Name {
    cut(if port.name.is_empty() {
        format!("{service}:{}", port.port)
    } else {
        format!("{service}:{}", port.name)
    })
}

fn cut(text: String) -> Name {
    if text.len() <= LONGEST_NAME {
        return text.into();
    }
    // Names of Kubernetes are ASCII; for anything else the cut moves to the next whole character.
    let at = (0..=LONGEST_NAME - 3).rev().find(|at| text.is_char_boundary(*at));
    format!("{}...", &text[..at.unwrap_or(0)]).into()
}

/// What clients of a list are remembered under. The same after every restart; two Services with one number, of which there
/// are two thousand million, would only remember a client together. Clear of tickets and of priorities that others use.
fn number(port_name: &str, protocol: Protocol, which: Which) -> u32 {
    const FIRST: u32 = 0x8000_0000;
    // FNV-1a, 64 bits.
    let which = match which {
        Which::All => 0,
        Which::Local => 1,
    };
    let bytes = port_name.bytes().chain([protocol.number(), which]);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let folded = (hash >> 32) ^ (hash & 0xffff_ffff);
    FIRST | u32::try_from(folded & 0x7fff_ffff).unwrap_or(0)
}
