//! What one Service means for the data plane of this node. Pure: a Service, its slices and the node's place in, VIPs out.
//!
//! The choice of endpoints is kube-proxy's (`CategorizeEndpoints` of Kubernetes 1.36): the ready ones that topology hints
//! leave, else those that still serve while they end; of this node likewise where a traffic policy says Local.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use nftfleet_domain::service::{Endpoint, Family, ObjectName, Protocol, Vip};

use super::object::{NodeHint, Service, ServicePort, Slice, SliceEndpoint};
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
pub struct Meaning {
    /// Its VIPs.
    pub frontends: BTreeMap<Vip, Frontend>,
    /// Its virtual addresses, and the Service's name.
    pub cluster_ips: BTreeMap<IpAddr, Name>,
    /// Its load balancers' and external addresses.
    pub external_ips: BTreeSet<IpAddr>,
    /// Its endpoints on this node.
    pub hairpins: BTreeSet<(Protocol, Endpoint)>,
    /// What its load balancers ask.
    pub health_check: Option<HealthCheck>,
    /// Lists that are longer than the table has room for, in words.
    pub too_long: Vec<String>,
}

/// nft takes comments of up to 128 bytes.
const LONGEST_NAME: usize = 124;

/// The Service's meaning.
pub fn meaning(name: &ObjectName, service: &Service, slices: &[&Slice], place: &Place) -> Meaning {
    let mut meaning = Meaning::default();
    let mut ready_here = BTreeSet::new();
    for address in &service.cluster_ips {
        meaning.cluster_ips.insert(*address, cut(name.to_string()));
    }
    for address in service.external_ips.iter().chain(&service.load_balancer_ips) {
        if !service.cluster_ips.is_empty() {
            meaning.external_ips.insert(*address);
        }
    }
    for family in Family::BOTH {
        let of_family = |address: &&IpAddr| Family::of(**address) == family;
        let vips = Addresses {
            cluster_ips: service.cluster_ips.iter().filter(of_family).copied().collect(),
            external: meaning.external_ips.iter().filter(of_family).copied().collect(),
            nodeport_ips: place.nodeport_ips.iter().filter(of_family).copied().collect(),
        };
        let sources = sources(service, family, place);
        for port in &service.ports {
            let found = candidates(port, family, slices);
            ready_here.extend(found.iter().filter(|(_, e)| e.local && e.ready).map(|(e, _)| e.address));
            of_port(name, service, port, &vips, &found, &sources, place, &mut meaning);
        }
    }
    meaning.health_check = service.health_check_port.map(|port| {
        // Of the first family: an endpoint has an address in each.
        let first = service.cluster_ips.first().map(|address| Family::of(*address));
        let of_first = |address: &&IpAddr| Some(Family::of(**address)) == first;
        HealthCheck {
            port,
            local_endpoints: ready_here.iter().filter(of_first).count(),
        }
    });
    meaning
}

/// A Service's addresses in one family.
struct Addresses {
    cluster_ips: Vec<IpAddr>,
    external: Vec<IpAddr>,
    nodeport_ips: Vec<IpAddr>,
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

/// The endpoints of a Service's port that slices name, each once.
fn candidates<'a>(port: &ServicePort, family: Family, slices: &[&'a Slice]) -> BTreeMap<Endpoint, &'a SliceEndpoint> {
    let mut found = BTreeMap::<Endpoint, &SliceEndpoint>::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        let same = slice
            .ports
            .iter()
            .filter(|p| p.name == port.name && p.protocol == port.protocol);
        for target in same {
            for endpoint in &slice.endpoints {
                let key = Endpoint {
                    address: endpoint.address,
                    port: target.port,
                };
                let known = found.entry(key).or_insert(endpoint);
                // The same address in two slices: the one that is not ending wins, as in kube-proxy.
                if known.terminating && !endpoint.terminating {
                    *known = endpoint;
                }
            }
        }
    }
    found
}

/// The endpoints of a Service's port, chosen.
struct Chosen {
    all: Arc<[Endpoint]>,
    local: Arc<[Endpoint]>,
    /// Whether any endpoint anywhere could be used.
    any: bool,
    serving: Arc<[Endpoint]>,
}

fn choose(found: &BTreeMap<Endpoint, &SliceEndpoint>, place: &Place, protocol: Protocol) -> Chosen {
    type Test<'a> = &'a dyn Fn(&SliceEndpoint) -> bool;
    let of = |test: Test<'_>| -> Arc<[Endpoint]> {
        let kept = found.iter().filter(|(_, e)| test(e));
        kept.map(|(endpoint, _)| *endpoint).collect()
    };
    let first_of = |tests: [Test<'_>; 2]| tests.into_iter().map(of).find(|list| !list.is_empty());
    let ending = |e: &SliceEndpoint| e.serving && e.terminating;
    let near = nearness(found, place);
    let all = first_of([&|e| e.ready && near.allows(e, place), &ending]).unwrap_or_default();
    let local = first_of([&|e| e.local && e.ready, &|e| e.local && ending(e)]).unwrap_or_default();
    Chosen {
        any: !all.is_empty() || found.values().any(|e| e.ready || ending(e)),
        all,
        local,
        serving: if protocol == Protocol::Udp {
            of(&|e| e.ready || e.serving)
        } else {
            Arc::default()
        },
    }
}

/// How near an endpoint must be.
#[derive(Clone, Copy)]
enum Nearness {
    Anywhere,
    Node,
    Zone,
}

impl Nearness {
    fn allows(self, endpoint: &SliceEndpoint, place: &Place) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Node => endpoint.node_hint == NodeHint::This,
            Self::Zone => is_for_zone(endpoint, place),
        }
    }
}

fn is_for_zone(endpoint: &SliceEndpoint, place: &Place) -> bool {
    let (zones, zone) = (endpoint.zones.as_deref(), place.zone.as_ref());
    zone.is_some_and(|zone| zones.is_some_and(|zones| zones.contains(zone)))
}

/// Hints count only if every ready endpoint has one and one of them is for here.
fn nearness(found: &BTreeMap<Endpoint, &SliceEndpoint>, place: &Place) -> Nearness {
    let ready = || found.values().filter(|e| e.ready);
    if ready().all(|e| e.node_hint != NodeHint::None) && ready().any(|e| e.node_hint == NodeHint::This) {
        Nearness::Node
    } else if ready().all(|e| e.zones.is_some()) && ready().any(|e| is_for_zone(e, place)) {
        Nearness::Zone
    } else {
        Nearness::Anywhere
    }
}

#[expect(clippy::too_many_arguments, reason = "the parts of one Service, each used once")]
fn of_port(
    name: &ObjectName,
    service: &Service,
    port: &ServicePort,
    addresses: &Addresses,
    found: &BTreeMap<Endpoint, &SliceEndpoint>,
    sources: &Option<Arc<BTreeSet<IpNet>>>,
    place: &Place,
    meaning: &mut Meaning,
) {
    let chosen = choose(found, place, port.protocol);
    let vip = |address: &IpAddr, port: u16, protocol| Vip {
        address: *address,
        protocol,
        port,
    };
    let internal: Vec<Vip> = addresses
        .cluster_ips
        .iter()
        .map(|a| vip(a, port.port, port.protocol))
        .collect();
    let mut external: Vec<Vip> = addresses
        .external
        .iter()
        .map(|a| vip(a, port.port, port.protocol))
        .collect();
    if let Some(node_port) = port.node_port {
        let nodes = addresses.nodeport_ips.iter();
        external.extend(nodes.map(|a| vip(a, node_port, port.protocol)));
    }
    if internal.is_empty() && external.is_empty() {
        return;
    }
    let port_name = if port.name.is_empty() {
        cut(format!("{name}:{}", port.port))
    } else {
        cut(format!("{name}:{}", port.name))
    };
    let users = |inside: bool, outside: bool| -> Arc<[Vip]> {
        let inside = internal.iter().filter(|_| inside);
        inside.chain(external.iter().filter(|_| outside)).copied().collect()
    };
    let list = |which: Which, endpoints: &Arc<[Endpoint]>, siblings: Arc<[Vip]>| {
        let affinity = service.affinity.map(|timeout| Affinity {
            timeout,
            number: number(&port_name, port.protocol, which),
            siblings,
        });
        let endpoints = Arc::clone(endpoints);
        (!endpoints.is_empty()).then_some(List { endpoints, affinity })
    };
    let all = list(Which::All, &chosen.all, users(!service.internal_local, true));
    let local = list(
        Which::Local,
        &chosen.local,
        users(service.internal_local, service.external_local),
    );
    let frontend = |route, all: &Option<List>, local: &Option<List>| Frontend {
        name: Arc::clone(&port_name),
        route,
        all: all.clone(),
        local: local.clone(),
        sources: None,
        serving: Arc::clone(&chosen.serving),
    };
    let inside = if service.internal_local {
        let elsewhere = chosen.local.is_empty() && chosen.any;
        frontend(elsewhere.then_some(Route::NoLocalEndpoints), &None, &local)
    } else {
        frontend(None, &all, &None)
    };
    let outside = match (chosen.any, service.external_local) {
        (false, _) => frontend(Some(Route::NoEndpoints), &None, &None),
        (true, false) => frontend(Some(Route::ToAll), &all, &None),
        (true, true) => frontend(Some(Route::ToLocal), &all, &local),
    };
    let uses_local = service.internal_local || (service.external_local && !external.is_empty());
    let uses_all = !service.internal_local || !external.is_empty();
    let lists = [
        (Which::All, uses_all, &chosen.all),
        (Which::Local, uses_local, &chosen.local),
    ];
    for (which, _, endpoints) in lists.iter().filter(|(_, used, _)| *used) {
        // An endpoint of this node may meet itself through either list.
        let here = endpoints
            .iter()
            .take(most_endpoints(*which))
            .filter(|e| found[*e].local);
        meaning.hairpins.extend(here.map(|e| (port.protocol, *e)));
        if endpoints.len() > most_endpoints(*which) {
            let (count, most) = (endpoints.len(), most_endpoints(*which));
            meaning.too_long.push(format!("{count} endpoints, more than {most}"));
        }
    }
    // A VIP that is there already is a repeated port of this Service: the first stays.
    for vip in internal {
        meaning.frontends.entry(vip).or_insert_with(|| inside.clone());
    }
    for vip in external {
        let is_guarded = service.load_balancer_ips.contains(&vip.address);
        meaning.frontends.entry(vip).or_insert_with(|| Frontend {
            sources: sources.clone().filter(|_| is_guarded),
            ..outside.clone()
        });
    }
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
