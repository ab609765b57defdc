//! UDP clients that keep their port: connection tracking remembers for them which endpoint they had.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use nftfleet_agent::dataplane::netlink::conntrack::{Conntrack, stale};
use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};
use nftfleet_tests::manifests::Readiness;
use nftfleet_tests::netns::Netns;
use nftfleet_tests::traffic::{LongLived, udp_identity_from};
use nftfleet_tests::wait;

use crate::ask::{LIMIT, asks, refused, vip};
use crate::case::cases;
use crate::objects::{WEB, web, web_on_nodes};
use crate::rig::Rig;

cases! {
    ConntrackCleanUp: a_client_follows_when_its_endpoint_is_replaced, ["conntrack.go:297", "conntrack TestCleanStaleEntries"];
    ConntrackCleanUp: a_client_of_a_node_port_follows, ["conntrack.go:218", "conntrack.go:481", "loadbalancer.go:707", "loadbalancer.go:841"];
    ConntrackCleanUp: clients_of_endpoints_that_stay_are_left_alone, ["conntrack TestCleanStaleEntries"];
    ConntrackCleanUp: an_endpoint_that_ends_keeps_its_clients_while_it_serves, ["conntrack TestCleanStaleEntries"];
    ConntrackCleanUp: a_service_without_endpoints_is_left_alone, ["conntrack TestServiceWithoutEndpoints", "conntrack.go:140"];
    ConntrackCleanUp: a_client_that_came_too_early_is_answered_later, ["conntrack.go:391", "conntrack.go:673"];
    ConntrackCleanUp: connections_over_tcp_are_left_alone, [];
}

/// Cuts the flows of what was just programmed, as the agent does after each commit; gives how many there were.
fn clean_up(rig: &mut Rig) -> usize {
    let node = rig.node().netns.clone();
    let proxy = rig.proxy();
    let changed = proxy.dataplane.take_changed_udp();
    let serving: BTreeMap<Vip, BTreeSet<Endpoint>> = changed
        .iter()
        .filter_map(|vip| {
            let frontend = proxy.desired.frontends.get(vip)?;
            Some((*vip, frontend.serving.iter().copied().collect()))
        })
        .collect();
    node.run(|| {
        let mut conntrack = Conntrack::open().expect("a conversation about connections");
        let mut cut = 0;
        for family in Family::BOTH {
            let flows = conntrack.udp_flows(family).expect("a list of flows");
            for flow in stale(&flows, &serving) {
                cut += usize::from(conntrack.delete(flow).expect("a flow can be cut"));
            }
        }
        cut
    })
}

/// A client that keeps its port.
#[derive(Clone)]
struct Client {
    from: Netns,
    source: SocketAddr,
    to: SocketAddr,
}

impl Client {
    fn answer(&self) -> String {
        udp_identity_from(&self.from, self.source, self.to, LIMIT)
            .unwrap_or_else(|error| panic!("{} to {}: {error}", self.source, self.to))
    }
}

/// So many clients outside and in the pod, at each of these places, each with a port of its own, which the kernel gives to
/// nobody else.
fn clients(rig: &Rig, to: &[Vip], count: u16) -> Vec<Client> {
    let node = rig.node();
    let mut clients = Vec::new();
    for (name, from) in [("client-1", &node.client), ("pod-1", &node.pod)] {
        for to in to {
            let source: IpAddr = rig.address_for(name, *to);
            clients.extend((20_000..20_000 + count).map(|port| Client {
                from: from.clone(),
                source: (source, port).into(),
                to: (to.address, to.port).into(),
            }));
        }
    }
    clients
}

fn udp() -> [Vip; 2] {
    WEB.map(|at| vip(at, Protocol::Udp))
}

fn endpoints_are(rig: &mut Rig, endpoints: &[(&str, Readiness)]) {
    let members: Vec<_> = endpoints
        .iter()
        .map(|(name, readiness)| rig.member(name).is(*readiness))
        .collect();
    rig.endpoints("web", &members);
}

fn a_client_follows_when_its_endpoint_is_replaced() {
    let mut rig = Rig::new();
    rig.apply(web().object());
    endpoints_are(&mut rig, &[("backend-1", Readiness::READY)]);
    let clients = clients(&rig, &udp(), 3);
    for client in &clients {
        assert_eq!(client.answer(), "backend-1");
    }
    endpoints_are(&mut rig, &[("backend-2", Readiness::READY)]);
    // The kernel sends them to the first, if nobody tells it.
    assert_eq!(clients[0].answer(), "backend-1");
    assert_eq!(clean_up(&mut rig), clients.len());
    for client in &clients {
        assert_eq!(client.answer(), "backend-2");
    }
    assert_eq!(clean_up(&mut rig), 0);
}

fn a_client_of_a_node_port_follows() {
    let mut rig = Rig::new();
    let exposed = web_on_nodes().ingress("198.51.100.10").ingress("fd00:198::10");
    rig.apply(exposed.object());
    endpoints_are(&mut rig, &[("backend-1", Readiness::READY)]);
    let mut targets = rig.node_ports(30080, Protocol::Udp);
    targets.extend(["198.51.100.10:80", "[fd00:198::10]:80"].map(|at| vip(at, Protocol::Udp)));
    let clients = clients(&rig, &targets, 1);
    for client in &clients {
        assert_eq!(client.answer(), "backend-1");
    }
    endpoints_are(
        &mut rig,
        &[("pod-1", Readiness::READY), ("backend-2", Readiness::READY)],
    );
    assert_eq!(clean_up(&mut rig), clients.len());
    for client in &clients {
        assert_ne!(client.answer(), "backend-1");
    }
}

fn clients_of_endpoints_that_stay_are_left_alone() {
    let mut rig = Rig::new();
    rig.apply(web().object());
    let ready = Readiness::READY;
    endpoints_are(
        &mut rig,
        &[("backend-1", ready), ("backend-2", ready), ("backend-3", ready)],
    );
    let clients = clients(&rig, &udp(), 12);
    let before: Vec<String> = clients.iter().map(Client::answer).collect();
    endpoints_are(
        &mut rig,
        &[("backend-1", ready), ("backend-3", ready), ("pod-1", ready)],
    );
    let homeless = before.iter().filter(|answer| *answer == "backend-2").count();
    assert!(homeless > 0 && homeless < clients.len());
    assert_eq!(clean_up(&mut rig), homeless);
    for (client, before) in clients.iter().zip(&before) {
        match before.as_str() {
            "backend-2" => assert_ne!(client.answer(), "backend-2"),
            before => assert_eq!(client.answer(), before),
        }
    }
}

fn an_endpoint_that_ends_keeps_its_clients_while_it_serves() {
    let mut rig = Rig::new();
    rig.apply(web().object());
    endpoints_are(&mut rig, &[("backend-1", Readiness::READY)]);
    let clients = clients(&rig, &udp(), 2);
    for client in &clients {
        assert_eq!(client.answer(), "backend-1");
    }
    endpoints_are(
        &mut rig,
        &[("backend-1", Readiness::DRAINING), ("backend-2", Readiness::READY)],
    );
    assert_eq!(clean_up(&mut rig), 0);
    for client in &clients {
        assert_eq!(client.answer(), "backend-1");
    }
    endpoints_are(
        &mut rig,
        &[("backend-1", Readiness::GONE), ("backend-2", Readiness::READY)],
    );
    // Nothing of the table changed, but the clients are at one who serves no more.
    let cut = clean_up(&mut rig);
    assert_eq!(cut, clients.len(), "flows to an endpoint that has ended");
    for client in &clients {
        assert_eq!(client.answer(), "backend-2");
    }
}

fn a_service_without_endpoints_is_left_alone() {
    let mut rig = Rig::new();
    rig.apply(web().object());
    endpoints_are(&mut rig, &[("backend-1", Readiness::READY)]);
    let clients = clients(&rig, &udp(), 2);
    for client in &clients {
        assert_eq!(client.answer(), "backend-1");
    }
    endpoints_are(&mut rig, &[]);
    assert_eq!(clean_up(&mut rig), 0);
    endpoints_are(&mut rig, &[("backend-3", Readiness::READY)]);
    assert_eq!(clean_up(&mut rig), clients.len());
    for client in &clients {
        assert_eq!(client.answer(), "backend-3");
    }
}

fn a_client_that_came_too_early_is_answered_later() {
    let mut rig = Rig::new();
    rig.apply(web_on_nodes().object());
    endpoints_are(&mut rig, &[("backend-1", Readiness::UNREADY)]);
    let mut targets = udp().to_vec();
    targets.extend(rig.node_ports(30080, Protocol::Udp));
    let clients = clients(&rig, &targets, 2);
    for client in &clients {
        udp_identity_from(&client.from, client.source, client.to, LIMIT).expect_err("a refusal");
    }
    refused(&asks([&rig.node().client], &targets));
    endpoints_are(&mut rig, &[("backend-1", Readiness::READY)]);
    clean_up(&mut rig);
    for client in &clients {
        assert_eq!(client.answer(), "backend-1");
    }
}

fn connections_over_tcp_are_left_alone() {
    let mut rig = Rig::new();
    rig.apply(web().object());
    endpoints_are(&mut rig, &[("backend-1", Readiness::READY)]);
    let targets = WEB.map(|at| at.parse::<SocketAddr>().expect("an address"));
    let connections = targets.map(|target| LongLived::open(&rig.node().client, target));
    endpoints_are(&mut rig, &[("backend-2", Readiness::READY)]);
    assert_eq!(clean_up(&mut rig), 0);
    for connection in connections {
        let before = connection.status().echoes;
        wait::until_blocking("ten echoes more", LIMIT, || {
            (connection.status().echoes > before + 10).then_some(())
        });
        assert!(connection.stop().alive);
    }
}
