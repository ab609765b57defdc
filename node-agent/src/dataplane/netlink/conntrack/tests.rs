//! What is stale, what the kernel's words mean, and a real kernel in a network namespace of its own (as root).

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;

use super::super::message::received;
use super::*;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn udp_flow(client: &str, service: &str, reply_source: &str) -> Flow {
    Flow {
        original: (address(client), address(service)),
        reply_source: address(reply_source),
        zone: None,
        id: 1,
    }
}

fn vip(text: &str, protocol: Protocol) -> Vip {
    Vip {
        address: address(text).ip(),
        protocol,
        port: address(text).port(),
    }
}

fn endpoints(texts: &[&str]) -> BTreeSet<Endpoint> {
    let endpoint = |text: &&str| Endpoint {
        address: address(text).ip(),
        port: address(text).port(),
    };
    texts.iter().map(endpoint).collect()
}

#[test]
fn a_flow_is_stale_if_who_replies_serves_its_vip_no_more() {
    let flows = [
        udp_flow("10.0.0.1:4000", "10.96.0.10:53", "10.0.1.1:53"),
        udp_flow("10.0.0.1:4001", "10.96.0.10:53", "10.0.1.2:53"),
        // The right address with another port is another endpoint.
        udp_flow("10.0.0.1:4002", "10.96.0.10:53", "10.0.1.1:54"),
        // Tracked before there was a Service: nobody has translated it.
        udp_flow("10.0.0.1:4003", "10.96.0.10:53", "10.96.0.10:53"),
        // Another port of the same address, and an address of which nothing is known.
        udp_flow("10.0.0.1:4004", "10.96.0.10:9153", "10.0.1.2:9153"),
        udp_flow("10.0.0.1:4005", "192.0.2.1:53", "192.0.2.1:53"),
        // A VIP without endpoints.
        udp_flow("10.0.0.1:4006", "10.96.0.11:53", "10.0.1.2:53"),
        // UDP is no matter of the Service that has the same port for TCP.
        udp_flow("10.0.0.1:4007", "10.96.0.12:53", "10.0.1.2:53"),
        udp_flow("[fd00::1]:4008", "[fd00:96::10]:53", "[fd00:1::2]:53"),
    ];
    let serving = BTreeMap::from([
        (vip("10.96.0.10:53", Protocol::Udp), endpoints(&["10.0.1.1:53"])),
        (vip("10.96.0.11:53", Protocol::Udp), endpoints(&[])),
        (vip("10.96.0.12:53", Protocol::Tcp), endpoints(&["10.0.1.1:53"])),
        (vip("[fd00:96::10]:53", Protocol::Udp), endpoints(&["[fd00:1::1]:53"])),
    ]);
    let stale: Vec<u16> = stale(&flows, &serving)
        .iter()
        .map(|flow| flow.original.0.port())
        .collect();
    assert_eq!(stale, [4001, 4002, 4003, 4008]);
}

/// The message with which the kernel lists a flow.
fn listed(flow: &Flow) -> Vec<u8> {
    let mut bytes = Vec::new();
    let start = begin_message(&mut bytes, SUBSYSTEM << 8 | kind::NEW, 0, 1, 0, 0);
    let (client, service) = flow.original;
    for (direction, (source, destination)) in [
        (entry::ORIGINAL, (client, service)),
        (entry::REPLY, (flow.reply_source, client)),
    ] {
        let direction = begin_nested(&mut bytes, direction);
        write_addresses(&mut bytes, source.ip(), destination.ip());
        write_transport(&mut bytes, Some((source.port(), destination.port())));
        end_attribute(&mut bytes, direction);
    }
    if let Some(zone) = flow.zone {
        attribute(&mut bytes, entry::ZONE, &zone.to_be_bytes());
    }
    attribute(&mut bytes, entry::ID, &flow.id.to_be_bytes());
    end_message(&mut bytes, start);
    bytes
}

fn some_flow() -> impl Strategy<Value = Flow> {
    let socket = |v6: bool| {
        let address = if v6 {
            any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())).boxed()
        } else {
            any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())).boxed()
        };
        (address, any::<u16>()).prop_map(|(address, port)| SocketAddr::new(address, port))
    };
    let flow = move |v6| (socket(v6), socket(v6), socket(v6), any::<Option<u16>>(), any::<u32>());
    any::<bool>()
        .prop_flat_map(flow)
        .prop_map(|(client, service, reply_source, zone, id)| Flow {
            original: (client, service),
            reply_source,
            zone,
            id,
        })
}

proptest! {
    #[test]
    fn a_listed_flow_is_read_as_it_is(wanted in some_flow()) {
        let bytes = listed(&wanted);
        prop_assert_eq!(received(&bytes).filter_map(flow).collect::<Vec<_>>(), [wanted]);
    }

    #[test]
    fn a_damaged_message_is_skipped_or_read_but_never_ends_the_agent(
        wanted in some_flow(),
        at in any::<prop::sample::Index>(),
        bits in 1u8..,
    ) {
        let mut bytes = listed(&wanted);
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        prop_assert!(received(&bytes).filter_map(flow).count() <= 1);
        prop_assert!(received(&bytes[..at]).filter_map(flow).count() == 0);
    }
}

#[test]
fn an_interrupted_listing_is_tried_again_but_not_for_ever() {
    let interrupted_until = |last: usize| {
        let mut tries = 0;
        retried(|| {
            tries += 1;
            match tries {
                _ if tries == last => Ok(tries),
                1 => Err(SocketError::Refused {
                    sequence: 1,
                    offset: None,
                    source: Errno::EINTR.into(),
                }),
                _ => Err(SocketError::Interrupted),
            }
        })
    };
    assert_eq!(interrupted_until(TRIES).unwrap(), TRIES);
    assert!(matches!(interrupted_until(TRIES + 1), Err(ConntrackError::Restless)));
    let refused = retried(|| -> Result<(), _> {
        Err(SocketError::Refused {
            sequence: 1,
            offset: None,
            source: Errno::EPERM.into(),
        })
    });
    assert!(matches!(refused, Err(ConntrackError::List(_))));
}

const PATIENCE: Duration = Duration::from_secs(10);

/// Where the kernel's tests knock, and who answers there.
const VIP: &str = "127.96.0.10:5300";
const LEAVING: &str = "127.0.1.1:5301";
const STAYING: &str = "127.0.1.2:5302";

/// Runs `work` on a fresh thread in a network namespace of its own, with its loopback up.
fn in_a_namespace(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            feed(&["ip", "-batch", "-"], "link set lo up");
            work();
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn feed(command: &[&str], input: &str) {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{command:?} refused {input}");
}

/// Sends what asks for the VIP, by UDP and TCP, to this endpoint.
fn translate_to(endpoint: &str) {
    let vip = address(VIP);
    feed(
        &["nft", "-f", "-"],
        &format!(
            "table ip lab\n\
             delete table ip lab\n\
             table ip lab {{\n\
               chain zones {{ type filter hook output priority raw;\n\
                 ip daddr 127.96.0.30 ct zone set 7;\n\
                 ip daddr 127.96.0.31 ct original zone set 8; }}\n\
               chain out {{ type nat hook output priority -100;\n\
                 ip daddr {{ {}, 127.96.0.30, 127.96.0.31 }} meta l4proto {{ tcp, udp }} th dport {} dnat to {endpoint}; }}\n\
             }}",
            vip.ip(),
            vip.port(),
        ),
    );
}

/// A socket that answers every datagram with its own address.
fn answering(endpoint: &str) {
    let socket = UdpSocket::bind(endpoint).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::spawn(move || {
        let own = socket.local_addr().unwrap().to_string();
        while let Ok((_, client)) = socket.recv_from(&mut [0; 16]) {
            socket.send_to(own.as_bytes(), client).unwrap();
        }
    });
}

fn client(ip: &str) -> UdpSocket {
    let client = UdpSocket::bind(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Who answers this client at that address.
fn who_answers(client: &UdpSocket, service: &str) -> String {
    client.send_to(b"who?", service).unwrap();
    let mut answer = [0; 64];
    let (length, from) = client.recv_from(&mut answer).unwrap();
    assert_eq!(from, address(service), "the answer is translated back");
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

fn of<'a>(flows: &'a [Flow], client: &UdpSocket) -> Option<&'a Flow> {
    let client = client.local_addr().unwrap();
    flows.iter().find(|flow| flow.original.0 == client)
}

#[test]
fn the_stale_flow_goes_and_its_client_moves_on_while_others_stay() {
    in_a_namespace(|| {
        answering(LEAVING);
        answering(STAYING);
        let listener = TcpListener::bind(LEAVING).unwrap();
        translate_to(LEAVING);
        let [old, new, elsewhere] = [(); 3].map(|()| client("127.0.0.1"));
        assert_eq!(who_answers(&old, VIP), LEAVING);
        let mut tcp_client = TcpStream::connect(VIP).unwrap();
        let (mut tcp_server, _) = listener.accept().unwrap();
        tcp_client.set_read_timeout(Some(PATIENCE)).unwrap();

        translate_to(STAYING);
        assert_eq!(who_answers(&new, VIP), STAYING);
        assert_eq!(who_answers(&elsewhere, LEAVING), LEAVING);
        assert_eq!(
            who_answers(&old, VIP),
            LEAVING,
            "UDP sticks to an endpoint that has left"
        );

        let mut conntrack = Conntrack::open().unwrap();
        let flows = conntrack.udp_flows(Family::V4).unwrap();
        assert_eq!(flows.len(), 3, "{flows:?}");
        assert_eq!(of(&flows, &old).unwrap().reply_source, address(LEAVING));
        assert_eq!(of(&flows, &new).unwrap().reply_source, address(STAYING));
        let serving = BTreeMap::from([
            (vip(VIP, Protocol::Udp), endpoints(&[STAYING])),
            (vip(VIP, Protocol::Tcp), endpoints(&[STAYING])),
        ]);
        let stale = stale(&flows, &serving);
        assert_eq!(stale, [of(&flows, &old).unwrap()]);
        assert!(conntrack.delete(stale[0]).unwrap());
        assert!(!conntrack.delete(stale[0]).unwrap(), "gone already");

        let left = conntrack.udp_flows(Family::V4).unwrap();
        assert_eq!(of(&left, &old), None);
        assert_eq!(of(&left, &new), of(&flows, &new));
        assert_eq!(of(&left, &elsewhere), of(&flows, &elsewhere));
        assert_eq!(who_answers(&old, VIP), STAYING);
        tcp_client.write_all(b"still").unwrap();
        let mut heard = [0; 5];
        tcp_server.read_exact(&mut heard).unwrap();
        tcp_server.write_all(&heard).unwrap();
        tcp_client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still");
    });
}

#[test]
fn a_flow_that_was_made_anew_is_not_deleted_for_the_old_one() {
    in_a_namespace(|| {
        answering(STAYING);
        translate_to(STAYING);
        let client = client("127.0.0.1");
        who_answers(&client, VIP);
        let mut conntrack = Conntrack::open().unwrap();
        let flows = conntrack.udp_flows(Family::V4).unwrap();
        let other = Flow {
            id: flows[0].id.wrapping_add(1),
            ..flows[0].clone()
        };
        assert!(!conntrack.delete(&other).unwrap());
        assert_eq!(conntrack.udp_flows(Family::V4).unwrap(), flows);
    });
}

#[test]
fn a_flow_in_a_zone_is_seen_and_deleted() {
    in_a_namespace(|| {
        answering(STAYING);
        translate_to(STAYING);
        let (both_ways, one_way) = (client("127.0.0.1"), client("127.0.0.1"));
        // Its answer, which passes through no zone, is not translated back.
        both_ways.send_to(b"who?", "127.96.0.30:5300").unwrap();
        both_ways.recv_from(&mut [0; 64]).unwrap();
        who_answers(&one_way, "127.96.0.31:5300");
        let mut conntrack = Conntrack::open().unwrap();
        for (client, zone) in [(both_ways, 7), (one_way, 8)] {
            let flows = conntrack.udp_flows(Family::V4).unwrap();
            let zoned = of(&flows, &client).unwrap();
            assert_eq!(zoned.zone, Some(zone));
            assert!(conntrack.delete(zoned).unwrap());
            assert_eq!(of(&conntrack.udp_flows(Family::V4).unwrap(), &client), None);
        }
    });
}

#[test]
fn both_families_are_seen_each_by_itself() {
    in_a_namespace(|| {
        answering("[::1]:5302");
        answering(STAYING);
        feed(
            &["nft", "-f", "-"],
            "table inet lab {\nchain out { type filter hook output priority 0; ct state new accept; }\n}\n",
        );
        let (client4, client6) = (client("127.0.0.1"), client("::1"));
        who_answers(&client4, STAYING);
        who_answers(&client6, "[::1]:5302");
        let mut conntrack = Conntrack::open().unwrap();
        let flows4 = conntrack.udp_flows(Family::V4).unwrap();
        let flows6 = conntrack.udp_flows(Family::V6).unwrap();
        assert!(of(&flows4, &client4).is_some() && of(&flows4, &client6).is_none());
        assert!(of(&flows6, &client6).is_some() && of(&flows6, &client4).is_none());
        assert!(conntrack.delete(of(&flows6, &client6).unwrap()).unwrap());
        assert_eq!(of(&conntrack.udp_flows(Family::V6).unwrap(), &client6), None);
    });
}

#[test]
fn the_kernel_filters_and_where_it_refuses_we_do() {
    in_a_namespace(|| {
        answering(STAYING);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        translate_to(STAYING);
        let client = client("127.0.0.1");
        who_answers(&client, VIP);
        let _tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();

        let mut conntrack = Conntrack::open().unwrap();
        let count = |conntrack: &mut Conntrack| {
            let mut count = 0;
            conntrack
                .list(Family::V4, conntrack.filter, |_| count += 1)
                .map(|()| count)
        };
        assert_eq!(count(&mut conntrack).unwrap(), 1, "UDP only");
        let flows = conntrack.udp_flows(Family::V4).unwrap();
        assert!(conntrack.filter.is_some());

        // Fields that no kernel knows.
        conntrack.filter = Some(1 << 31);
        assert!(matches!(count(&mut conntrack), Err(SocketError::Refused { .. })));
        assert_eq!(conntrack.udp_flows(Family::V4).unwrap(), flows);
        assert_eq!(conntrack.filter, None);
        assert_eq!(count(&mut conntrack).unwrap(), 2, "TCP's among them");
    });
}
