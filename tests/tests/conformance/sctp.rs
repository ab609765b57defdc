//! SCTP: associations that are begun by hand, since not every kernel has sockets for it, and whole ones where it has.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use nftfleet_domain::service::Protocol;
use nftfleet_tests::manifests::{AddressType, ServiceBuilder, endpoint_slice, service};
use nftfleet_tests::sctp::{SctpListener, has_sockets, sctp_association};

use crate::ask::{LIMIT, answered_by, asks, refused, unanswered, vip, vips};
use crate::case::cases;
use crate::objects::{Member, NAMESPACE, PORT, WEB, with_members};
use crate::rig::Rig;

cases! {
    SamePort: sctp_is_translated_beside_tcp_and_udp, ["S:3776", "networking.go:177", "networking.go:219", "networking.go:263"];
    SamePort: sctp_is_served_on_node_ports_and_load_balancers, ["networking.go:391"];
    SamePort: sctp_is_refused_and_dropped_like_the_others, [];
    SamePort: whole_associations_are_translated, ["networking.go:177"] if has_sockets;
}

fn with_sctp() -> ServiceBuilder {
    service(NAMESPACE, "web")
        .cluster_ips(["10.96.20.1", "fd00:10:96::2001"])
        .port("tcp", "TCP", 80, PORT)
        .port("udp", "UDP", 80, PORT)
        .port("sctp", "SCTP", 80, PORT)
}

fn endpoints(rig: &mut Rig, members: &[Member]) {
    for (suffix, kind) in [("4", AddressType::IPv4), ("6", AddressType::IPv6)] {
        let slice = endpoint_slice(NAMESPACE, "web", suffix, kind)
            .port("tcp", "TCP", PORT)
            .port("udp", "UDP", PORT)
            .port("sctp", "SCTP", PORT);
        rig.apply(with_members(slice, kind, members).object());
    }
    rig.commit();
}

fn sctp_is_translated_beside_tcp_and_udp() {
    let mut rig = Rig::new();
    let _servers = ["backend-1", "backend-2"].map(|name| rig.serve_sctp(name, PORT));
    rig.apply(with_sctp().object());
    let members = rig.members(["backend-1", "backend-2"]);
    endpoints(&mut rig, &members);
    let sctp = WEB.map(|at| vip(at, Protocol::Sctp));
    answered_by(&asks(rig.everybody(), &sctp), ["backend-1", "backend-2"]);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1", "backend-2"]);
}

fn sctp_is_served_on_node_ports_and_load_balancers() {
    let mut rig = Rig::new();
    let server = rig.serve_sctp("backend-1", PORT);
    let exposed = with_sctp()
        .node_port(30080)
        .ingress("198.51.100.10")
        .ingress("fd00:198::10");
    rig.apply(exposed.object());
    let members = rig.members(["backend-1"]);
    endpoints(&mut rig, &members);
    let mut targets = rig.node_ports(30080, Protocol::Sctp);
    targets.extend(["198.51.100.10:80", "[fd00:198::10]:80"].map(|at| vip(at, Protocol::Sctp)));
    answered_by(&asks(rig.everybody(), &targets), ["backend-1"]);
    // Masqueraded, all of them: the policy is Cluster.
    assert_eq!(server.peers(), rig.addresses("node-1").into_iter().collect());
}

fn sctp_is_refused_and_dropped_like_the_others() {
    let mut rig = Rig::new();
    rig.apply(with_sctp().object());
    endpoints(&mut rig, &[]);
    let sctp = WEB.map(|at| vip(at, Protocol::Sctp));
    refused(&asks(rig.everybody(), &sctp));
    let undefined = ["10.96.20.1:81", "[fd00:10:96::2001]:81"].map(|at| vip(at, Protocol::Sctp));
    refused(&asks(rig.everybody(), &undefined));
    let unallocated = ["10.96.99.1:80", "[fd00:10:96::9901]:80"].map(|at| vip(at, Protocol::Sctp));
    unanswered(&asks(rig.everybody(), &unallocated));
}

fn whole_associations_are_translated() {
    let mut rig = Rig::new();
    let names = ["backend-1", "backend-2"];
    let listeners = [0, 1].map(|at| SctpListener::start(&rig.lab.backends[at].netns, names[at], PORT));
    rig.apply(with_sctp().object());
    let members = rig.members(names);
    endpoints(&mut rig, &members);
    let node = rig.node();
    for at in WEB {
        let to: SocketAddr = at.parse().expect("an address");
        for from in [&node.client, &node.pod] {
            // One of two stays unseen once in 10^9.
            let answers = (0..30).map(|_| sctp_association(from, to, LIMIT));
            let seen: BTreeSet<String> = answers
                .map(|answer| answer.unwrap_or_else(|error| panic!("{to} from {}: {error}", from.name())))
                .collect();
            assert_eq!(seen, names.map(str::to_owned).into(), "{to} from {}", from.name());
        }
    }
    // The client is masqueraded, the pod is not.
    let pod = [node.pod4.into(), node.ipv6.expect("a node with IPv6").pod.into()];
    let expected: BTreeSet<IpAddr> = rig.addresses("node-1").into_iter().chain(pod).collect();
    for listener in &listeners {
        assert_eq!(listener.peers(), expected);
    }
}
