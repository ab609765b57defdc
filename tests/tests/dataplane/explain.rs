//! What `nftfleet-agent explain` says is what a packet then meets.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use nftfleet_agent::dataplane::desired::{Affinity, Frontend, List, PodMatch, Pods, Route};
use nftfleet_agent::dataplane::{Dataplane, Desired, LayoutSettings};
use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};
use nftfleet_tests::backends::Backend;
use nftfleet_tests::netns::Netns;
use nftfleet_tests::process::binary;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpSocket;

use crate::world::{LIMIT, PROTOCOLS, SETTINGS, World, ask_within, identity, port_of, vip};

/// How long nothing must come for a packet to count as dropped.
const SILENCE: Duration = Duration::from_millis(300);

/// The port of the pod's server.
const POD_PORT: u16 = 8888;

/// A port of the node itself that no Service has.
const HOST_PORT: u16 = 9999;

fn run(node: &Netns, arguments: &[&str]) -> Output {
    let mut command = node.command(&binary("nftfleet-agent").to_string_lossy());
    // As in the agent's own pod, where what the agent needs stands in the environment in part.
    command.env_remove("NFTFLEET_SERVER").env("NODE_NAME", "node-1");
    command.arg("explain").args(arguments).output().expect("it runs")
}

fn explained(node: &Netns, to: Vip, from: Option<IpAddr>, more: &[&str]) -> Value {
    let (address, protocol, port) = (to.address.to_string(), to.protocol.to_string(), to.port.to_string());
    let from = from.map(|from| ["--from".to_owned(), from.to_string()]);
    let mut arguments = vec![address.as_str(), &protocol, &port, "--json"];
    arguments.extend(from.iter().flatten().map(String::as_str));
    arguments.extend(more);
    let output = run(node, &arguments);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {complaint}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// How the servers of these tests see who asks.
struct Servers<'a> {
    world: &'a World,
    pod: Backend,
    /// Whoever listens at an address.
    at: BTreeMap<SocketAddr, &'a Backend>,
}

impl Servers<'_> {
    /// Asks as explained, and checks what comes of it.
    fn check(&self, from: &Netns, source: IpAddr, to: Vip) {
        let said = explained(&self.world.node().netns, to, Some(source), &[]);
        for server in self.all() {
            server.forget_peers();
        }
        let fate = &said["fate"]["outcome"];
        let limit = if fate["outcome"] == "dropped" { SILENCE } else { LIMIT };
        let answer = ask_within(from, to, limit);
        let context = format!("{to} from {source}: {answer:?}, but {fate}");
        match fate["outcome"].as_str() {
            Some("sent") => {
                let answer = answer.expect(&context);
                let endpoints = fate["endpoints"].as_array().expect(&context);
                let candidates = endpoints.iter().map(|text| self.server(text.as_str().expect("text")));
                let server = candidates.into_iter().find(|server| server.identity() == answer);
                let seen = server.unwrap_or_else(|| panic!("{context}")).peers();
                // The node's own address is the same before and after.
                if from.name() != self.world.node().netns.name() {
                    let itself = fate["masquerade"]["hairpin"].is_array() && answer == "pod";
                    let kept = fate["masquerade"] != "marked" && !itself;
                    assert_eq!(seen == BTreeSet::from([source]), kept, "{context}: it saw {seen:?}");
                }
            }
            Some("refused") => {
                let is_own_udp = *from.name() == *self.world.node().netns.name() && to.protocol == Protocol::Udp;
                let wanted = if is_own_udp {
                    io::ErrorKind::PermissionDenied
                } else {
                    io::ErrorKind::ConnectionRefused
                };
                assert_eq!(answer.expect_err(&context).kind(), wanted, "{context}");
            }
            Some("dropped") => {
                let kind = answer.expect_err(&context).kind();
                // A datagram of the node itself is dropped before it is sent.
                let silent = [io::ErrorKind::TimedOut, io::ErrorKind::PermissionDenied];
                assert!(silent.contains(&kind), "{context}");
            }
            Some("left_alone") if to.port == HOST_PORT => assert_eq!(answer.expect(&context), "host"),
            Some("left_alone") => assert!(answer.is_err(), "{context}"),
            _ => panic!("{context}"),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Backend> {
        self.world.servers.iter().chain([&self.pod])
    }

    fn server(&self, at: &str) -> &Backend {
        let at: SocketAddr = at.parse().expect("an endpoint");
        if at.port() == POD_PORT {
            return &self.pod;
        }
        self.at.get(&at).copied().unwrap_or_else(|| panic!("nobody at {at}"))
    }
}

fn frontend(route: Option<Route>, all: Vec<Endpoint>, local: Vec<Endpoint>) -> Frontend {
    let list = |endpoints: Vec<Endpoint>| {
        let sorted: BTreeSet<Endpoint> = endpoints.into_iter().collect();
        (!sorted.is_empty()).then(|| List {
            endpoints: sorted.into_iter().collect(),
            affinity: None,
        })
    };
    Frontend {
        name: "shop/web:http".into(),
        route,
        all: list(all),
        local: list(local),
        sources: None,
        serving: [].into(),
    }
}

/// A Service of every kind, in both families and protocols.
fn every_kind(world: &World, pods: Pods) -> (Desired, Vec<Vip>) {
    let mut wish = Desired {
        pods,
        nodeport_ips: world.node_addresses().into(),
        service_cidrs: ["10.96.0.0/12", "fd00:10:96::/112"]
            .map(|cidr| cidr.parse().expect("a network"))
            .into(),
        ..Desired::default()
    };
    let mut asked = Vec::new();
    for family in Family::BOTH {
        let (cluster, external, v) = match family {
            Family::V4 => ("10.96.30.", "198.51.100.", 0),
            Family::V6 => ("fd00:10:96::3", "2001:db8::", 1),
        };
        let pod = Endpoint {
            address: world.pod_addresses()[v],
            port: POD_PORT,
        };
        let elsewhere = || {
            vec![
                world.endpoint(family, 0),
                world.endpoint(family, 1),
                world.endpoint(family, 2),
            ]
        };
        let everywhere = || [elsewhere(), vec![pod]].concat();
        let node = world.node_addresses()[v];
        for protocol in PROTOCOLS {
            wish.hairpins.insert((protocol, pod));
            let at = |network: &str, n: u16, port| Vip {
                address: format!("{network}{n}").parse().expect("an address"),
                protocol,
                port,
            };
            let on_node = |port| Vip {
                address: node,
                protocol,
                port,
            };
            let guarded = |networks: &[&str]| Frontend {
                sources: Some(Arc::new(
                    networks.iter().map(|n| n.parse().expect("a network")).collect(),
                )),
                ..frontend(Some(Route::ToAll), elsewhere(), vec![])
            };
            let (others, clients) = match family {
                Family::V4 => ("203.0.113.0/24", "172.30.1.0/24"),
                Family::V6 => ("2001:db8:9::/48", "fd00:30:1::/64"),
            };
            let no_local = Some(Route::NoLocalEndpoints);
            let services = [
                (at(cluster, 1, 80), frontend(None, elsewhere(), vec![])),
                // Traffic policy Local inside: with an endpoint here, and without.
                (at(cluster, 2, 80), frontend(None, vec![], vec![pod])),
                (at(cluster, 3, 80), frontend(no_local, vec![], vec![])),
                (at(cluster, 4, 80), frontend(None, vec![], vec![])),
                // Outside: with an endpoint here, without, and with none at all.
                (
                    at(external, 1, 80),
                    frontend(Some(Route::ToLocal), everywhere(), vec![pod]),
                ),
                (at(external, 2, 80), frontend(Some(Route::ToLocal), elsewhere(), vec![])),
                (at(external, 3, 80), frontend(Some(Route::NoEndpoints), vec![], vec![])),
                (at(external, 4, 80), frontend(Some(Route::ToAll), everywhere(), vec![])),
                (at(external, 5, 80), guarded(&[others])),
                (at(external, 6, 80), guarded(&[others, clients])),
                (on_node(30080), frontend(Some(Route::ToAll), elsewhere(), vec![])),
                (on_node(30081), frontend(Some(Route::NoEndpoints), vec![], vec![])),
                (on_node(30082), frontend(Some(Route::ToLocal), everywhere(), vec![pod])),
            ];
            for (vip, frontend) in services {
                if wish.service_cidrs.iter().any(|cidr| cidr.contains(&vip.address)) {
                    wish.cluster_ips.insert(vip.address, "shop/web".into());
                } else if vip.address != node {
                    wish.external_ips.insert(vip.address);
                }
                wish.frontends.insert(vip, frontend);
                asked.push(vip);
            }
            // A port that no Service has, an address that none has, and a server of the node itself.
            asked.extend([at(cluster, 1, 81), at(cluster, 99, 80)]);
            if protocol == Protocol::Tcp {
                asked.push(on_node(HOST_PORT));
            }
        }
    }
    (wish, asked)
}

fn servers<'a>(world: &'a World) -> Servers<'a> {
    let at = |(number, server): (u16, &'a Backend)| {
        Family::BOTH.map(|family| {
            let endpoint = world.endpoint(family, number);
            (SocketAddr::new(endpoint.address, endpoint.port), server)
        })
    };
    Servers {
        world,
        pod: Backend::start(&world.node().pod, "pod", &[POD_PORT], &[POD_PORT]),
        at: (0..).zip(&world.servers).flat_map(at).collect(),
    }
}

#[test]
fn a_packet_of_ipv4_meets_what_was_explained() {
    packets_meet_what_was_explained(Family::V4);
}

#[test]
fn a_packet_of_ipv6_meets_what_was_explained() {
    packets_meet_what_was_explained(Family::V6);
}

fn packets_meet_what_was_explained(family: Family) {
    let world = World::new(3);
    let servers = servers(&world);
    let _host = Backend::start(&world.node().netns, "host", &[HOST_PORT], &[HOST_PORT]);
    let (wish, asked) = every_kind(&world, crate::world::pods());
    world.dataplane().load(&wish, false).expect("the table follows");
    let node = world.node();
    let ipv6 = node.ipv6.expect("a node with IPv6");
    let client: [IpAddr; 2] = [node.client4.into(), ipv6.client.into()];
    let askers = [
        (&node.client, client),
        (&node.pod, world.pod_addresses()),
        (&node.netns, world.node_addresses()),
    ];
    for vip in asked.into_iter().filter(|vip| Family::of(vip.address) == family) {
        for (from, [v4, v6]) in askers {
            let source = if family == Family::V4 { v4 } else { v6 };
            servers.check(from, source, vip);
        }
    }
}

/// Asks from an address of its own.
fn ask_from(netns: &Netns, source: IpAddr, to: SocketAddr) -> String {
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let socket = if to.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }
            .expect("a socket");
            socket
                .bind(SocketAddr::new(source, 0))
                .expect("an address of the client");
            let asking = async {
                let mut stream = socket.connect(to).await?;
                let mut said = vec![0; 64];
                let length = stream.read(&mut said).await?;
                io::Result::Ok(String::from_utf8_lossy(&said[..length]).trim_end().to_owned())
            };
            let answer = tokio::time::timeout(LIMIT, asking).await.expect("an answer in time");
            answer.unwrap_or_else(|error| panic!("{to} from {source}: {error}"))
        })
    })
}

#[test]
fn a_client_is_remembered_as_explained() {
    const TIMEOUT: u32 = 3600;
    let world = World::new(3);
    let node = world.node();
    let mut wish = world.four_services(&[]);
    let vips = ["10.96.20.1:80", "[fd00:10:96::2001]:80"].map(|at| vip(at, Protocol::Tcp));
    let sticky = |servers: &[u16], vip: Vip| {
        let endpoints = servers.iter().map(|n| world.endpoint(Family::of(vip.address), *n));
        let list = List {
            endpoints: endpoints.collect::<BTreeSet<_>>().into_iter().collect(),
            affinity: Some(Affinity {
                timeout: TIMEOUT,
                number: 0x8123_4567,
                siblings: [vip].into(),
            }),
        };
        Frontend {
            all: Some(list),
            ..frontend(None, vec![], vec![])
        }
    };
    for vip in vips {
        wish.frontends.insert(vip, sticky(&[0, 1, 2], vip));
    }
    let mut dataplane = world.dataplane();
    dataplane.load(&wish, false).unwrap();
    // Many clients: an IPv6 one is found by the kernel's hash of its address.
    let devices = node
        .client
        .pipe("ip", &["-o", "-6", "addr", "show", "to", "fd00:30:1::2"], "");
    let device = devices.split_whitespace().nth(1).expect("a device");
    let mut clients: Vec<(IpAddr, Vip)> = vec![(node.client4.into(), vips[0])];
    for n in 0..12u32 {
        let address = format!("fd00:30:1::{:x}", 0x100 + n * 0x1357);
        node.client.batch(&format!("addr add {address}/64 dev {device}"));
        clients.push((address.parse().unwrap(), vips[1]));
    }

    let state = |source: IpAddr, vip: Vip| {
        let said = explained(&node.netns, vip, Some(source), &[]);
        said["fate"]["spread"]["affinity"]["client"].clone()
    };
    let mut held = BTreeMap::new();
    for (source, vip) in &clients {
        assert_eq!(state(*source, *vip)["state"], "new", "{source}");
        let answer = ask_from(&node.client, *source, crate::world::target(*vip));
        let client = state(*source, *vip);
        assert_eq!(client["state"], "holds", "{source}");
        let remembered = client["remembered_for"].as_u64().unwrap();
        assert!(
            (u64::from(TIMEOUT) - 60..=u64::from(TIMEOUT)).contains(&remembered),
            "{client}"
        );
        let endpoint: SocketAddr = client["endpoint"].as_str().unwrap().parse().unwrap();
        let number = endpoint.port() - port_of(0);
        assert_eq!(answer, identity(number), "{source}: {client}");
        assert_eq!(ask_from(&node.client, *source, crate::world::target(*vip)), answer);
        held.insert(*source, number);
    }
    assert!(held.values().collect::<BTreeSet<_>>().len() > 1, "{held:?}");

    // The last endpoint goes: its clients hold their tickets in vain and get others, the rest does not notice.
    for vip in vips {
        wish.frontends.insert(vip, sticky(&[0, 1], vip));
    }
    dataplane.load(&wish, false).unwrap();
    for (source, vip) in &clients {
        let client = state(*source, *vip);
        let wanted = if held[source] == 2 { "holds_in_vain" } else { "holds" };
        assert_eq!(client["state"], wanted, "{source}: {client}");
        let answer = ask_from(&node.client, *source, crate::world::target(*vip));
        assert_eq!(answer == identity(held[source]), wanted == "holds", "{source}");
        assert_eq!(state(*source, *vip)["state"], "holds", "{source}");
    }
}

#[test]
fn every_way_to_tell_pods_is_read_from_the_kernel() {
    let world = World::new(3);
    let node = &world.node().netns;
    let both = |pods: PodMatch| Pods {
        v4: Some(pods.clone()),
        v6: Some(pods),
    };
    let pod = Some(world.pod_addresses()[0]);
    let to = vip("10.96.30.1:80", Protocol::Tcp);
    for (pods, device, origin, marked) in [
        (both(PodMatch::Interface("cni0".to_owned())), "cni0", "pod", false),
        (both(PodMatch::Interface("cni0".to_owned())), "cni01", "outside", true),
        (
            both(PodMatch::InterfacePrefix("veth".to_owned())),
            "veth7",
            "pod",
            false,
        ),
        (
            crate::world::pods_in("10.128.0.0/15", "fd00:128::/31"),
            "eth0",
            "pod",
            false,
        ),
        (
            crate::world::pods_in("10.128.1.16/28", "fd00::/64"),
            "eth0",
            "outside",
            true,
        ),
        (Pods::default(), "eth0", "outside", false),
    ] {
        for masquerade_all in [false, true] {
            let settings = LayoutSettings {
                masquerade_bit: 7,
                masquerade_all,
            };
            let (wish, _) = every_kind(&world, pods.clone());
            Dataplane::new(world.netlink(), settings).load(&wish, false).unwrap();
            let said = explained(node, to, pod, &["--device", device]);
            assert_eq!(said["origin"], origin, "{pods:?}");
            let wanted = if marked || masquerade_all { "marked" } else { "no" };
            assert_eq!(said["fate"]["outcome"]["masquerade"], wanted, "{pods:?}");
            let bit = said["fate"]["steps"]
                .as_array()
                .unwrap()
                .iter()
                .find_map(|step| step["bit"].as_u64());
            assert_eq!(bit, (wanted == "marked").then_some(7));
            world.nft(&["delete", "table", "inet", "nftfleet"]);
        }
    }
}

#[test]
fn a_table_that_is_missing_dormant_or_foreign_is_said_to_be() {
    let world = World::new(1);
    let node = &world.node().netns;
    let text = || {
        let output = run(node, &["10.96.20.1", "tcp", "80"]);
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (done, said) = text();
    assert!(done && said.contains("There is no table inet nftfleet"), "{said}");

    let mut dataplane = Dataplane::new(world.netlink(), SETTINGS);
    dataplane.load(&world.four_services(&[0]), true).unwrap();
    let (done, said) = text();
    assert!(
        done && said.contains("The table is dormant: nothing of this happens"),
        "{said}"
    );
    assert!(said.contains("=> sent to 10.128.200.1:8080"), "{said}");
    dataplane.set_dormant(false).unwrap();
    let (done, said) = text();
    assert!(done && !said.contains("dormant"), "{said}");

    for (change, named) in [
        (
            "insert rule inet nftfleet services4 accept",
            "chain services4 has other rules",
        ),
        (
            "insert rule inet nftfleet to-local6 accept",
            "chain to-local6 has other rules",
        ),
        ("add chain inet nftfleet site", "chain site is not ours"),
        ("flush chain inet nftfleet postrouting", "its rules can't be understood"),
    ] {
        world.nft(&["delete", "table", "inet", "nftfleet"]);
        let mut dataplane = Dataplane::new(world.netlink(), SETTINGS);
        dataplane.load(&world.four_services(&[0]), false).unwrap();
        world.nft_load(change);
        let (done, said) = text();
        assert!(
            !done && said.contains("not as this agent makes it") && said.contains(named),
            "{change}: {said}"
        );
    }
}
