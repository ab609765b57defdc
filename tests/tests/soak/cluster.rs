//! The cluster as the API has it: Services and `EndpointSlices`, as plain values and as the JSON that a watch brings.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nftfleet_domain::service::{Family, Protocol};
use nftfleet_tests::manifests::{AddressType, Readiness, endpoint_slice, service};
use serde_json::{Value, json};

use crate::world::{Asker, World, port_number};

/// How many Services there may be at a time.
pub const SERVICES: usize = 12;

/// How many `ClusterIP`s there are to choose from in each family.
pub const CLUSTER_IPS: usize = 20;

/// How many addresses of load balancers there are. Several Services may share one, on different ports.
pub const LOAD_BALANCERS: usize = 3;

/// How many external addresses there are.
pub const EXTERNAL_IPS: usize = 2;

/// How many node ports a Service chooses from.
pub const NODE_PORTS: usize = 2;

/// How many slices may name the same port of the same family: an endpoint may move from one to another.
pub const COPIES: usize = 2;

const NAMESPACE: &str = "soak";

/// Who may use the load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sources {
    /// Everybody: there are no ranges.
    Everybody,
    /// Whose networks are in the ranges.
    Only([bool; 3]),
}

impl Sources {
    /// Whether this one may.
    pub const fn allow(self, asker: Asker) -> bool {
        match self {
            Self::Everybody => true,
            Self::Only(allowed) => allowed[asker as usize],
        }
    }
}

/// How a Service is reached from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It is not.
    ClusterIp,
    /// By this one of its node ports.
    NodePort(usize),
    /// By a node port and, once it has one, by a load balancer's address.
    LoadBalancer(usize, Option<usize>),
}

/// A Service. Its number decides its port, families and protocols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub cluster_ip: usize,
    pub reach: Reach,
    pub external_ip: Option<usize>,
    pub internal_local: bool,
    pub external_local: bool,
    pub affinity: Option<u32>,
    pub sources: Sources,
}

/// Names a slice. All endpoints of a slice are on one port, so a Service needs a slice for each port of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SliceKey {
    pub service: usize,
    pub family: Family,
    pub port: usize,
    pub copy: usize,
}

/// Everything that the API has.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub services: BTreeMap<usize, Service>,
    /// Each slice's machines.
    pub slices: BTreeMap<SliceKey, BTreeMap<usize, Readiness>>,
}

/// The families of a Service.
pub fn families(service: usize) -> &'static [Family] {
    match service % 6 {
        0 => &[Family::V4],
        1 => &[Family::V6],
        2 | 3 => &[Family::V6, Family::V4],
        _ => &Family::BOTH,
    }
}

/// The protocols of a Service.
pub fn protocols(service: usize) -> &'static [Protocol] {
    match service % 4 {
        0 => &[Protocol::Tcp],
        1 => &[Protocol::Udp],
        _ => &[Protocol::Tcp, Protocol::Udp],
    }
}

/// The port of a Service, which no other has: so Services can share addresses.
pub fn service_port(service: usize) -> u16 {
    8000 + small(service)
}

/// One of a Service's node ports.
pub fn node_port(service: usize, choice: usize) -> u16 {
    30_000 + small(choice * 100 + service)
}

/// A `ClusterIP`.
pub fn cluster_ip(number: usize, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 30, last(number)).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x3000 + small(number)).into(),
    }
}

/// A load balancer's address.
pub fn load_balancer_ip(number: usize, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 51, 100, last(number) + 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, small(number) + 1).into(),
    }
}

/// An external address.
pub fn external_ip(number: usize, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, last(number) + 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, small(number) + 1).into(),
    }
}

fn small(number: usize) -> u16 {
    u16::try_from(number).expect("a small number")
}

fn last(number: usize) -> u8 {
    u8::try_from(number).expect("a number below 256")
}

fn name(service: usize) -> String {
    format!("service-{service}")
}

/// A port's name: an only port has none.
fn port_name(service: usize, protocol: Protocol) -> String {
    if protocols(service).len() > 1 {
        protocol.to_string()
    } else {
        String::new()
    }
}

/// The networks of those who ask, in both families.
const NETWORKS: [[&str; 2]; 3] = [
    ["172.30.0.0/16", "fd00:30::/32"],
    ["10.128.0.0/16", "fd00:128::/32"],
    ["192.168.50.0/24", "fd00:50::/64"],
];

impl Cluster {
    /// The Service as the API prints it.
    pub fn service_object(&self, number: usize) -> Value {
        let known = &self.services[&number];
        let addresses = |of: fn(usize, Family) -> IpAddr, index: usize| -> Vec<String> {
            families(number)
                .iter()
                .map(|family| of(index, *family).to_string())
                .collect()
        };
        let mut built = service(NAMESPACE, &name(number));
        let cluster_ips = addresses(cluster_ip, known.cluster_ip);
        built = match cluster_ips.as_slice() {
            [one] => built.cluster_ips([one]),
            [first, second] => built.cluster_ips([first, second]),
            _ => panic!("a Service has one or two families"),
        };
        for protocol in protocols(number) {
            let port_name = port_name(number, *protocol);
            let protocol = protocol.to_string().to_uppercase();
            built = built.port(&port_name, &protocol, service_port(number), "any");
        }
        let policy = |local| if local { "Local" } else { "Cluster" };
        built = built.spec("internalTrafficPolicy", policy(known.internal_local));
        if known.reach != Reach::ClusterIp || known.external_ip.is_some() {
            built = built.spec("externalTrafficPolicy", policy(known.external_local));
        }
        if let Some(index) = known.external_ip {
            built = built.spec("externalIPs", addresses(external_ip, index));
        }
        if let Some(timeout) = known.affinity {
            built = built.spec("sessionAffinity", "ClientIP").spec(
                "sessionAffinityConfig",
                json!({"clientIP": {"timeoutSeconds": timeout}}),
            );
        }
        let (kind, port) = match known.reach {
            Reach::ClusterIp => ("ClusterIP", None),
            Reach::NodePort(port) => ("NodePort", Some(port)),
            Reach::LoadBalancer(port, _) => ("LoadBalancer", Some(port)),
        };
        built = built.spec("type", kind);
        if let (Reach::LoadBalancer(..), Sources::Only(allowed)) = (known.reach, known.sources) {
            let ranges = NETWORKS.iter().zip(allowed).filter(|(_, allowed)| *allowed);
            let ranges: Vec<&str> = ranges.flat_map(|(networks, _)| *networks).collect();
            built = built.spec("loadBalancerSourceRanges", ranges);
        }
        let mut object = built.object();
        if let Some(port) = port {
            for spec in object["spec"]["ports"].as_array_mut().expect("a list of ports") {
                spec["nodePort"] = json!(node_port(number, port));
            }
        }
        if let Reach::LoadBalancer(_, Some(index)) = known.reach {
            let ingress = addresses(load_balancer_ip, index).into_iter();
            let ingress: Vec<Value> = ingress.map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
            object["status"]["loadBalancer"]["ingress"] = json!(ingress);
        }
        object
    }

    /// The slice as the API prints it.
    pub fn slice_object(&self, world: &World, key: SliceKey) -> Value {
        let (address_type, family) = match key.family {
            Family::V4 => (AddressType::IPv4, 4),
            Family::V6 => (AddressType::IPv6, 6),
        };
        let suffix = format!("v{family}-{}-{}", key.port, key.copy);
        let mut built = endpoint_slice(NAMESPACE, &name(key.service), &suffix, address_type);
        for protocol in protocols(key.service) {
            let port_name = port_name(key.service, *protocol);
            let protocol = protocol.to_string().to_uppercase();
            built = built.port(&port_name, &protocol, port_number(key.port));
        }
        for (machine, readiness) in &self.slices[&key] {
            let address = world.machine_address(*machine, key.family).to_string();
            let node = match machine {
                0 => world.node().name.clone(),
                machine => format!("elsewhere-{machine}"),
            };
            built = built.endpoint(&address, &node, *readiness);
        }
        built.object()
    }
}
