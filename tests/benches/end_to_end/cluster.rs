//! A large cluster's objects, as a real API server prints them: every Service with one `EndpointSlice`.

use std::net::Ipv4Addr;

use nftfleet_tests::manifests::{node_with, service_cidr};
use serde_json::{Value, json};

/// Where pods have their addresses: room for 8 million.
pub const POD_CIDR: &str = "10.128.0.0/9";

/// The first address of pods, and the first of those that come in for others.
const PODS: u32 = 10 << 24 | 128 << 16;
const NEWCOMERS: u32 = 10 << 24 | 192 << 16;

/// The first `ClusterIP`; those below belong to the cluster itself.
const CLUSTER_IPS: u32 = 10 << 24 | 96 << 16 | 256;

/// Pods on a node, as kubelet's default allows.
const PODS_PER_NODE: u32 = 110;

const ZONES: [&str; 3] = ["eu-central-1a", "eu-central-1b", "eu-central-1c"];

const CREATED: &str = "2026-01-05T08:00:00Z";

/// How many Services, and how many endpoints each has.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    services: u32,
    endpoints: u32,
}

impl Cluster {
    pub const fn new(services: u32, endpoints: u32) -> Self {
        assert!(services < 1 << 20 && endpoints > 0 && services * endpoints < 1 << 22);
        Self { services, endpoints }
    }

    /// Endpoints of all Services together.
    pub const fn all_endpoints(self) -> u32 {
        self.services * self.endpoints
    }

    /// Some Service for each number, another one each time.
    pub const fn spread(self, number: u32, stride: u32) -> u32 {
        number * stride % self.services
    }

    /// Every object.
    pub fn objects(self) -> impl Iterator<Item = Value> {
        let this = [
            node_with("node-1")
                .address("192.168.50.1")
                .zone("eu-central-1a")
                .object(),
            service_cidr("kubernetes", &["10.96.0.0/12"]),
        ];
        let services = (0..self.services).flat_map(move |number| [service(number), self.slice(number, None)]);
        this.into_iter().chain(services)
    }

    /// The `EndpointSlice` of a Service; with a newcomer in the place of its first endpoint, if one is given by its number.
    pub fn slice(self, number: u32, newcomer: Option<u32>) -> Value {
        let pod = |of: u32| {
            let first = number * self.endpoints + of;
            match newcomer {
                Some(newcomer) if of == 0 => endpoint(newcomer_address(newcomer), first + 1_000_000, number),
                _ => endpoint(Ipv4Addr::from(PODS + first), first, number),
            }
        };
        let (namespace, name) = (namespace(number), name(number));
        json!({
            "addressType": "IPv4",
            "apiVersion": "discovery.k8s.io/v1",
            "endpoints": (0..self.endpoints).map(pod).collect::<Vec<_>>(),
            "kind": "EndpointSlice",
            "metadata": {
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": CREATED},
                "creationTimestamp": CREATED,
                "generateName": format!("{name}-"),
                "generation": 7,
                "labels": {
                    "app.kubernetes.io/instance": name,
                    "app.kubernetes.io/managed-by": "Helm",
                    "app.kubernetes.io/name": "web",
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    "kubernetes.io/service-name": name,
                },
                "name": format!("{name}-{:05x}", number * 7919 % 0xf_ffff),
                "namespace": namespace,
                "ownerReferences": [{
                    "apiVersion": "v1",
                    "blockOwnerDeletion": true,
                    "controller": true,
                    "kind": "Service",
                    "name": name,
                    "uid": uid(1, number),
                }],
                "uid": uid(2, number),
            },
            "ports": [{"appProtocol": "http", "name": "http", "port": 8080, "protocol": "TCP"}],
        })
    }
}

/// The address of a newcomer, which no other endpoint ever has.
pub fn newcomer_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(NEWCOMERS + number)
}

/// Fifty Services share a namespace.
fn namespace(number: u32) -> String {
    format!("team-{:04}", number / 50)
}

fn name(number: u32) -> String {
    format!("backend-api-{number:06}")
}

fn uid(kind: u32, number: u32) -> String {
    format!(
        "{number:08x}-{kind:04x}-4c5b-9d1e-{:012x}",
        u64::from(number) * 2_654_435_761
    )
}

fn service(number: u32) -> Value {
    let (namespace, name) = (namespace(number), name(number));
    let address = Ipv4Addr::from(CLUSTER_IPS + number).to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "annotations": {
                "meta.helm.sh/release-name": name,
                "meta.helm.sh/release-namespace": namespace,
            },
            "creationTimestamp": CREATED,
            "labels": {
                "app.kubernetes.io/instance": name,
                "app.kubernetes.io/managed-by": "Helm",
                "app.kubernetes.io/name": "web",
            },
            "name": name,
            "namespace": namespace,
            "uid": uid(1, number),
        },
        "spec": {
            "clusterIP": address,
            "clusterIPs": [address],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"appProtocol": "http", "name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}],
            "selector": {"app.kubernetes.io/instance": name, "app.kubernetes.io/name": "web"},
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
        "status": {"loadBalancer": {}},
    })
}

fn endpoint(address: Ipv4Addr, pod: u32, service: u32) -> Value {
    // The node of the lab has its share of the pods.
    let node = pod / PODS_PER_NODE;
    let node = if node == 0 {
        "node-1".to_owned()
    } else {
        format!(
            "ip-10-{}-{}-{}.eu-central-1.compute.internal",
            node >> 8,
            node & 255,
            node % 199
        )
    };
    json!({
        "addresses": [address.to_string()],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": node,
        "targetRef": {
            "kind": "Pod",
            "name": format!("{}-{:09x}-{:05x}", name(service), u64::from(service) * 40_503 % 0xf_ffff_ffff, pod % 0xf_ffff),
            "namespace": namespace(service),
            "uid": uid(3, pod),
        },
        "zone": ZONES[pod as usize % ZONES.len()],
    })
}
