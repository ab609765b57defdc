use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use nftfleet_domain::service::{Endpoint, Vip};
use proptest::prelude::*;

use super::*;
use crate::dataplane::desired::{self, Desired, Frontend, List, Route};
use crate::dataplane::diff::{all_keys, diff};
use crate::dataplane::layout::TICKETS;

/// A VIP of a Service in a few words.
#[derive(Clone, Debug)]
struct Sketch {
    kind: Kind,
    local_policy: bool,
    /// How many endpoints there are, and how many of them are on this node.
    endpoints: u8,
    here: u8,
    sticks: bool,
    guarded: bool,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Nobody,
    Client,
    Pod,
    Node,
    /// The first endpoint.
    Endpoint,
}

const NODE: u8 = 1;

/// The addresses of the tests, alike in both families: networks are told apart by their first byte.
fn address(family: Family, network: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([network, 0, 0, host]),
        Family::V6 => {
            let mut bytes = [0; 16];
            (bytes[0], bytes[15]) = (network, host);
            IpAddr::from(bytes)
        }
    }
}

const CLUSTER: u8 = 10;
const EXTERNAL: u8 = 20;
const NODES: u8 = 30;
const PODS: u8 = 40;
const CLIENTS: u8 = 50;

fn network(family: Family, network: u8) -> IpNet {
    IpNet::new(address(family, network, 0), 8).unwrap()
}

fn vip(family: Family, number: u8, sketch: &Sketch) -> Vip {
    let (network, host) = match sketch.kind {
        Kind::ClusterIp => (CLUSTER, number),
        Kind::External => (EXTERNAL, number),
        _ => (NODES, NODE),
    };
    Vip {
        address: address(family, network, host),
        protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][usize::from(number) % 3],
        port: 1000 + u16::from(number),
    }
}

fn endpoint(vip: Vip, n: u8) -> Endpoint {
    Endpoint {
        address: address(Family::of(vip.address), PODS, n + 1),
        port: 7000 + vip.port,
    }
}

fn list(vip: Vip, count: u8, sticks: bool) -> Option<List> {
    let affinity = sticks.then(|| desired::Affinity {
        timeout: 60,
        number: 0x8000_0000 + u32::from(vip.port),
        siblings: [vip].into(),
    });
    (count > 0).then(|| List {
        endpoints: (0..count).map(|n| endpoint(vip, n)).collect(),
        affinity,
    })
}

fn frontend(vip: Vip, sketch: &Sketch) -> Frontend {
    let all = || list(vip, sketch.endpoints, sketch.sticks);
    let local = || list(vip, sketch.here, sketch.sticks);
    let (route, all, local) = match (sketch.kind, sketch.local_policy) {
        (Kind::ClusterIp, false) => (None, all(), None),
        (Kind::ClusterIp, true) => {
            let elsewhere = sketch.endpoints > 0 && sketch.here == 0;
            (elsewhere.then_some(Route::NoLocalEndpoints), None, local())
        }
        _ if sketch.endpoints == 0 => (Some(Route::NoEndpoints), None, None),
        (_, false) => (Some(Route::ToAll), all(), None),
        (_, true) => (Some(Route::ToLocal), all(), local()),
    };
    let sources = [network(Family::of(vip.address), CLIENTS)].into();
    Frontend {
        name: format!("shop/web:{}", vip.port).into(),
        route,
        all,
        local,
        sources: (sketch.guarded && sketch.kind == Kind::External).then(|| Arc::new(sources)),
        serving: [].into(),
    }
}

fn desired(family: Family, sketches: &[Sketch]) -> Desired {
    let mut desired = Desired {
        service_cidrs: [network(family, CLUSTER)].into(),
        nodeport_ips: [address(family, NODES, NODE)].into(),
        ..Desired::default()
    };
    for (number, sketch) in (1..).zip(sketches) {
        let vip = vip(family, number, sketch);
        match sketch.kind {
            Kind::ClusterIp => drop(desired.cluster_ips.insert(vip.address, "shop/web".into())),
            Kind::External => drop(desired.external_ips.insert(vip.address)),
            _ => {}
        }
        let here = (0..sketch.here).map(|n| (vip.protocol, endpoint(vip, n)));
        desired.hairpins.extend(here);
        desired.frontends.insert(vip, frontend(vip, sketch));
    }
    desired
}

fn settle(programmed: &mut Programmed, wish: &Desired) {
    for _ in 0..4 {
        let changes = diff(wish, programmed, &all_keys(wish, programmed));
        programmed.apply(changes);
    }
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let kind = prop_oneof![Just(Kind::ClusterIp), Just(Kind::External), Just(Kind::NodePort)];
    let bools = (any::<bool>(), any::<bool>(), any::<bool>());
    (kind, 0u8..12, 0u8..4, bools).prop_map(|(kind, endpoints, here, (local_policy, sticks, guarded))| Sketch {
        kind,
        local_policy,
        endpoints,
        here: here.min(endpoints),
        sticks,
        guarded,
    })
}

fn asker() -> impl Strategy<Value = Asker> {
    prop_oneof![
        Just(Asker::Nobody),
        Just(Asker::Client),
        Just(Asker::Pod),
        Just(Asker::Node),
        Just(Asker::Endpoint)
    ]
}

fn source(family: Family, asker: Asker) -> Option<IpAddr> {
    match asker {
        Asker::Nobody => None,
        Asker::Client => Some(address(family, CLIENTS, 9)),
        Asker::Pod => Some(address(family, PODS, 200)),
        Asker::Node => Some(address(family, NODES, NODE)),
        Asker::Endpoint => Some(address(family, PODS, 1)),
    }
}

fn snapshot(family: Family, programmed: Programmed, settings: LayoutSettings, with_pods: bool) -> Snapshot {
    let pods = with_pods.then(|| PodMatch::Source(network(family, PODS)));
    let table = Table {
        dormant: false,
        settings,
        pods: match family {
            Family::V4 => Pods { v4: pods, v6: None },
            Family::V6 => Pods { v4: None, v6: pods },
        },
        programmed,
        clients: BTreeMap::new(),
        unsettled: false,
    };
    Snapshot {
        own: [address(family, NODES, NODE)].into(),
        table: Some(table),
    }
}

/// What a Service's author would say, from the sketch alone.
fn expected(vip: Vip, sketch: &Sketch, asker: Asker, all: bool, with_pods: bool) -> Outcome {
    let by = match vip.protocol {
        Protocol::Tcp => Refusal::TcpReset,
        _ => Refusal::PortUnreachable,
    };
    let is_pod = with_pods && matches!(asker, Asker::Pod | Asker::Endpoint);
    let sent = |count: u8, marked: bool| {
        let endpoints: Vec<SocketAddr> = (0..count)
            .map(|n| endpoint(vip, n))
            .map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port))
            .collect();
        let itself = asker == Asker::Endpoint && sketch.here > 0;
        let masquerade = match (marked, itself) {
            (true, _) => Masquerade::Marked,
            (false, true) => Masquerade::Hairpin(vec![endpoints[0]]),
            (false, false) => Masquerade::No,
        };
        Outcome::Sent { endpoints, masquerade }
    };
    let (endpoints, here) = (sketch.endpoints, sketch.here);
    if sketch.kind == Kind::ClusterIp {
        let marked = all || (with_pods && !is_pod);
        return match (sketch.local_policy, endpoints, here) {
            (_, 0, _) => Outcome::Refused {
                by,
                why: RefusedFor::NoPortOrEndpoint,
            },
            (false, ..) => sent(endpoints, marked),
            (true, _, 0) => Outcome::Dropped {
                why: DroppedFor::NoLocalEndpoint,
            },
            (true, ..) => sent(here, marked),
        };
    }
    let may_connect = matches!(asker, Asker::Nobody | Asker::Client);
    let own_port = sketch.kind == Kind::NodePort && asker == Asker::Node;
    if sketch.kind == Kind::External && sketch.guarded && !may_connect {
        Outcome::Dropped {
            why: DroppedFor::Source,
        }
    } else if endpoints == 0 && own_port {
        Outcome::LeftAlone {
            why: LeftFor::OwnClosedPort,
        }
    } else if endpoints == 0 {
        Outcome::Refused {
            by,
            why: RefusedFor::NoEndpoints,
        }
    } else if !sketch.local_policy {
        sent(endpoints, true)
    } else if is_pod {
        sent(endpoints, false)
    } else if asker == Asker::Node {
        sent(endpoints, true)
    } else if here == 0 {
        Outcome::Dropped {
            why: DroppedFor::NoLocalEndpoint,
        }
    } else {
        sent(here, false)
    }
}

fn ask(snapshot: &Snapshot, to: Vip, from: Option<IpAddr>) -> Explanation {
    explain(snapshot, &Packet::new(to, from, None).unwrap())
}

fn outcome(explanation: &Explanation) -> &Outcome {
    &explanation.fate.as_ref().unwrap().outcome
}

const SETTINGS: LayoutSettings = LayoutSettings {
    masquerade_bit: 14,
    masquerade_all: false,
};

proptest! {
    // Each case asks some thirty questions.
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn the_outcome_is_what_the_services_ask_for(
        before in proptest::collection::vec(sketch(), 0..6),
        sketches in proptest::collection::vec(sketch(), 1..6),
        asker in asker(), is_v4 in any::<bool>(), masquerade_all in any::<bool>(), with_pods in any::<bool>(),
    ) {
        let family = if is_v4 { Family::V4 } else { Family::V6 };
        // What was there before leaves its order of slots and its spare tickets.
        let mut programmed = Programmed::default();
        settle(&mut programmed, &desired(family, &before));
        settle(&mut programmed, &desired(family, &sketches));
        let settings = LayoutSettings { masquerade_all, ..SETTINGS };
        let snapshot = snapshot(family, programmed, settings, with_pods);
        let from = source(family, asker);
        for (number, sketch) in (1..).zip(&sketches) {
            let vip = vip(family, number, sketch);
            let said = ask(&snapshot, vip, from);
            let wanted = expected(vip, sketch, asker, masquerade_all, with_pods);
            prop_assert_eq!(outcome(&said), &wanted, "{}", said);
            let service = if sketch.kind == Kind::ClusterIp && wanted != (Outcome::Dropped { why: DroppedFor::NoLocalEndpoint }) {
                "shop/web".to_owned()
            } else {
                format!("shop/web:{}", vip.port)
            };
            prop_assert_eq!(said.service.as_ref(), Some(&service));
            prop_assert_eq!(said.kind, Some(sketch.kind));
            prop_assert_eq!(&said.notes, &[]);
            if let Some(Fate { spread: Some(spread), .. }) = &said.fate {
                prop_assert_eq!(spread.affinity.is_some(), sketch.sticks);
                prop_assert!(spread.filled >= spread.endpoints.len() && spread.filled <= usize::from(spread.class));
            }
            // Who else may ask is told as if it had been asked.
            for other in &said.others {
                let asker = if other.origin == Origin::Pod { Asker::Pod } else { Asker::Node };
                let wanted = expected(vip, &Sketch { guarded: false, ..sketch.clone() }, asker, masquerade_all, with_pods);
                prop_assert_eq!(&other.outcome, &wanted);
            }
            serde_json::to_string(&said).unwrap();
        }
        // Beside them there is nothing.
        let port = |vip: Vip| Vip { port: 9, ..vip };
        for (number, sketch) in (1..).zip(&sketches) {
            let said = ask(&snapshot, port(vip(family, number, sketch)), from);
            if sketch.kind == Kind::ClusterIp {
                let is_refused = matches!(outcome(&said), Outcome::Refused { .. });
                prop_assert!(is_refused, "{}", said);
            } else {
                prop_assert_eq!(outcome(&said), &Outcome::LeftAlone { why: LeftFor::UnknownPort });
            }
        }
        let to = |network| Vip { address: address(family, network, 99), protocol: Protocol::Tcp, port: 80 };
        let said = ask(&snapshot, to(CLUSTER), from);
        prop_assert_eq!(outcome(&said), &Outcome::Dropped { why: DroppedFor::Unallocated });
        let said = ask(&snapshot, to(CLIENTS), from);
        prop_assert_eq!(outcome(&said), &Outcome::LeftAlone { why: LeftFor::UnknownAddress });
    }
}

/// A sticky `ClusterIP` with so many endpoints.
fn sticky(endpoints: u8) -> Sketch {
    Sketch {
        kind: Kind::ClusterIp,
        local_policy: false,
        endpoints,
        here: 0,
        sticks: true,
        guarded: false,
    }
}

#[test]
fn a_client_is_sent_where_its_ticket_says_while_somebody_holds_it() {
    let (family, from) = (Family::V4, source(Family::V4, Asker::Client));
    let mut programmed = Programmed::default();
    settle(&mut programmed, &desired(family, &[sticky(5)]));
    let vip = vip(family, 1, &sticky(5));
    let number = programmed.vips[&vip].all.number.unwrap();
    let last = programmed.vips[&vip].all.tickets[&4];
    let mut snapshot = snapshot(family, programmed, SETTINGS, true);
    let client = |said: &Explanation| {
        let spread = said.fate.as_ref().unwrap().spread.as_ref().unwrap();
        spread.affinity.unwrap().client
    };

    assert_eq!(client(&ask(&snapshot, vip, None)), Client::Anybody);
    let said = ask(&snapshot, vip, from);
    assert_eq!(client(&said), Client::New);
    assert!(matches!(outcome(&said), Outcome::Sent { endpoints, .. } if endpoints.len() == 5));

    let remembered = |ticket| Remembered {
        ticket,
        expires: Duration::from_millis(42_500),
    };
    let table = snapshot.table.as_mut().unwrap();
    table.clients.insert(number, remembered(TICKETS[0] + 4));
    let said = ask(&snapshot, vip, from);
    let held = SocketAddr::new(last.address, last.port);
    assert!(matches!(outcome(&said), Outcome::Sent { endpoints, .. } if *endpoints == [held]));
    assert!(
        said.to_string()
            .contains(&format!("holds ticket 4, which is {held}, for 42 s more")),
        "{said}"
    );

    // Its endpoint goes; then a ticket that means nothing here.
    settle(
        &mut snapshot.table.as_mut().unwrap().programmed,
        &desired(family, &[sticky(4)]),
    );
    let said = ask(&snapshot, vip, from);
    assert!(matches!(client(&said), Client::HoldsInVain { ticket: Some(4), .. }));
    assert!(matches!(outcome(&said), Outcome::Sent { endpoints, .. } if endpoints.len() == 4));
    snapshot.table.as_mut().unwrap().clients.insert(number, remembered(7));
    assert!(matches!(
        client(&ask(&snapshot, vip, from)),
        Client::HoldsInVain { ticket: None, .. }
    ));
}

#[test]
fn what_holds_only_for_those_who_may_connect_says_so() {
    let guarded = Sketch {
        kind: Kind::External,
        guarded: true,
        sticks: false,
        ..sticky(2)
    };
    let mut programmed = Programmed::default();
    settle(&mut programmed, &desired(Family::V4, std::slice::from_ref(&guarded)));
    let (snapshot, to) = (
        snapshot(Family::V4, programmed, SETTINGS, true),
        vip(Family::V4, 1, &guarded),
    );
    let text = |asker| ask(&snapshot, to, source(Family::V4, asker)).to_string();
    let nobody = text(Asker::Nobody);
    assert!(
        nobody.contains("Who may connect:\n  50.0.0.0/8\n\n=> whoever may connect is sent to"),
        "{nobody}"
    );
    assert!(nobody.contains("A pod, if it may connect: the same."), "{nobody}");
    assert!(text(Asker::Client).contains("\n=> sent to"));
    assert!(text(Asker::Pod).contains("\n=> dropped: the source is none of those who may connect"));
}

#[test]
fn without_a_table_or_with_a_dormant_one_nothing_of_it_happens() {
    let to = vip(Family::V4, 1, &sticky(1));
    let mut snapshot = snapshot(Family::V4, Programmed::default(), SETTINGS, true);
    snapshot.table.as_mut().unwrap().dormant = true;
    let said = ask(&snapshot, to, None);
    assert_eq!(said.table, TableState::Dormant);
    assert!(said.to_string().contains("dormant: nothing of this happens"), "{said}");
    snapshot.table = None;
    let said = ask(&snapshot, to, None);
    assert_eq!((said.table, said.fate.is_none()), (TableState::Absent, true));
    assert!(said.to_string().contains("no table inet nftfleet"), "{said}");
}

#[test]
fn pods_that_are_known_by_their_device_need_it() {
    let family = Family::V6;
    let mut programmed = Programmed::default();
    settle(&mut programmed, &desired(family, &[sticky(2)]));
    let to = vip(family, 1, &sticky(2));
    let mut snapshot = snapshot(family, programmed, SETTINGS, false);
    let mut by_device = |pods: PodMatch, device: Option<&str>, asker| {
        snapshot.table.as_mut().unwrap().pods.v6 = Some(pods);
        let packet = Packet::new(to, source(family, asker), device.map(ToOwned::to_owned)).unwrap();
        let said = explain(&snapshot, &packet);
        (said.origin, said.notes.len())
    };
    let bridge = || PodMatch::Interface("cni0".to_owned());
    let prefix = || PodMatch::InterfacePrefix("veth".to_owned());
    assert_eq!(by_device(bridge(), None, Asker::Pod), (Origin::Outside, 1));
    assert_eq!(by_device(bridge(), Some("cni0"), Asker::Pod), (Origin::Pod, 0));
    assert_eq!(by_device(bridge(), Some("cni01"), Asker::Pod), (Origin::Outside, 0));
    assert_eq!(by_device(prefix(), Some("veth1"), Asker::Client), (Origin::Pod, 0));
    assert_eq!(by_device(prefix(), Some("eth0"), Asker::Client), (Origin::Outside, 0));
    assert_eq!(by_device(prefix(), None, Asker::Node), (Origin::Node, 0));
}

#[test]
fn a_long_list_is_cut_for_people_and_whole_for_programs() {
    let many = Sketch {
        endpoints: 25,
        sticks: false,
        ..sticky(0)
    };
    let mut programmed = Programmed::default();
    settle(&mut programmed, &desired(Family::V4, std::slice::from_ref(&many)));
    let said = ask(
        &snapshot(Family::V4, programmed, SETTINGS, true),
        vip(Family::V4, 1, &many),
        None,
    );
    let text = said.to_string();
    assert!(text.contains("25, in 25 of 32 slots (service4-32)"), "{text}");
    assert!(text.contains("  40.0.0.20:8001\n  ... and 5 more\n"), "{text}");
    let json = serde_json::to_value(&said).unwrap();
    assert_eq!(json["fate"]["outcome"]["endpoints"].as_array().unwrap().len(), 25);
}

#[test]
fn what_is_half_changed_or_moved_meanwhile_is_said() {
    let plain = |endpoints| Sketch {
        endpoints,
        sticks: false,
        ..sticky(0)
    };
    let mut programmed = Programmed::default();
    settle(&mut programmed, &desired(Family::V4, &[plain(3)]));
    let wish = desired(Family::V4, &[plain(5)]);
    programmed.apply(diff(&wish, &programmed, &all_keys(&wish, &programmed)));
    let mut snapshot = snapshot(Family::V4, programmed, SETTINGS, true);
    snapshot.table.as_mut().unwrap().unsettled = true;
    let to = vip(Family::V4, 1, &plain(5));
    assert_eq!(ask(&snapshot, to, None).notes, [Note::Unsettled, Note::Changing]);
    let held = snapshot.table.as_mut().unwrap().programmed.vips.get_mut(&to).unwrap();
    held.all.slots[0] = None;
    assert!(ask(&snapshot, to, None).notes.contains(&Note::NoLastResort));
}
