//! Nodes that differ in nothing but how they have their Services, side by side in one lab.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use nftfleet_agent::dataplane::{Dataplane, Netlink};
use nftfleet_domain::service::Endpoint;
use nftfleet_tests::lab::{Lab, LabNode, LabSpec};
use nftfleet_tests::netns::Netns;
use socket2::{Domain, Socket, Type};

use crate::cluster::{Cluster, ENDPOINT_PORT, SERVICE_PORT, Size, grouped, vip};
use crate::plan::Traffic;
use crate::shapes::Shape;
use crate::shapes::engine::{SETTINGS, desired, netlink};

/// How many connections may wait to be accepted: the most that the kernel allows unless told otherwise.
const BACKLOG: i32 = 4096;

/// A node that is sent packets.
pub struct Subject {
    /// What it has.
    pub name: String,
    /// A pod on it, from which connections are opened: nobody's shape masquerades those.
    pub client: Netns,
    /// What is connected to, and its name.
    pub targets: Vec<(&'static str, SocketAddr)>,
    /// Our table is kept as long as its engine.
    _dataplane: Option<Dataplane<Netlink>>,
}

/// All subjects, and the server to which they all lead.
pub struct Subjects {
    /// In the order of the table.
    pub all: Vec<Subject>,
    /// In its own namespace.
    pub server: Server,
    _lab: Lab,
}

/// Connections are taken by the kernel alone; the program fetches them in between, so that it is never awake while a client
/// measures.
pub struct Server(TcpListener);

impl Server {
    fn listen(netns: &Netns, address: SocketAddr) -> Self {
        netns.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.bind(&address.into()).expect("the server's own address");
            socket.listen(BACKLOG).expect("a bound socket listens");
            socket.set_nonblocking(true).expect("a socket's mode can be set");
            Self(socket.into())
        })
    }

    /// The next connection that waits.
    pub fn next(&self) -> Option<TcpStream> {
        match self.0.accept() {
            Ok((stream, _)) => Some(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("the server can't accept: {error}"),
        }
    }

    /// Fetches and forgets all connections that wait.
    pub fn drain(&self) {
        while self.next().is_some() {}
    }
}

/// What a subject's node is given.
enum Given {
    Nothing,
    OneRule,
    Services(Shape, u32),
}

impl Subjects {
    /// Makes the lab and programs its nodes.
    pub fn new(traffic: &Traffic) -> Self {
        let given = [
            Given::Nothing,
            Given::OneRule,
            Given::Services(Shape::KubeProxyMaps, traffic.kube_proxy_services),
            Given::Services(Shape::IptablesLegacy, traffic.services),
            Given::Services(Shape::Engine, traffic.services),
        ];
        let lab = Lab::new(&LabSpec::dual_stack(given.len(), 1));
        let backend = lab.backend(1);
        let server = SocketAddr::new(backend.address4.into(), ENDPOINT_PORT);
        let all = lab
            .nodes
            .iter()
            .zip(&given)
            .map(|(node, given)| subject(node, given, server));
        Self {
            all: all.collect(),
            server: Server::listen(&backend.netns, server),
            _lab: lab,
        }
    }
}

fn subject(node: &LabNode, given: &Given, server: SocketAddr) -> Subject {
    let at = |number: u32| SocketAddr::new(vip(number).address, SERVICE_PORT);
    let (name, targets, dataplane) = match given {
        Given::Nothing => ("no rules, straight to the server".to_owned(), vec![("", server)], None),
        Given::OneRule => {
            node.netns.pipe("nft", &["-f", "-"], &one_rule(vip(0).address, server));
            ("one DNAT rule".to_owned(), vec![("", at(0))], None)
        }
        Given::Services(shape, services) => {
            let name = format!("{}, {} Services", shape.name(), grouped(*services));
            eprintln!("traffic: programming {name}");
            let (middle, last) = (services / 2, services - 1);
            let cluster = with_server(*services, &[0, middle, last], server);
            let dataplane = program(&node.netns, *shape, &cluster);
            let targets = vec![("first", at(0)), ("middle", at(middle)), ("last", at(last))];
            (name, targets, dataplane)
        }
    };
    Subject {
        name,
        client: node.pod.clone(),
        targets,
        _dataplane: dataplane,
    }
}

/// Services with one endpoint each, which is the server for these.
fn with_server(services: u32, numbers: &[u32], server: SocketAddr) -> Cluster {
    let mut cluster = Cluster::new(Size { services, endpoints: 1 });
    let endpoint = Endpoint {
        address: server.ip(),
        port: server.port(),
    };
    for number in numbers {
        cluster.services.insert(*number, vec![endpoint]);
    }
    cluster
}

fn program(netns: &Netns, shape: Shape, cluster: &Cluster) -> Option<Dataplane<Netlink>> {
    if let Some(mut writer) = shape.writer() {
        let loader = writer.loader();
        netns.pipe(loader[0], &loader[1..], &writer.whole(cluster));
        return None;
    }
    let mut dataplane = Dataplane::new(netlink(netns), SETTINGS);
    let loaded = dataplane.load(&desired(cluster), false);
    loaded.expect("an empty namespace takes our table");
    Some(dataplane)
}

/// The least that DNAT takes.
fn one_rule(from: IpAddr, to: SocketAddr) -> String {
    format!(
        "table ip one {{ chain prerouting {{ type nat hook prerouting priority -100; \
         ip daddr {from} tcp dport {SERVICE_PORT} dnat to {to}; }}; }}\n"
    )
}
