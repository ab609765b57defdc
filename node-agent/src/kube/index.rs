//! What all Services and EndpointSlices together mean for the data plane. Pure: `apply`, `delete` and `reset` in, a view out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use nftfleet_domain::ids::NodeName;
use nftfleet_domain::rollout::ProbeTarget;
use nftfleet_domain::service::{Endpoint, Family, ObjectName, Protocol, Vip};

use super::object::{Service, ServicePort, Slice, SliceEndpoint};
use crate::dataplane::Desired;
use crate::dataplane::layout::most_endpoints;

/// All Services and EndpointSlices that are known.
#[derive(Debug)]
pub struct Index {
    node: NodeName,
    services: Option<BTreeMap<ObjectName, Service>>,
    slices: Option<BTreeMap<ObjectName, Slice>>,
}

/// What the Services mean, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// What the data plane should hold.
    pub desired: Arc<Desired>,
    /// Services that ask for what this data plane does not do yet, with what they ask for.
    pub unsupported: Vec<String>,
    /// Where each TCP port of each Service answers.
    pub tcp: Arc<BTreeMap<(ObjectName, u16), Vec<SocketAddr>>>,
}

impl View {
    /// The addresses of a probe's target, empty if there is no such Service or port.
    pub fn addresses(&self, target: &ProbeTarget) -> Vec<SocketAddr> {
        let name = ObjectName {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
        };
        self.tcp.get(&(name, target.port)).cloned().unwrap_or_default()
    }
}

impl Index {
    /// An index that knows nothing yet, on the node of this name.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            services: None,
            slices: None,
        }
    }

    /// A first or new list of all Services.
    pub fn reset_services(&mut self, all: BTreeMap<ObjectName, Service>) {
        self.services = Some(all);
    }

    /// A first or new list of all slices.
    pub fn reset_slices(&mut self, all: BTreeMap<ObjectName, Slice>) {
        self.slices = Some(all);
    }

    /// A Service is new or has changed; none means that it is gone or makes no sense.
    pub fn apply_service(&mut self, name: ObjectName, service: Option<Service>) {
        let services = self.services.get_or_insert_default();
        match service {
            Some(service) => drop(services.insert(name, service)),
            None => drop(services.remove(&name)),
        }
    }

    /// A slice is new or has changed; none means that it is gone or makes no sense.
    pub fn apply_slice(&mut self, name: ObjectName, slice: Option<Slice>) {
        let slices = self.slices.get_or_insert_default();
        match slice {
            Some(slice) => drop(slices.insert(name, slice)),
            None => drop(slices.remove(&name)),
        }
    }

    /// What the Services mean; none until every first list is in, since a start would wipe what is missing.
    pub fn view(&self) -> Option<View> {
        let (services, slices) = (self.services.as_ref()?, self.slices.as_ref()?);
        let mut by_service = BTreeMap::<&ObjectName, Vec<&Slice>>::new();
        for slice in slices.values() {
            by_service.entry(&slice.service).or_default().push(slice);
        }
        let mut desired = Desired::default();
        let mut unsupported = Vec::new();
        let mut tcp = BTreeMap::<(ObjectName, u16), Vec<SocketAddr>>::new();
        for (name, service) in services {
            let slices = by_service.get(name).map(Vec::as_slice).unwrap_or_default();
            for what in &service.unsupported {
                unsupported.push(format!("{name}: {what}"));
            }
            desired.cluster_ips.extend(&service.cluster_ips);
            for address in &service.cluster_ips {
                for port in &service.ports {
                    if port.protocol == Protocol::Tcp {
                        let socket = SocketAddr::new(*address, port.port);
                        tcp.entry((name.clone(), port.port)).or_default().push(socket);
                    }
                    let chosen = self.endpoints(port, Family::of(*address), slices, &mut desired.local);
                    if chosen.len() > most_endpoints() {
                        unsupported.push(format!(
                            "{name}: {} endpoints, more than {}",
                            chosen.len(),
                            most_endpoints()
                        ));
                    }
                    let vip = Vip {
                        address: *address,
                        protocol: port.protocol,
                        port: port.port,
                    };
                    // Two Services can't hold one ClusterIP, so a VIP that is there already is a repeated port: it stays.
                    desired.services.entry(vip).or_insert(chosen);
                }
            }
        }
        desired.services.retain(|_, endpoints| !endpoints.is_empty());
        Some(View {
            desired: Arc::new(desired),
            unsupported,
            tcp: Arc::new(tcp),
        })
    }

    /// The endpoints of a Service's port: those that are ready, else those that still serve while they end.
    fn endpoints(
        &self,
        port: &ServicePort,
        family: Family,
        slices: &[&Slice],
        local: &mut BTreeSet<(Protocol, Endpoint)>,
    ) -> BTreeSet<Endpoint> {
        let mut found = BTreeMap::<Endpoint, &SliceEndpoint>::new();
        for slice in slices.iter().filter(|slice| slice.family == family) {
            let same = |p: &&ServicePort| p.name == port.name && p.protocol == port.protocol;
            for target in slice.ports.iter().filter(same) {
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
        let ready: BTreeSet<Endpoint> = found.iter().filter(|(_, e)| e.ready).map(|(key, _)| *key).collect();
        let chosen = if ready.is_empty() {
            found
                .iter()
                .filter(|(_, e)| e.serving && e.terminating)
                .map(|(key, _)| *key)
                .collect()
        } else {
            ready
        };
        let here = |endpoint: &&Endpoint| found[*endpoint].node.as_deref() == Some(self.node.as_str());
        local.extend(chosen.iter().filter(here).map(|endpoint| (port.protocol, *endpoint)));
        chosen
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> ObjectName {
        ObjectName {
            namespace: "shop".to_owned(),
            name: text.to_owned(),
        }
    }

    fn port(number: u16) -> ServicePort {
        ServicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: number,
        }
    }

    fn service(last: u8) -> Service {
        Service {
            cluster_ips: vec![IpAddr::from([10, 96, 0, last])],
            ports: vec![port(80)],
            unsupported: BTreeSet::new(),
        }
    }

    fn endpoint(last: u8, ready: bool, serving: bool, terminating: bool) -> SliceEndpoint {
        let address = IpAddr::from([10, 128, 0, last]);
        SliceEndpoint {
            address,
            node: Some(format!("node-{}", last % 3)),
            ready,
            serving,
            terminating,
        }
    }

    fn slice(service: &str, endpoints: Vec<SliceEndpoint>) -> Slice {
        Slice {
            service: name(service),
            family: Family::V4,
            ports: vec![port(8080)],
            endpoints,
        }
    }

    fn index() -> Index {
        Index::new("node-1".parse().unwrap())
    }

    fn found(index: &Index) -> Vec<u8> {
        let view = index.view().unwrap();
        view.desired
            .services
            .values()
            .flatten()
            .map(|e| match e.address {
                IpAddr::V4(address) => address.octets()[3],
                IpAddr::V6(_) => 0,
            })
            .collect()
    }

    #[test]
    fn nothing_is_known_until_both_lists_are_in() {
        let mut index = index();
        assert_eq!(index.view(), None);
        index.reset_services(BTreeMap::new());
        assert_eq!(index.view(), None);
        index.reset_slices(BTreeMap::new());
        assert!(index.view().is_some());
    }

    #[test]
    fn endings_serve_only_when_nobody_is_ready() {
        let mut index = index();
        index.reset_services([(name("web"), service(1))].into());
        let (ready, ending, dead) = (
            endpoint(1, true, true, false),
            endpoint(2, false, true, true),
            endpoint(3, false, false, true),
        );
        index.reset_slices([(name("a"), slice("web", vec![ready, ending.clone(), dead.clone()]))].into());
        assert_eq!(found(&index), [1]);
        index.apply_slice(name("a"), Some(slice("web", vec![ending, dead])));
        assert_eq!(found(&index), [2]);
    }

    #[test]
    fn an_endpoint_in_two_slices_counts_once_and_lives() {
        let mut index = index();
        index.reset_services([(name("web"), service(1))].into());
        index.reset_slices(
            [
                (name("a"), slice("web", vec![endpoint(1, false, true, true)])),
                (
                    name("b"),
                    slice(
                        "web",
                        vec![endpoint(1, true, true, false), endpoint(2, true, true, false)],
                    ),
                ),
            ]
            .into(),
        );
        assert_eq!(found(&index), [1, 2]);
    }

    #[test]
    fn only_this_nodes_endpoints_may_reach_themselves() {
        let mut index = index();
        index.reset_services([(name("web"), service(1))].into());
        let endpoints = (1..=3).map(|n| endpoint(n, true, true, false)).collect();
        index.reset_slices([(name("a"), slice("web", endpoints))].into());
        let local: Vec<_> = index
            .view()
            .unwrap()
            .desired
            .local
            .iter()
            .map(|(_, e)| e.address)
            .collect();
        assert_eq!(local, [IpAddr::from([10, 128, 0, 1])]);
    }

    #[test]
    fn a_service_without_endpoints_keeps_its_address() {
        let mut index = index();
        index.reset_services([(name("web"), service(1))].into());
        index.reset_slices(BTreeMap::new());
        let view = index.view().unwrap();
        assert!(view.desired.services.is_empty());
        assert_eq!(view.desired.cluster_ips.len(), 1);
    }

    proptest! {
        #[test]
        fn any_order_of_events_gives_the_same_view(
            slices in proptest::collection::btree_map(0u8..6, proptest::collection::vec((0u8..20, any::<bool>()), 0..6), 1..6),
            order in proptest::collection::vec(0usize..1000, 12),
        ) {
            let make = |n: u8, endpoints: &Vec<(u8, bool)>| {
                let endpoints = endpoints.iter().map(|(last, ready)| endpoint(*last, *ready, true, !ready)).collect();
                (name(&format!("slice-{n}")), slice(if n.is_multiple_of(2) { "web" } else { "db" }, endpoints))
            };
            let mut one = index();
            one.reset_services([(name("web"), service(1)), (name("db"), service(2))].into());
            one.reset_slices(slices.iter().map(|(n, e)| make(*n, e)).collect());

            let mut other = index();
            other.reset_slices(BTreeMap::new());
            other.reset_services(BTreeMap::new());
            let mut events: Vec<_> = slices.iter().map(|(n, e)| make(*n, e)).collect();
            for (i, key) in order.iter().enumerate() {
                let len = events.len();
                events.swap(i % len, key % len);
            }
            let half = events.len() / 2;
            for (i, (name_of, slice)) in events.into_iter().enumerate() {
                if i == half {
                    other.apply_service(name("web"), Some(service(1)));
                    other.apply_service(name("gone"), Some(service(9)));
                }
                other.apply_slice(name("extra"), Some(slice.clone()));
                other.apply_slice(name_of, Some(slice));
            }
            other.apply_slice(name("extra"), None);
            other.apply_service(name("gone"), None);
            other.apply_service(name("db"), Some(service(2)));
            prop_assert_eq!(one.view(), other.view());
        }
    }
}
