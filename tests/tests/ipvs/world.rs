//! A node in IPVS mode, with neighbours that are nobody's to touch, and the agent's data plane beside it.

use std::net::{IpAddr, SocketAddr};

use nftfleet_agent::dataplane::{Dataplane, Desired, LayoutSettings, Netlink};
use nftfleet_agent::facts::iptables::Backend as Iptables;
use nftfleet_agent::host::{Host as _, ThisHost};
use nftfleet_agent::ipvs::Known;
use nftfleet_agent::kube::{Event, Index, IndexSettings, Kind, LocalTraffic, NodePortAddresses, Object};
use nftfleet_agent::node_addresses;
use nftfleet_agent::switchover::cleanup;
use nftfleet_tests::backends::Backend;
use nftfleet_tests::kube_proxy::{self, Backend as KubeProxy, Family, install_ipvs, virtual_service_list};
use nftfleet_tests::lab::{CLUSTER_CIDR4, CLUSTER_CIDR6, Lab, LabNode, LabSpec, SERVICE_CIDR4, SERVICE_CIDR6};
use nftfleet_tests::manifests::{AddressType, Readiness, endpoint_slice, node_with, service, service_cidr};
use serde_json::Value;

/// Where servers say who they are, and echo.
pub const ECHO: u16 = 8080;

/// Where servers speak, and clients listen.
pub const PUSH: u16 = 9000;

/// The `ClusterIP`s of the one Service.
pub const VIPS: [&str; 2] = ["10.96.20.1", "fd00:10:96::2001"];

/// Its ports: those for servers that echo and for those that push.
pub const PORTS: [(u16, u16, u16); 2] = [(80, 30080, ECHO), (90, 30090, PUSH)];

/// Virtual services and a rule that kube-proxy did not make: another machine's address, one of the node's, a firewall mark.
const FOREIGN: &str = "-A -t 198.51.100.7:80 -s rr -p 300
-a -t 198.51.100.7:80 -r 198.51.100.8:80 -g -w 3
-A -t 192.168.50.1:7070 -s rr
-a -t 192.168.50.1:7070 -r 10.128.200.1:8080 -m -w 1
-A -f 9 -s rr
-a -f 9 -r 198.51.100.9:0 -i -w 1
";

/// Sets of others, one with a name that is almost one of kube-proxy's.
const FOREIGN_SETS: &str = "create KUBE-DST-3YNVZWWGX3UQQ4VQ hash:ip
add KUBE-DST-3YNVZWWGX3UQQ4VQ 10.0.0.7
create site hash:ip
add site 10.0.0.8
";

pub struct World {
    pub lab: Lab,
    pub dataplane: Dataplane<Netlink>,
    pub desired: Desired,
    pub known: Known,
    _servers: Vec<Backend>,
    foreign: Foreign,
}

/// What must be as it was.
#[derive(Debug, PartialEq, Eq)]
struct Foreign {
    services: Vec<String>,
    sets: String,
    rules: Vec<String>,
}

impl World {
    /// kube-proxy serves through IPVS, and our table is loaded, dormant.
    pub fn new() -> Self {
        let lab = Lab::new(&LabSpec::dual_stack(1, 3));
        let servers = lab.serve_backends(&[ECHO], &[ECHO]);
        let node = lab.node(1);
        kube_proxy::install_foreign(&node.netns, KubeProxy::Nft, &Family::BOTH);
        kube_proxy::install_kubelet(&node.netns, KubeProxy::Nft, &Family::BOTH);
        node.netns.pipe("ipvsadm", &["--restore"], FOREIGN);
        node.netns.pipe("ipset", &["restore"], FOREIGN_SETS);
        let foreign = Foreign::of(node);

        let objects = objects(&lab);
        install_ipvs(&node.netns, KubeProxy::Nft, &objects, &Family::BOTH);
        let kernel = node.netns.run(|| Netlink::open().expect("a netlink socket"));
        let settings = LayoutSettings {
            masquerade_bit: 14,
            masquerade_all: false,
        };
        let mut dataplane = Dataplane::new(kernel, settings);
        let own = node.netns.run(node_addresses::list).expect("the kernel's addresses");
        let desired = desired(node, &objects, own.clone());
        dataplane.load(&desired, true).expect("the table is loaded");
        let sources: [IpAddr; 2] = [node.address4.into(), node.ipv6.expect("IPv6").address.into()];
        Self {
            known: Known::of(&desired, own, &sources),
            dataplane,
            desired,
            _servers: servers,
            foreign,
            lab,
        }
    }

    pub fn node(&self) -> &LabNode {
        self.lab.node(1)
    }

    /// Our table answers from now on.
    pub fn flip(&mut self) {
        self.dataplane.set_dormant(false).expect("a flip");
    }

    /// The Service's port in both families.
    pub fn cluster_ips(port: u16) -> [SocketAddr; 2] {
        VIPS.map(|vip| SocketAddr::new(vip.parse().expect("an address"), port))
    }

    /// A node port at the node's own addresses.
    pub fn node_ports(&self, port: u16) -> [SocketAddr; 2] {
        let node = self.node();
        [
            SocketAddr::new(node.address4.into(), port),
            SocketAddr::new(node.ipv6.expect("IPv6").address.into(), port),
        ]
    }

    /// Removes kube-proxy's chains, as the switchover does.
    pub fn remove_chains(&self) {
        self.node().netns.run(|| {
            for (save, restore) in Iptables::BOTH.into_iter().flat_map(Iptables::commands) {
                let saved = ThisHost.run(save, &[], "").expect("it starts");
                assert!(saved.succeeded, "{save}: {}", saved.stderr);
                let Some(script) = cleanup::script(&saved.stdout) else {
                    continue;
                };
                let restored = ThisHost.run(restore, &["--noflush"], &script).expect("it starts");
                assert!(restored.succeeded, "{restore}: {}\n{script}", restored.stderr);
            }
        });
    }

    /// All that is not kube-proxy's is as it was before it came.
    pub fn foreign_is_untouched(&self) {
        assert_eq!(Foreign::of(self.node()), self.foreign);
    }

    /// The virtual services of others alone are as they were.
    pub fn foreign_services_stand(&self) {
        let now = virtual_service_list(&self.node().netns);
        for line in &self.foreign.services {
            assert!(now.contains(line), "{line} is gone: {now:#?}");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let netns = &self.node().netns;
            for command in [
                "cat /proc/net/ip_vs_conn",
                "conntrack -L",
                "conntrack -L -f ipv6",
                "nft list table inet nftfleet-handover",
                "ip route show table local",
            ] {
                let output = netns.command("sh").args(["-c", command]).output();
                let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
                let lines = text.unwrap_or_default();
                let is_long_lived =
                    |line: &&str| !["TIME_WAIT", "CLOSE ", "udp"].iter().any(|over| line.contains(over));
                let lines: Vec<&str> = lines.lines().filter(is_long_lived).collect();
                eprintln!("---- {command}\n{}", lines.join("\n"));
            }
        }
    }
}

impl Foreign {
    fn of(node: &LabNode) -> Self {
        let rules = |family| {
            let saved = kube_proxy::save(&node.netns, KubeProxy::Nft, family);
            // Counters of chains and the time of the listing change.
            let lines = saved.lines().filter(|line| !line.starts_with('#'));
            lines
                .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        };
        Self {
            services: virtual_service_list(&node.netns),
            sets: node.netns.pipe("ipset", &["save"], ""),
            rules: Family::BOTH.into_iter().flat_map(rules).collect(),
        }
    }
}

/// One Service with node ports, whose endpoints are all backends.
fn objects(lab: &Lab) -> Vec<Value> {
    let node = lab.node(1);
    let mut shop = service("shop", "web").cluster_ips(VIPS);
    for (port, node_port, target) in PORTS {
        shop = shop
            .port(&format!("tcp-{port}"), "TCP", port, target)
            .node_port(node_port);
    }
    shop = shop.port("udp", "UDP", 80, ECHO).node_port(30081);
    let slice = |suffix, kind| {
        let mut slice = endpoint_slice("shop", "web", suffix, kind);
        for (port, _, target) in PORTS {
            slice = slice.port(&format!("tcp-{port}"), "TCP", target);
        }
        slice = slice.port("udp", "UDP", ECHO);
        for backend in &lab.backends {
            let address = match kind {
                AddressType::IPv4 => backend.address4.to_string(),
                AddressType::IPv6 => backend.address6.to_string(),
            };
            slice = slice.endpoint(&address, "", Readiness::READY);
        }
        slice.object()
    };
    vec![
        shop.object(),
        slice("a", AddressType::IPv4),
        slice("b", AddressType::IPv6),
        service_cidr("kubernetes", &[SERVICE_CIDR4, SERVICE_CIDR6]),
        node_with(&node.name)
            .address(&node.address4.to_string())
            .address(&node.ipv6.expect("IPv6").address.to_string())
            .object(),
    ]
}

/// What the agent of this node makes of the objects.
fn desired(node: &LabNode, objects: &[Value], addresses: std::collections::BTreeSet<IpAddr>) -> Desired {
    let network = |text: &str| text.parse().expect("a network");
    let mut index = Index::new(IndexSettings {
        node: node.name.parse().expect("the name of a node"),
        nodeport_addresses: NodePortAddresses::Primary,
        local_traffic: LocalTraffic::ClusterCidr(vec![network(CLUSTER_CIDR4), network(CLUSTER_CIDR6)]),
    });
    index.set_addresses(addresses);
    let kinds = [
        (Kind::Service, "Service"),
        (Kind::Slice, "EndpointSlice"),
        (Kind::Node, "Node"),
        (Kind::ServiceCidr, "ServiceCIDR"),
    ];
    for (kind, name) in kinds {
        index.take(kind, Event::Begin);
        for object in objects.iter().filter(|object| object["kind"] == name) {
            let object: Object = serde_json::from_value(object.clone()).expect("an object of Kubernetes");
            let complaints = index.take(kind, Event::Listed(object));
            assert!(complaints.is_empty(), "{complaints:?}");
        }
        index.take(kind, Event::End);
    }
    let mut desired = Desired::default();
    desired.apply(index.update().expect("every first list is in"));
    desired
}
