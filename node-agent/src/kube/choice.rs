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
            for endpoint in &*slice.endpoints {
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// An endpoint in letters: r(eady), t(erminating), s(erving while it ends), l(ocal); zones in capitals; n for a hint to
    /// this node, o for one to others.
    fn endpoints(texts: &[&str]) -> BTreeMap<Endpoint, SliceEndpoint> {
        (1u8..)
            .zip(texts)
            .map(|(n, text)| {
                let has = |letter| text.contains(letter);
                let zones: Vec<String> = text
                    .chars()
                    .filter(char::is_ascii_uppercase)
                    .map(String::from)
                    .collect();
                let endpoint = SliceEndpoint {
                    address: IpAddr::from([10, 128, 0, n]),
                    local: has('l'),
                    ready: has('r'),
                    serving: has('r') || has('s'),
                    terminating: has('t') || has('s'),
                    node_hint: match (has('n'), has('o')) {
                        (true, _) => NodeHint::This,
                        (_, true) => NodeHint::Others,
                        _ => NodeHint::None,
                    },
                    zones: (!zones.is_empty()).then(|| zones.into()),
                };
                let key = Endpoint {
                    address: endpoint.address,
                    port: 80,
                };
                (key, endpoint)
            })
            .collect()
    }

    fn last(endpoints: &[Endpoint]) -> Vec<u8> {
        let byte = |endpoint: &Endpoint| match endpoint.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => 0,
        };
        endpoints.iter().map(byte).collect()
    }

    fn chosen_in(zone: Option<&str>, texts: &[&str], protocol: Protocol) -> Chosen {
        let all = endpoints(texts);
        let found = all.iter().map(|(key, endpoint)| (*key, endpoint)).collect();
        let place = Place {
            zone: zone.map(str::to_owned),
            ..Place::default()
        };
        choose(&found, &place, protocol)
    }

    /// What is chosen of which endpoints: a name, the endpoints, those of the cluster, those of this node, and whether there
    /// are any.
    type Case = (
        &'static str,
        &'static [&'static str],
        &'static [u8],
        &'static [u8],
        bool,
    );

    #[test]
    fn what_is_chosen() {
        // The node is in zone A. What upstream's TestCategorizeEndpoints thinks worth a case, among others.
        let none: &[u8] = &[];
        let cases: [Case; 19] = [
            ("nobody", &[], none, none, false),
            ("nobody who answers", &["", "t"], none, none, false),
            ("the ready ones", &["r", "rl", "", "s"], &[1, 2], &[2], true),
            (
                "endings only without ready ones",
                &["s", "sl", "t"],
                &[1, 2],
                &[2],
                true,
            ),
            ("local endings beside remote ready ones", &["r", "sl"], &[1], &[2], true),
            ("local ready ones before local endings", &["rl", "sl"], &[1], &[1], true),
            ("nobody here", &["r", "s"], &[1], none, true),
            ("hints of zones", &["rA", "rB", "rAB"], &[1, 3], none, true),
            ("a zone without endpoints", &["rB", "rC"], &[1, 2], none, true),
            ("one without a hint", &["rA", "rB", "r"], &[1, 2, 3], none, true),
            ("an unready one without a hint", &["rA", "rB", ""], &[1], none, true),
            ("a local policy knows no hints", &["rA", "rBl"], &[1], &[2], true),
            (
                "hints of nodes before those of zones",
                &["rAn", "rAo", "rBn"],
                &[1, 3],
                none,
                true,
            ),
            (
                "a node without endpoints, then zones",
                &["rAo", "rBo"],
                &[1],
                none,
                true,
            ),
            (
                "one without a node's hint, then zones",
                &["rAn", "rA", "rB"],
                &[1, 2],
                none,
                true,
            ),
            ("a hint to this node on an unready one", &["rAo", "n"], &[1], none, true),
            ("endings have no hints", &["sA", "sB"], &[1, 2], none, true),
            ("ready while it ends", &["rt", "r"], &[1, 2], none, true),
            ("not serving while it ends", &["tl", "s"], &[2], none, true),
        ];
        for (what, texts, all, local, any) in cases {
            let chosen = chosen_in(Some("A"), texts, Protocol::Tcp);
            assert_eq!(last(&chosen.all), all, "{what}");
            assert_eq!(last(&chosen.local), local, "{what}");
            assert_eq!(chosen.any, any, "{what}");
        }
    }

    #[test]
    fn a_node_of_no_zone_ignores_hints_of_zones() {
        assert_eq!(last(&chosen_in(None, &["rA", "rB"], Protocol::Tcp).all), [1, 2]);
    }

    #[test]
    fn flows_of_udp_may_go_on_to_whoever_serves() {
        let serving = |protocol| last(&chosen_in(None, &["r", "s", "t", ""], protocol).serving);
        assert_eq!(serving(Protocol::Udp), [1, 2]);
        assert_eq!(serving(Protocol::Tcp), Vec::<u8>::new());
    }
}
