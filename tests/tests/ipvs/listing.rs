//! What the kernel lists over netlink is what `ipvsadm` prints.

use std::net::SocketAddr;

use nftfleet_agent::host::ThisHost;
use nftfleet_agent::ipvs::{Destination, Forwarding, Frontend, Ipvs, Takeover, VirtualService, connection};
use nftfleet_domain::service::{Family, Protocol};
use nftfleet_tests::kube_proxy::virtual_service_list;
use nftfleet_tests::netns::{Netns, Prefix};

use crate::talks::{Pushing, Talks};
use crate::world::World;

fn frontend(frontend: &Frontend) -> String {
    match frontend {
        Frontend::Vip(vip) => {
            let flag = match vip.protocol {
                Protocol::Tcp => "-t",
                Protocol::Udp => "-u",
                Protocol::Sctp => "--sctp-service",
            };
            format!("{flag} {}", SocketAddr::new(vip.address, vip.port))
        }
        Frontend::Mark { family, mark } => {
            let family = if *family == Family::V6 { " -6" } else { "" };
            format!("-f {mark}{family}")
        }
    }
}

fn service_line(service: &VirtualService) -> String {
    let persistent = if service.is_persistent() {
        format!(" -p {}", service.timeout)
    } else {
        String::new()
    };
    format!(
        "-A {} -s {}{persistent}",
        frontend(&service.frontend),
        service.scheduler
    )
}

fn destination_line(of: &Frontend, destination: &Destination) -> String {
    let forwarding = match destination.forwarding {
        Forwarding::Masquerade => "-m",
        Forwarding::Tunnel => "-i",
        Forwarding::Direct => "-g",
        other => panic!("nobody made {other:?}"),
    };
    let (address, weight) = (destination.address, destination.weight);
    format!("-a {} -r {address} {forwarding} -w {weight}", frontend(of))
}

fn listed() -> Vec<String> {
    let mut ipvs = Ipvs::open().expect("a conversation");
    let mut lines = Vec::new();
    for service in ipvs.services().expect("a listing") {
        lines.push(service_line(&service));
        let destinations = ipvs.destinations(&service.frontend).expect("a listing");
        lines.extend(destinations.iter().map(|d| destination_line(&service.frontend, d)));
    }
    lines.sort();
    lines
}

/// Of what tunnels are made of, `ipvsadm` prints more than we ask for.
fn without_tunnels(line: String) -> String {
    match line.split_once(" --tun-type ipip") {
        Some((before, after)) => format!("{before}{after}"),
        None => line,
    }
}

#[test]
fn everything_is_listed_and_sorted_by_its_owner() {
    let world = World::new();
    let node = &world.node().netns;
    let printed: Vec<String> = virtual_service_list(node).into_iter().map(without_tunnels).collect();
    assert_eq!(node.run(listed), printed);
    assert!(printed.len() > 60, "{printed:#?}");

    let sorted = node.run(|| {
        let mut takeover = Takeover::open(&ThisHost).expect("a conversation");
        takeover.services(&world.known).expect("a listing")
    });
    let foreign: Vec<String> = sorted.foreign.iter().map(|s| frontend(&s.frontend)).collect();
    assert_eq!(foreign, ["-t 192.168.50.1:7070", "-t 198.51.100.7:80", "-f 9"]);
    // Three ports at the ClusterIP and at the node's three addresses, in two families.
    assert_eq!(sorted.kube_proxys.len(), 24);
}

#[test]
fn one_service_is_deleted_and_one_weight_changed() {
    let world = World::new();
    let node = &world.node().netns;
    let before = virtual_service_list(node);
    let known = world.known.clone();
    node.run(|| {
        let mut ipvs = Ipvs::open().expect("a conversation");
        assert!(ipvs.is_loaded().expect("an answer"));
        let mut takeover = Takeover::open(&ThisHost).expect("a conversation");
        let of = takeover.services(&known).expect("a listing").kube_proxys[0].frontend;
        let destinations = ipvs.destinations(&of).expect("a listing");
        assert!(ipvs.set_weight(&of, &destinations[0], 0).expect("a change"));
        let changed = ipvs.destinations(&of).expect("a listing");
        assert_eq!(changed.iter().map(|d| d.weight).collect::<Vec<_>>(), [0, 1, 1]);
        assert!(ipvs.set_weight(&of, &changed[0], 1).expect("a change"));
        assert_eq!(ipvs.destinations(&of).expect("a listing"), destinations);
    });
    assert_eq!(virtual_service_list(node), before);
    node.run(|| {
        let mut ipvs = Ipvs::open().expect("a conversation");
        let of = ipvs.services().expect("a listing")[0].clone();
        assert!(ipvs.delete(&of.frontend).expect("it goes"));
        assert!(!ipvs.delete(&of.frontend).expect("it is gone"));
        assert_eq!(ipvs.destinations(&of.frontend).expect("a listing"), []);
        assert!(!ipvs.services().expect("a listing").contains(&of));
    });
    assert_eq!(virtual_service_list(node).len(), before.len() - 4);

    let elsewhere = Netns::create(&Prefix::unique(), "elsewhere");
    assert_eq!(elsewhere.run(listed), Vec::<String>::new());
}

#[test]
fn connections_are_listed() {
    let world = World::new();
    let _pushing = Pushing::start(&world.lab.backends);
    let node = &world.node().netns;
    let talks = Talks::open(&world.node().pod, &World::cluster_ips(90), 2);
    let connections = node.run(|| connection::list(&ThisHost)).expect("a listing");
    let live: Vec<_> = connections.iter().filter(|c| c.is_live()).collect();
    for talk in talks.all() {
        let to = live.iter().filter(|connection| {
            SocketAddr::new(connection.vip.address, connection.vip.port) == talk.target
                && connection.client == talk.own
                && connection.endpoint.port() == crate::world::PUSH
        });
        assert_eq!(to.count(), 1, "{live:?}");
    }
    assert_eq!(live.len(), 4, "{live:?}");
}
