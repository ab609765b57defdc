//! First packets by the hundred thousand: none is refused or lost, and every endpoint gets its share.
//!
//! A client sends each datagram from another address and port, so each is a new connection to the data plane. Where they
//! arrive, the kernel counts them by their destination and drops them: nothing is lost by the counting.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nftfleet_agent::dataplane::Desired;
use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};
use nftfleet_tests::wait;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};

use crate::world::{World, pods_in, serve};

/// Packets to each Service in each family; `PACKETS=1000000` is what `make spread` sends.
const PACKETS: u32 = 20_000;

/// Packets between two clean-ups of connection tracking: its table is the machine's, and small.
const ROUND: u32 = 50_000;

/// How many endpoints, and the chi-square that chance exceeds once in a million (for 1,000 by Wilson and Hilferty).
const CASES: [(u16, f64); 5] = [(1, 0.0), (2, 23.93), (3, 27.63), (9, 42.70), (1_000, 1_226.0)];

/// The port of every endpoint.
const PORT: u16 = 8080;

/// Where clients and endpoints live. Clients count as pods, so that nobody is masqueraded: the node's ports would run out.
const CLIENTS: [&str; 2] = ["172.31.0.0/16", "fd00:31::/64"];
const ENDPOINTS: [&str; 2] = ["10.200.0.0/16", "fd00:200::/64"];

fn endpoint(family: Family, number: u16) -> Endpoint {
    let [high, low] = number.to_be_bytes();
    let address = match family {
        Family::V4 => Ipv4Addr::new(10, 200, high, low).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, number).into(),
    };
    Endpoint { address, port: PORT }
}

fn vip(family: Family, endpoints: u16) -> Vip {
    let address = match family {
        Family::V4 => Ipv4Addr::new(10, 96, 30, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x3001).into(),
    };
    Vip {
        address,
        protocol: Protocol::Udp,
        port: 10_000 + endpoints,
    }
}

/// The source of the n-th packet: another address each time, and another port when all have had their turn.
fn source(family: Family, n: u32) -> IpAddr {
    let [_, _, high, low] = n.to_be_bytes();
    match family {
        Family::V4 => Ipv4Addr::new(172, 31, high, low).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, u16::from(high), u16::from(low)).into(),
    }
}

/// Routes, and what counts: the endpoints' machine by destination, the client's by refusal.
fn prepare(world: &World) {
    let (node, machine) = (world.node(), &world.lab.backends[0]);
    for (network, via) in ENDPOINTS
        .into_iter()
        .zip([IpAddr::from(machine.address4), machine.address6.into()])
    {
        let family = if via.is_ipv4() { "-4" } else { "-6" };
        node.netns
            .pipe("ip", &[family, "route", "add", network, "via", &via.to_string()], "");
    }
    for network in CLIENTS {
        let family = if network.contains(':') { "-6" } else { "-4" };
        let own = [family, "route", "add", "local", network, "dev", "lo"];
        node.client.pipe("ip", &own, "");
    }
    node.client.sysctl("ipv6/ip_nonlocal_bind", "1");
    node.netns.sysctl("netfilter/nf_conntrack_udp_timeout", "1");
    machine.netns.pipe(
        "nft",
        &["-f", "-"],
        "table inet count {
            set arrived4 { type ipv4_addr; size 65535; flags dynamic; }
            set arrived6 { type ipv6_addr; size 65535; flags dynamic; }
            chain count {
                type filter hook prerouting priority raw
                udp dport 8080 meta nfproto ipv4 update @arrived4 { ip daddr counter } drop
                udp dport 8080 meta nfproto ipv6 update @arrived6 { ip6 daddr counter } drop
            }
        }",
    );
    node.client.pipe(
        "nft",
        &["-f", "-"],
        "table inet refusals {
            counter refused { }
            chain heard {
                type filter hook input priority filter
                icmp type destination-unreachable counter name refused
                icmpv6 type destination-unreachable counter name refused
            }
        }",
    );
}

/// Sends packets to the VIP, each from a source of its own.
fn send(world: &World, vip: Vip, packets: u32) {
    let family = Family::of(vip.address);
    let to = SockaddrStorage::from(SocketAddr::new(vip.address, vip.port));
    let any: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut socket = None;
    for n in 0..packets {
        if n.is_multiple_of(ROUND) {
            world.node().netns.pipe("conntrack", &["-F"], "");
            // Another port: the addresses come round again.
            let open = || UdpSocket::bind((any, 0)).expect("a socket");
            socket = Some(world.node().client.run(open));
        }
        let socket = socket.as_ref().expect("a socket for this round");
        let (v4, v6);
        let control = match source(family, n) {
            IpAddr::V4(source) => {
                v4 = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(source.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                ControlMessage::Ipv4PacketInfo(&v4)
            }
            IpAddr::V6(source) => {
                v6 = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: source.octets(),
                    },
                    ipi6_ifindex: 0,
                };
                ControlMessage::Ipv6PacketInfo(&v6)
            }
        };
        let payload = [IoSlice::new(b"?")];
        sendmsg(socket.as_raw_fd(), &payload, &[control], MsgFlags::empty(), Some(&to)).expect("a packet is sent");
    }
}

/// How many packets arrived at each address since the last look.
fn arrived(world: &World, family: Family) -> BTreeMap<String, u64> {
    let set = match family {
        Family::V4 => "arrived4",
        Family::V6 => "arrived6",
    };
    let machine = &world.lab.backends[0].netns;
    let listed = machine.pipe("nft", &["list", "set", "inet", "count", set], "");
    // `10.200.0.1 counter packets 17 bytes 493,` among other words.
    let words: Vec<&str> = listed.split_whitespace().collect();
    let counted = words.windows(4).filter(|w| w[1] == "counter" && w[2] == "packets");
    counted
        .map(|w| (w[0].to_owned(), w[3].parse().expect("a number")))
        .collect()
}

fn forget(world: &World) {
    let machine = &world.lab.backends[0].netns;
    for set in ["arrived4", "arrived6"] {
        machine.pipe("nft", &["flush", "set", "inet", "count", set], "");
    }
}

#[test]
fn of_very_many_first_packets_none_is_lost_and_every_endpoint_gets_its_share() {
    let packets = std::env::var("PACKETS").map_or(PACKETS, |text| text.parse().expect("PACKETS is a number"));
    let world = World::new(1);
    prepare(&world);
    let mut wish = Desired {
        pods: pods_in(CLIENTS[0], CLIENTS[1]),
        ..Desired::default()
    };
    for family in Family::BOTH {
        for (endpoints, _) in CASES {
            let all = (1..=endpoints).map(|number| endpoint(family, number));
            serve(&mut wish, vip(family, endpoints), all);
        }
    }
    world.dataplane().load(&wish, false).unwrap();
    println!("family | endpoints | packets | least | most | chi-square | bound");
    for family in Family::BOTH {
        for (endpoints, bound) in CASES {
            forget(&world);
            send(&world, vip(family, endpoints), packets);
            let found = wait::until_blocking("every packet to arrive", Duration::from_secs(20), || {
                let found = arrived(&world, family);
                (found.values().sum::<u64>() == u64::from(packets)).then_some(found)
            });
            assert_eq!(found.len(), usize::from(endpoints));
            let expected = f64::from(packets) / f64::from(endpoints);
            let distance = |n: &u64| {
                let n = f64::from(u32::try_from(*n).expect("few packets"));
                (n - expected).powi(2) / expected
            };
            let chi_square: f64 = found.values().map(distance).sum();
            let (least, most) = (found.values().min().expect("one"), found.values().max().expect("one"));
            println!("{family} | {endpoints} | {packets} | {least} | {most} | {chi_square:.1} | {bound}");
            assert!(chi_square <= bound, "{family}, {endpoints} endpoints: {chi_square}");
        }
    }
    let refused = world
        .node()
        .client
        .pipe("nft", &["list", "counter", "inet", "refusals", "refused"], "");
    assert!(refused.contains("packets 0 "), "{refused}");
}
