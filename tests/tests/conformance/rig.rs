//! A cluster under test: namespaces, servers behind Services, and the data plane of every node.

mod places;
mod proxy;
mod transcript;

use std::collections::{BTreeMap, BTreeSet};

use nftfleet_agent::dataplane::LayoutSettings;
use nftfleet_agent::kube::{Event, Kind, LocalTraffic, NodePortAddresses};
use nftfleet_tests::backends::Backend;
use nftfleet_tests::lab::{CLUSTER_CIDR4, CLUSTER_CIDR6, Lab, LabNode, LabSpec, SERVICE_CIDR4, SERVICE_CIDR6};
use nftfleet_tests::manifests::{node_with, service_cidr};
use nftfleet_tests::netns::Netns;
use serde_json::Value;

use crate::objects::{Member, PORT, slices};
pub use places::odd_address;
pub use proxy::Proxy;
pub use transcript::Transcript;

/// The zone of `node-1`.
pub const ZONE: &str = "zone-a";

/// What is to be built.
#[derive(Clone, Debug)]
pub struct Setup {
    pub nodes: usize,
    pub backends: usize,
    /// Whether the nodes have IPv6.
    pub ipv6: bool,
    pub local_traffic: LocalTraffic,
    pub nodeport_addresses: NodePortAddresses,
    pub layout: LayoutSettings,
}

impl Default for Setup {
    fn default() -> Self {
        let network = |text: &str| text.parse().expect("a network");
        Self {
            nodes: 1,
            backends: 3,
            ipv6: true,
            local_traffic: LocalTraffic::ClusterCidr(vec![network(CLUSTER_CIDR4), network(CLUSTER_CIDR6)]),
            nodeport_addresses: NodePortAddresses::Primary,
            layout: LayoutSettings {
                masquerade_bit: 14,
                masquerade_all: false,
            },
        }
    }
}

/// The name of an object, with its kind first.
type Named = (String, String, String);

/// A running cluster. Whatever a case did to it, at its end the table of every node must be readable by `nft` and hold just
/// what is desired.
pub struct Rig {
    /// The data planes, that of `node-1` first.
    pub proxies: Vec<Proxy>,
    /// Servers by what they say; all listen on TCP and UDP [`PORT`], and more may be added.
    pub servers: BTreeMap<String, Backend>,
    objects: BTreeMap<Named, Value>,
    setup: Setup,
    pub lab: Lab,
}

impl Rig {
    /// One node with its pod and three backends, both families, kube-proxy's defaults.
    pub fn new() -> Self {
        Self::with(&Setup::default())
    }

    pub fn with(setup: &Setup) -> Self {
        let lab = Lab::new(&LabSpec {
            nodes: setup.nodes,
            backends: setup.backends,
            without_ipv6: if setup.ipv6 {
                BTreeSet::new()
            } else {
                (1..=setup.nodes).collect()
            },
        });
        for node in &lab.nodes {
            // A kernel holds back all but the first few refusals of a second, and here many are asked for at once.
            node.netns.sysctl("ipv4/icmp_ratemask", "0");
            node.netns.sysctl("ipv6/icmp/ratemask", "0");
        }
        let mut objects = vec![service_cidr("kubernetes", &[SERVICE_CIDR4, SERVICE_CIDR6])];
        objects.extend(lab.nodes.iter().map(node_object));
        let proxies = lab.nodes.iter().map(|node| Proxy::start(node, setup, &objects).0);
        let mut rig = Self {
            proxies: proxies.collect(),
            servers: BTreeMap::new(),
            objects: objects.into_iter().map(|object| (name_of(&object), object)).collect(),
            setup: setup.clone(),
            lab,
        };
        for number in 1..=setup.nodes {
            let pod = rig.lab.node(number).pod.clone();
            rig.serve(&pod, &format!("pod-{number}"), PORT);
        }
        for number in 1..=setup.backends {
            let backend = rig.lab.backend(number).netns.clone();
            rig.serve(&backend, &format!("backend-{number}"), PORT);
        }
        rig
    }

    /// Starts one more server over TCP and UDP.
    pub fn serve(&mut self, netns: &Netns, identity: &str, port: u16) {
        let server = Backend::start(netns, identity, &[port], &[port]);
        assert!(
            self.servers.insert(identity.to_owned(), server).is_none(),
            "two servers say {identity}"
        );
    }

    /// Tells every node of a new or changed object.
    pub fn apply(&mut self, object: Value) {
        let complaints = self.apply_doubtful(object);
        assert!(complaints.is_empty(), "{complaints:?}");
    }

    /// The same for an object that may make no sense; gives what was said against it.
    pub fn apply_doubtful(&mut self, object: Value) -> Vec<String> {
        let mut complaints = Vec::new();
        for proxy in &mut self.proxies {
            complaints.extend(proxy.take(&object, Event::Applied));
        }
        self.objects.insert(name_of(&object), object);
        complaints
    }

    /// Tells every node of many objects.
    pub fn apply_all(&mut self, objects: impl IntoIterator<Item = Value>) {
        for object in objects {
            self.apply(object);
        }
    }

    /// Tells every node that an object is gone.
    pub fn delete(&mut self, kind: &str, namespace: &str, name: &str) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let object = self.objects.remove(&key);
        let object = object.unwrap_or_else(|| panic!("{key:?} was never applied"));
        for proxy in &mut self.proxies {
            proxy.take(&object, Event::Deleted);
        }
    }

    /// Takes an object out of what a list would hold, without any agent being told.
    pub fn forget(&mut self, kind: &str, namespace: &str, name: &str) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        assert!(self.objects.remove(&key).is_some(), "{key:?} was never applied");
    }

    /// Programs what has changed on every node; gives the number of transactions.
    pub fn commit(&mut self) -> usize {
        self.proxies.iter_mut().map(Proxy::commit).sum()
    }

    /// Everything that every node knows, anew, as after a lost watch.
    pub fn list_again(&mut self) {
        let objects: Vec<Value> = self.objects.values().cloned().collect();
        for proxy in &mut self.proxies {
            proxy.list(&objects);
        }
    }

    /// Starts the first node's agent anew, over the table that it left; gives the number of transactions.
    pub fn restart(&mut self) -> usize {
        let objects: Vec<Value> = self.objects.values().cloned().collect();
        let (proxy, commits) = Proxy::start(self.lab.node(1), &self.setup, &objects);
        self.proxies[0] = proxy;
        commits
    }

    /// Changes an object without any agent being told, as while they are down.
    pub fn change_unseen(&mut self, object: Value) {
        self.objects.insert(name_of(&object), object);
    }

    /// Makes these the endpoints of a Service, all of them, and programs it.
    pub fn endpoints(&mut self, service: &str, members: &[Member]) {
        self.apply_all(slices(service, members));
        self.commit();
    }

    /// Applies a Service, makes these its endpoints, and programs both.
    pub fn program(&mut self, service: Value, members: &[Member]) {
        let name = service["metadata"]["name"].as_str().expect("a name").to_owned();
        self.apply(service);
        self.endpoints(&name, members);
    }

    /// The first node's kernel, as a transcript and for words with `nft`.
    pub fn proxy(&mut self) -> &mut Proxy {
        &mut self.proxies[0]
    }

    /// Begins to write down what is done to the first node's tables.
    pub fn transcript(&self) -> Transcript {
        Transcript::start(&self.node().netns)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // A case that has failed has said why; what the table looks like then is its own business.
        if !std::thread::panicking() {
            for proxy in &mut self.proxies {
                proxy.ends_well();
            }
        }
    }
}

/// The Node of a machine in the lab; the first two stand in different zones.
pub fn node_object(node: &LabNode) -> Value {
    let k = node.number;
    let zone = if k == 1 { ZONE } else { "zone-b" };
    let networks = [format!("10.128.{k}.0/24"), format!("fd00:128:{k}::/64")];
    let networks: Vec<&str> = networks.iter().map(String::as_str).collect();
    let object = node_with(&node.name).address(&node.address4.to_string()).zone(zone);
    let object = match node.ipv6 {
        Some(ipv6) => object.address(&ipv6.address.to_string()).pod_cidrs(&networks),
        None => object.pod_cidrs(&networks[..1]),
    };
    object.object()
}

fn name_of(object: &Value) -> Named {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    (
        text(&object["kind"]),
        text(&metadata["namespace"]),
        text(&metadata["name"]),
    )
}

/// The kind of object as the agent calls it.
pub fn kind_of(object: &Value) -> Kind {
    match object["kind"].as_str() {
        Some("Service") => Kind::Service,
        Some("EndpointSlice") => Kind::Slice,
        Some("Node") => Kind::Node,
        Some("ServiceCIDR") => Kind::ServiceCidr,
        other => panic!("the agent watches no {other:?}"),
    }
}
