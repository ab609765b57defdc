use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::dataplane::Desired;
use crate::dataplane::desired::{PodMatch, Route};

fn object(value: Value) -> Object {
    serde_json::from_value(value).unwrap()
}

fn name(text: &str) -> ObjectName {
    ObjectName {
        namespace: "shop".to_owned(),
        name: text.to_owned(),
    }
}

fn service(name: &str, created: u8, spec: &Value) -> Object {
    let created = format!("2026-01-{created:02}T08:00:00Z");
    let metadata = json!({"name": name, "namespace": "shop", "creationTimestamp": created});
    object(
        json!({"metadata": metadata, "spec": spec, "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}}),
    )
}

fn plain(name: &str, last: u8) -> Object {
    let spec = json!({"clusterIPs": [format!("10.96.0.{last}")], "ports": [{"name": "http", "port": 80}]});
    service(name, last, &spec)
}

fn slice(name: &str, of: &str, endpoints: &[(u8, bool)]) -> Object {
    let endpoint = |(last, ready): &(u8, bool)| {
        json!({"addresses": [format!("10.128.0.{last}")], "nodeName": format!("node-{}", last % 3),
               "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
    };
    let labels = json!({"kubernetes.io/service-name": of});
    object(json!({
        "metadata": {"name": name, "namespace": "shop", "labels": labels}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    }))
}

fn node(spec: &Value, addresses: &[&str]) -> Object {
    let address = |a: &&str| json!({"type": "InternalIP", "address": a});
    let addresses: Vec<_> = addresses.iter().map(address).collect();
    object(json!({"metadata": {"name": "node-1"}, "spec": spec, "status": {"addresses": addresses}}))
}

fn settings() -> IndexSettings {
    IndexSettings {
        node: "node-1".parse().unwrap(),
        nodeport_addresses: NodePortAddresses::Primary,
        local_traffic: LocalTraffic::NodeCidr,
    }
}

/// An index whose first lists are in, and empty.
fn index() -> Index {
    let mut index = Index::new(settings());
    for kind in Kind::ALL {
        index.take(kind, Event::Begin);
        index.take(kind, Event::End);
    }
    index
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The last bytes of a VIP's endpoints.
fn found(desired: &Desired, address: &str) -> Vec<u8> {
    let frontend = desired.frontends.iter().find(|(vip, _)| vip.address == ip(address));
    let list = frontend.and_then(|(_, frontend)| frontend.all.as_ref());
    let number = |e: &Endpoint| match e.address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => 0,
    };
    list.iter().flat_map(|list| list.endpoints.iter().map(number)).collect()
}

#[test]
fn nothing_is_told_until_every_first_list_is_in() {
    let mut index = Index::new(settings());
    for kind in Kind::ALL {
        assert_eq!(index.update(), None);
        index.take(kind, Event::Begin);
        index.take(kind, Event::End);
    }
    assert_eq!(index.update(), Some(Update::default()));
}

#[test]
fn only_what_has_changed_is_told() {
    let mut index = index();
    for (name, last) in [("web", 1), ("db", 2)] {
        index.take(Kind::Service, Event::Applied(plain(name, last)));
        index.take(Kind::Slice, Event::Applied(slice(name, name, &[(last, true)])));
    }
    assert_eq!(index.update().unwrap().frontends.len(), 2);
    assert_eq!(index.update(), Some(Update::default()));
    index.take(
        Kind::Slice,
        Event::Applied(slice("web", "web", &[(1, true), (2, true)])),
    );
    let update = index.update().unwrap();
    assert_eq!((update.frontends.len(), update.cluster_ips.len()), (1, 0));
    // The same once more changes nothing.
    index.take(
        Kind::Slice,
        Event::Applied(slice("web", "web", &[(1, true), (2, true)])),
    );
    assert_eq!(index.update(), Some(Update::default()));
}

#[test]
fn a_list_takes_away_what_is_not_in_it() {
    let mut index = index();
    index.take(Kind::Service, Event::Applied(plain("web", 1)));
    index.take(Kind::Service, Event::Applied(plain("db", 2)));
    let mut desired = Desired::default();
    desired.apply(index.update().unwrap());
    index.take(Kind::Service, Event::Begin);
    index.take(Kind::Service, Event::Listed(plain("db", 2)));
    // A list under way changes nothing.
    assert_eq!(index.update(), Some(Update::default()));
    index.take(Kind::Service, Event::End);
    desired.apply(index.update().unwrap());
    assert_eq!(desired.cluster_ips.into_keys().collect::<Vec<_>>(), [ip("10.96.0.2")]);
}

#[test]
fn a_bad_update_leaves_what_was_understood_before() {
    let mut index = index();
    index.take(Kind::Service, Event::Applied(plain("web", 1)));
    index.update();
    let bad = service(
        "web",
        1,
        &json!({"clusterIPs": ["10.96.0.1"], "ports": [{"port": 70000}]}),
    );
    let said = index.take(Kind::Service, Event::Applied(bad));
    assert_eq!(said[0].path, "spec.ports[0].port");
    assert_eq!(index.update(), Some(Update::default()));
}

#[test]
fn endings_serve_only_when_nobody_is_ready() {
    let mut index = index();
    let mut desired = Desired::default();
    index.take(Kind::Service, Event::Applied(plain("web", 1)));
    index.take(Kind::Slice, Event::Applied(slice("a", "web", &[(1, true), (2, false)])));
    desired.apply(index.update().unwrap());
    assert_eq!(found(&desired, "10.96.0.1"), [1]);
    index.take(Kind::Slice, Event::Applied(slice("a", "web", &[(2, false)])));
    desired.apply(index.update().unwrap());
    assert_eq!(found(&desired, "10.96.0.1"), [2]);
}

#[test]
fn an_endpoint_in_two_slices_counts_once_and_lives() {
    let mut index = index();
    let mut desired = Desired::default();
    index.take(Kind::Service, Event::Applied(plain("web", 1)));
    index.take(Kind::Slice, Event::Applied(slice("a", "web", &[(1, false)])));
    index.take(Kind::Slice, Event::Applied(slice("b", "web", &[(1, true), (2, true)])));
    desired.apply(index.update().unwrap());
    assert_eq!(found(&desired, "10.96.0.1"), [1, 2]);
}

#[test]
fn a_slice_that_moves_to_another_service_leaves_the_first() {
    let mut index = index();
    let mut desired = Desired::default();
    index.take(Kind::Service, Event::Applied(plain("web", 1)));
    index.take(Kind::Service, Event::Applied(plain("db", 2)));
    index.take(Kind::Slice, Event::Applied(slice("a", "web", &[(1, true)])));
    desired.apply(index.update().unwrap());
    index.take(Kind::Slice, Event::Applied(slice("a", "db", &[(1, true)])));
    desired.apply(index.update().unwrap());
    assert_eq!(found(&desired, "10.96.0.1"), Vec::<u8>::new());
    assert_eq!(found(&desired, "10.96.0.2"), [1]);
}

#[test]
fn the_older_of_two_services_keeps_an_address_until_it_goes() {
    let external = |name, created, last: u8| {
        let ports = json!([{"name": "http", "port": 80}]);
        let ips = [format!("10.96.0.{last}")];
        service(
            name,
            created,
            &json!({"clusterIPs": ips, "externalIPs": ["198.51.100.7"], "ports": ports}),
        )
    };
    let mut index = index();
    let mut desired = Desired::default();
    index.take(Kind::Service, Event::Applied(external("young", 9, 1)));
    desired.apply(index.update().unwrap());
    let holder = |desired: &Desired| {
        let mut of_address = desired
            .frontends
            .iter()
            .filter(|(vip, _)| vip.address == ip("198.51.100.7"));
        of_address.next().map(|(_, frontend)| frontend.name.to_string())
    };
    assert_eq!(holder(&desired).as_deref(), Some("shop/young:http"));
    assert!(index.conflicts().is_empty());
    index.take(Kind::Service, Event::Applied(external("old", 3, 2)));
    desired.apply(index.update().unwrap());
    assert_eq!(holder(&desired).as_deref(), Some("shop/old:http"));
    let conflict = index.conflicts().into_iter().next().unwrap();
    assert_eq!((conflict.holder, conflict.loser), (name("old"), name("young")));
    index.take(Kind::Service, Event::Deleted(external("old", 3, 2)));
    desired.apply(index.update().unwrap());
    assert_eq!(holder(&desired).as_deref(), Some("shop/young:http"));
    assert!(index.conflicts().is_empty());
    assert!(desired.external_ips.contains(&ip("198.51.100.7")));
}

#[test]
fn the_nodes_addresses_and_networks_take_effect_at_once() {
    let mut index = index();
    let mut desired = Desired::default();
    let spec = json!({"type": "NodePort", "clusterIPs": ["10.96.0.1"], "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    index.take(Kind::Service, Event::Applied(service("web", 1, &spec)));
    let first = node(&json!({"podCIDRs": ["10.128.1.0/24"]}), &["192.168.50.1"]);
    index.take(Kind::Node, Event::Applied(first));
    desired.apply(index.update().unwrap());
    let node_ports = |desired: &Desired| -> Vec<IpAddr> {
        let of_node_port = desired.frontends.iter().filter(|(vip, _)| vip.port == 30080);
        of_node_port.map(|(vip, _)| vip.address).collect()
    };
    assert_eq!(node_ports(&desired), [ip("192.168.50.1")]);
    assert_eq!(
        desired.pods.v4,
        Some(PodMatch::Source("10.128.1.0/24".parse().unwrap()))
    );
    let second = node(
        &json!({"podCIDRs": ["10.128.2.0/24"]}),
        &["192.168.50.2", "192.168.50.3"],
    );
    index.take(Kind::Node, Event::Applied(second));
    desired.apply(index.update().unwrap());
    assert_eq!(node_ports(&desired), [ip("192.168.50.2")]);
    assert_eq!(desired.nodeport_ips, [ip("192.168.50.2")].into());
    assert_eq!(
        desired.pods.v4,
        Some(PodMatch::Source("10.128.2.0/24".parse().unwrap()))
    );
}

#[test]
fn node_ports_listen_on_the_kernels_addresses_in_the_networks() {
    let mut index = Index::new(IndexSettings {
        nodeport_addresses: NodePortAddresses::Networks(vec!["192.168.0.0/16".parse().unwrap()]),
        ..settings()
    });
    for kind in Kind::ALL {
        index.take(kind, Event::Begin);
        index.take(kind, Event::End);
    }
    index.set_addresses(["192.168.50.1", "192.168.60.1", "172.30.1.1"].map(ip).into());
    let update = index.update().unwrap();
    assert_eq!(
        update.nodeport_ips,
        [(ip("192.168.50.1"), true), (ip("192.168.60.1"), true)].into()
    );
    index.set_addresses(["192.168.60.1"].map(ip).into());
    assert_eq!(
        index.update().unwrap().nodeport_ips,
        [(ip("192.168.50.1"), false)].into()
    );
}

#[test]
fn service_networks_are_merged_and_told_at_once() {
    let mut index = index();
    let cidr = |name: &str, cidrs: &[&str]| object(json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}}));
    index.take(
        Kind::ServiceCidr,
        Event::Applied(cidr("a", &["10.96.0.0/13", "fd00::/112"])),
    );
    index.take(
        Kind::ServiceCidr,
        Event::Applied(cidr("b", &["10.104.0.0/13", "10.104.5.0/24"])),
    );
    let told = index.update().unwrap().service_cidrs;
    let merged = ["10.96.0.0/12", "fd00::/112"].map(|n| (n.parse().unwrap(), true));
    assert_eq!(told, merged.into());
    index.take(Kind::ServiceCidr, Event::Deleted(cidr("b", &[])));
    let told = index.update().unwrap().service_cidrs;
    let split = [("10.96.0.0/12", false), ("10.96.0.0/13", true)].map(|(n, there)| (n.parse().unwrap(), there));
    assert_eq!(told, split.into());
}

#[test]
fn a_health_check_counts_ready_endpoints_of_this_node() {
    let mut index = index();
    let spec = json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "ports": [{"name": "http", "port": 80}],
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000});
    index.take(Kind::Service, Event::Applied(service("web", 1, &spec)));
    index.take(
        Kind::Slice,
        Event::Applied(slice("a", "web", &[(1, true), (4, true), (7, false), (2, true)])),
    );
    index.update();
    let check = HealthCheck {
        port: 32000,
        local_endpoints: 2,
    };
    assert_eq!(index.health_checks(), &[(name("web"), check)].into());
    index.take(Kind::Service, Event::Applied(plain("web", 1)));
    index.update();
    assert!(index.health_checks().is_empty());
}

#[test]
fn a_going_node_is_not_eligible() {
    let mut index = index();
    assert!(index.is_eligible());
    let going = node(&json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}), &[]);
    index.take(Kind::Node, Event::Applied(going));
    assert!(!index.is_eligible());
}

#[test]
fn a_service_of_one_family_has_no_routes_of_the_other() {
    let mut index = index();
    let mut desired = Desired::default();
    let spec = json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "externalIPs": ["2001:db8::1"],
        "ports": [{"name": "http", "port": 80}]});
    index.take(Kind::Service, Event::Applied(service("web", 1, &spec)));
    index.take(Kind::Slice, Event::Applied(slice("a", "web", &[(1, true)])));
    desired.apply(index.update().unwrap());
    let of = |address| desired.frontends.iter().find(|(vip, _)| vip.address == ip(address));
    assert_eq!(of("203.0.113.1").unwrap().1.route, Some(Route::ToAll));
    assert_eq!(of("2001:db8::1"), None);
    assert_eq!(desired.external_ips, [ip("203.0.113.1")].into());
}

#[test]
fn a_node_whose_object_is_gone_stays_as_it_was() {
    let mut index = index();
    let known = node(&json!({"podCIDRs": ["10.128.1.0/24"]}), &["192.168.50.1"]);
    index.take(Kind::Node, Event::Applied(known.clone()));
    index.update();
    index.take(Kind::Node, Event::Deleted(known));
    assert_eq!(index.update(), Some(Update::default()));
    index.take(Kind::Node, Event::Begin);
    index.take(Kind::Node, Event::End);
    assert_eq!(index.update(), Some(Update::default()));
}

/// What one Service of this spec means, with endpoints on this node (1, 4) and elsewhere (2).
fn desired_of(spec: &Value) -> Desired {
    let mut index = index();
    let mut desired = Desired::default();
    index.take(Kind::Node, Event::Applied(node(&json!({}), &["192.168.50.1"])));
    index.take(Kind::Service, Event::Applied(service("web", 1, spec)));
    index.take(
        Kind::Slice,
        Event::Applied(slice("a", "web", &[(1, true), (2, true), (4, true)])),
    );
    desired.apply(index.update().unwrap());
    desired
}

fn at<'a>(desired: &'a Desired, address: &str) -> &'a Frontend {
    let mut found = desired.frontends.iter().filter(|(vip, _)| vip.address == ip(address));
    found.next().unwrap().1
}

#[test]
fn source_ranges_guard_load_balancers_addresses_alone() {
    let spec = |ranges: &[&str]| {
        json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "externalIPs": ["198.51.100.7"],
            "loadBalancerSourceRanges": ranges, "ports": [{"name": "http", "port": 80, "nodePort": 30080}]})
    };
    let guarded = desired_of(&spec(&["10.0.0.0/9", "10.128.0.0/9", "2001:db8::/32"]));
    let sources: BTreeSet<IpNet> = ["10.0.0.0/8".parse().unwrap()].into();
    assert_eq!(at(&guarded, "203.0.113.1").sources.as_deref(), Some(&sources));
    for open in ["10.96.0.1", "198.51.100.7", "192.168.50.1"] {
        assert_eq!(at(&guarded, open).sources, None, "{open}");
    }
    // A range with the node in it lets in what loops back from the node to the address.
    let with_node = desired_of(&spec(&["192.168.0.0/16"]));
    let sources: BTreeSet<IpNet> = ["192.168.0.0/16", "203.0.113.1/32"].map(|n| n.parse().unwrap()).into();
    assert_eq!(at(&with_node, "203.0.113.1").sources.as_deref(), Some(&sources));
    // Everybody, and nobody of this family.
    for open in [&["0.0.0.0/0", "10.0.0.0/8"][..], &["2001:db8::/32"]] {
        assert_eq!(at(&desired_of(&spec(open)), "203.0.113.1").sources, None, "{open:?}");
    }
}

#[test]
fn vips_of_one_list_remember_a_client_together() {
    let policy = |internal: &str, external: &str| {
        desired_of(
            &json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "sessionAffinity": "ClientIP",
            "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
        )
    };
    let number = |list: &Option<crate::dataplane::desired::List>| list.as_ref().unwrap().affinity.clone().unwrap();
    let cluster = policy("Cluster", "Cluster");
    let all = number(&at(&cluster, "10.96.0.1").all);
    assert_eq!((all.timeout, all.siblings.len()), (10800, 3));
    for vip in ["203.0.113.1", "192.168.50.1"] {
        assert_eq!(number(&at(&cluster, vip).all), all);
    }
    let local = policy("Local", "Local");
    let inside = number(&at(&local, "10.96.0.1").local);
    assert_eq!(number(&at(&local, "203.0.113.1").local), inside);
    assert_ne!(inside.number, number(&at(&local, "203.0.113.1").all).number);
    assert_eq!(inside.siblings.len(), 3);
    assert_eq!(number(&at(&local, "203.0.113.1").all).siblings.len(), 2);
}

#[test]
fn a_policy_of_this_node_uses_its_endpoints_or_drops() {
    let spec =
        json!({"clusterIPs": ["10.96.0.1"], "internalTrafficPolicy": "Local", "ports": [{"name": "http", "port": 80}]});
    let here = desired_of(&spec);
    let frontend = at(&here, "10.96.0.1");
    assert_eq!((frontend.route, frontend.all.is_none()), (None, true));
    assert_eq!(frontend.local.as_ref().unwrap().endpoints.len(), 2);
    let mut index = index();
    let mut desired = Desired::default();
    index.take(Kind::Service, Event::Applied(service("web", 1, &spec)));
    index.take(Kind::Slice, Event::Applied(slice("a", "web", &[(2, true)])));
    desired.apply(index.update().unwrap());
    assert_eq!(at(&desired, "10.96.0.1").route, Some(Route::NoLocalEndpoints));
    index.take(Kind::Slice, Event::Applied(slice("a", "web", &[])));
    desired.apply(index.update().unwrap());
    assert_eq!(
        at(&desired, "10.96.0.1").route,
        None,
        "without any endpoint it is refused"
    );
}

#[test]
fn a_name_is_cut_to_what_nft_takes() {
    let mut index = index();
    let mut desired = Desired::default();
    let long = "n".repeat(63);
    let spec = json!({"clusterIPs": ["10.96.0.1"], "ports": [{"name": "p".repeat(63), "port": 80}]});
    let mut long_named = service(&long, 1, &spec);
    kube::Resource::meta_mut(&mut long_named).namespace = Some("s".repeat(63));
    index.take(Kind::Service, Event::Applied(long_named));
    desired.apply(index.update().unwrap());
    for name in [&at(&desired, "10.96.0.1").name, &desired.cluster_ips[&ip("10.96.0.1")]] {
        assert_eq!(name.len(), 124);
        assert!(name.starts_with("sss") && name.ends_with("nn..."), "{name}");
    }
}

#[test]
fn a_service_with_more_endpoints_than_there_is_room_for_is_named() {
    let mut index = index();
    let spec = json!({"clusterIPs": ["10.96.0.1"], "ports": [{"name": "http", "port": 80}]});
    index.take(Kind::Service, Event::Applied(service("web", 1, &spec)));
    for part in 0..17 {
        let endpoint = |n: u16| json!({"addresses": [format!("10.{part}.{}.{}", n / 250, n % 250)]});
        let labels = json!({"kubernetes.io/service-name": "web"});
        let metadata = json!({"name": format!("part-{part}"), "namespace": "shop", "labels": labels});
        let endpoints: Vec<_> = (0..1000).map(endpoint).collect();
        let slice = json!({"metadata": metadata, "addressType": "IPv4", "ports": [{"name": "http", "port": 80}], "endpoints": endpoints});
        index.take(Kind::Slice, Event::Applied(object(slice)));
    }
    index.update();
    assert_eq!(index.too_long(), ["shop/web:http: 17000 endpoints, more than 16384"]);
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Happening {
    Service(u8, u8, bool),
    NoService(u8),
    Slice(u8, u8, Vec<(u8, bool)>),
    NoSlice(u8),
}

fn happen(index: &mut Index, happening: &Happening) {
    let slice_named =
        |n: u8, of: u8, endpoints: &[(u8, bool)]| slice(&format!("slice-{n}"), &format!("svc-{of}"), endpoints);
    let (kind, event) = match happening {
        Happening::Service(n, last, is_local) => {
            let policy = if *is_local { "Local" } else { "Cluster" };
            let spec = json!({"clusterIPs": [format!("10.96.0.{last}")], "externalIPs": [format!("198.51.100.{}", last % 3)],
                "ports": [{"name": "http", "port": 80}], "externalTrafficPolicy": policy, "internalTrafficPolicy": policy});
            (
                Kind::Service,
                Event::Applied(service(&format!("svc-{n}"), *n + 1, &spec)),
            )
        }
        Happening::NoService(n) => (Kind::Service, Event::Deleted(plain(&format!("svc-{n}"), *n + 1))),
        Happening::Slice(n, of, endpoints) => (Kind::Slice, Event::Applied(slice_named(*n, *of, endpoints))),
        Happening::NoSlice(n) => (Kind::Slice, Event::Deleted(slice_named(*n, 0, &[]))),
    };
    assert_eq!(index.take(kind, event), []);
}

fn happening() -> impl Strategy<Value = Happening> {
    let endpoints = proptest::collection::vec((0u8..9, any::<bool>()), 0..5);
    prop_oneof![
        (0u8..4, 0u8..6, any::<bool>()).prop_map(|(n, last, local)| Happening::Service(n, last, local)),
        (0u8..4).prop_map(Happening::NoService),
        (0u8..5, 0u8..4, endpoints).prop_map(|(n, of, endpoints)| Happening::Slice(n, of, endpoints)),
        (0u8..5).prop_map(Happening::NoSlice),
    ]
}

proptest! {
    /// Whatever happened, in whatever order and however often it was told, the same objects mean the same.
    #[test]
    fn any_order_of_events_gives_the_same_desired_state(
        happenings in proptest::collection::vec((happening(), any::<bool>()), 0..25),
        order in proptest::collection::vec(any::<prop::sample::Index>(), 12),
    ) {
        let mut one = index();
        let mut desired = Desired::default();
        for (happening, ask) in &happenings {
            happen(&mut one, happening);
            if *ask {
                desired.apply(one.update().unwrap());
            }
        }
        desired.apply(one.update().unwrap());

        // The objects that are left, told as lists, in another order.
        let mut left: Vec<(Kind, Object)> = Vec::new();
        for (happening, _) in &happenings {
            let (kind, event) = match happening {
                Happening::Service(n, ..) | Happening::NoService(n) => (Kind::Service, format!("svc-{n}")),
                Happening::Slice(n, ..) | Happening::NoSlice(n) => (Kind::Slice, format!("slice-{n}")),
            };
            left.retain(|(k, o)| *k != kind || o.name().name != event);
            match happening {
                Happening::Service(n, last, is_local) => {
                    let policy = if *is_local { "Local" } else { "Cluster" };
                    let spec = json!({"clusterIPs": [format!("10.96.0.{last}")],
                        "externalIPs": [format!("198.51.100.{}", last % 3)], "ports": [{"name": "http", "port": 80}],
                        "externalTrafficPolicy": policy, "internalTrafficPolicy": policy});
                    left.push((kind, service(&format!("svc-{n}"), *n + 1, &spec)));
                }
                Happening::Slice(n, of, endpoints) => {
                    left.push((kind, slice(&format!("slice-{n}"), &format!("svc-{of}"), endpoints)));
                }
                Happening::NoService(_) | Happening::NoSlice(_) => {}
            }
        }
        for (i, key) in order.iter().enumerate() {
            if !left.is_empty() {
                let (a, b) = (i % left.len(), key.index(left.len()));
                left.swap(a, b);
            }
        }
        let mut other = Index::new(settings());
        for kind in Kind::ALL {
            other.take(kind, Event::Begin);
            for (_, object) in left.iter().filter(|(k, _)| *k == kind) {
                other.take(kind, Event::Listed(object.clone()));
            }
            other.take(kind, Event::End);
        }
        let mut again = Desired::default();
        again.apply(other.update().unwrap());
        prop_assert_eq!(&desired, &again);
        prop_assert_eq!(one.conflicts(), other.conflicts());
    }
}

#[test]
fn what_vips_share_is_held_once() {
    let mut index = index();
    let mut desired = Desired::default();
    let spec = json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "ports": [{"name": "http", "port": 80}]});
    index.take(Kind::Service, Event::Applied(service("web", 1, &spec)));
    index.take(Kind::Slice, Event::Applied(slice("a", "web", &[(1, true)])));
    desired.apply(index.update().unwrap());
    let lists: Vec<_> = desired
        .frontends
        .values()
        .filter_map(|frontend| frontend.all.as_ref())
        .collect();
    assert_eq!(lists.len(), 2);
    assert!(Arc::ptr_eq(&lists[0].endpoints, &lists[1].endpoints));
}
