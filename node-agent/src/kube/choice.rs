//! Which of a Service's endpoints this node uses.
//!
//! The choice is kube-proxy's (`CategorizeEndpoints` of Kubernetes 1.36): the ready ones that topology hints leave, else those
//! that still serve while they end; of this node likewise where a traffic policy says Local.

use std::collections::BTreeMap;
use std::sync::Arc;

use nftfleet_domain::service::{Endpoint, Family, Protocol};

use super::meaning::Place;
use super::object::{NodeHint, ServicePort, Slice, SliceEndpoint};

/// The endpoints of a Service's port that slices name, each once.
pub(super) fn candidates<'a>(
    port: &ServicePort,
    family: Family,
    slices: &[&'a Slice],
) -> BTreeMap<Endpoint, &'a SliceEndpoint> {
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
pub(super) struct Chosen {
    /// Those of the cluster.
    pub all: Arc<[Endpoint]>,
    /// Those of this node.
    pub local: Arc<[Endpoint]>,
    /// Whether any endpoint anywhere could be used.
    pub any: bool,
    /// For UDP, those whose flows may go on.
    pub serving: Arc<[Endpoint]>,
}

/// Chooses among the endpoints.
pub(super) fn choose(found: &BTreeMap<Endpoint, &SliceEndpoint>, place: &Place, protocol: Protocol) -> Chosen {
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
