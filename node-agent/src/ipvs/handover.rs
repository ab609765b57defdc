//! The table `inet nftfleet-handover`: IPVS' live connections, each with the endpoint that it has.
//!
//! When a virtual service goes, IPVS forgets its connections and their conntrack entries. The next packet of such a
//! connection, whoever sends it, is picked up by conntrack as if it were the first, and meets this table. What IPVS and the
//! masquerading behind it did to the addresses is known, so the same is done again, and neither end notices. There are four
//! ways in which a connection is written down:
//!
//! - `pinned`: what the client sends goes to its endpoint
//! - `seen`: and comes from where the endpoint has seen it come from, if that was masqueraded
//! - `seenrev`: what the endpoint sends to the masqueraded address goes to the client
//! - `pinrev`: and comes from the VIP that the client knows
//!
//! The table is written whole in one transaction, and read back from the kernel: nothing of it is kept elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use nftfleet_domain::service::{Family, Protocol};
use serde_json::Value;

use super::{IpvsError, run_well};
use crate::host::Host;

/// The table's name in the family `inet`.
pub const TABLE: &str = "nftfleet-handover";

/// Before our own table, at -110, and so before all others that translate.
const DNAT_PRIORITY: i32 = -111;

/// Before our own, at 90.
const SNAT_PRIORITY: i32 = 89;

/// What tells a connection from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Who connected.
    pub client: SocketAddr,
    /// Where it knocked.
    pub vip: SocketAddr,
}

/// What is done to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin {
    /// Who answers it.
    pub endpoint: SocketAddr,
    /// Where the endpoint sees it come from: the client itself, or where it was masqueraded to.
    pub seen: SocketAddr,
}

/// All connections that are handed over.
pub type Pins = BTreeMap<Key, Pin>;

/// Source, destination and protocol of a packet, and what one of the ends becomes.
type Rewrites = BTreeMap<(SocketAddr, SocketAddr, Protocol), SocketAddr>;

/// The four maps of a family.
#[derive(Debug, Default, PartialEq, Eq)]
struct Maps {
    pinned: Rewrites,
    seen: Rewrites,
    seenrev: Rewrites,
    pinrev: Rewrites,
}

impl Maps {
    fn of(pins: &Pins, family: Family) -> Self {
        let mut maps = Self::default();
        for (key, pin) in pins.iter().filter(|(key, _)| Family::of(key.vip.ip()) == family) {
            maps.pinned.insert((key.client, key.vip, key.protocol), pin.endpoint);
            maps.pinrev.insert((pin.endpoint, key.client, key.protocol), key.vip);
            if pin.seen != key.client {
                maps.seen.insert((key.client, pin.endpoint, key.protocol), pin.seen);
                maps.seenrev.insert((pin.endpoint, pin.seen, key.protocol), key.client);
            }
        }
        maps
    }

    fn pins(&self) -> impl Iterator<Item = (Key, Pin)> {
        self.pinned.iter().map(|((client, vip, protocol), endpoint)| {
            let key = Key {
                protocol: *protocol,
                client: *client,
                vip: *vip,
            };
            let seen = self.seen.get(&(*client, *endpoint, *protocol)).unwrap_or(client);
            let pin = Pin {
                endpoint: *endpoint,
                seen: *seen,
            };
            (key, pin)
        })
    }

    fn named(&self) -> [(&'static str, &Rewrites); 4] {
        [
            ("pinned", &self.pinned),
            ("seen", &self.seen),
            ("seenrev", &self.seenrev),
            ("pinrev", &self.pinrev),
        ]
    }

    fn named_mut(&mut self, name: &str) -> Option<&mut Rewrites> {
        Some(match name {
            "pinned" => &mut self.pinned,
            "seen" => &mut self.seen,
            "seenrev" => &mut self.seenrev,
            "pinrev" => &mut self.pinrev,
            _ => return None,
        })
    }
}

/// Reads the table, which must be there.
///
/// # Errors
/// `nft` fails, or somebody else wrote into it.
pub fn read(host: &dyn Host) -> Result<Pins, IpvsError> {
    let text = run_well(host, "nft", &["-j", "list", "table", "inet", TABLE], "")?;
    parse(&text).map_err(|what| IpvsError::Handover { what })
}

/// Writes the table anew, in one transaction.
///
/// # Errors
/// `nft` refused; then the table is as it was.
pub fn write(host: &dyn Host, pins: &Pins) -> Result<(), IpvsError> {
    run_well(host, "nft", &["-f", "-"], &script(pins)).map(drop)
}

/// Deletes the table, which need not be there. Connections that have been picked up keep their translation.
///
/// # Errors
/// `nft` refused.
pub fn delete(host: &dyn Host) -> Result<(), IpvsError> {
    let script = format!("add table inet {TABLE}\ndelete table inet {TABLE}\n");
    run_well(host, "nft", &["-f", "-"], &script).map(drop)
}

const fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

const fn keyword(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The whole table, in place of what may be there, as input for `nft`.
fn script(pins: &Pins) -> String {
    let mut text = format!("add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    for family in Family::BOTH {
        for (name, rewrites) in Maps::of(pins, family).named() {
            map(&mut text, family, name, rewrites);
        }
    }
    let chains = [
        ("prerouting", DNAT_PRIORITY, "dnat", &["pinned", "seenrev"][..]),
        ("output", DNAT_PRIORITY, "dnat", &["pinned"]),
        ("postrouting", SNAT_PRIORITY, "snat", &["pinrev", "seen"]),
        // An answer to the node itself.
        ("input", SNAT_PRIORITY, "snat", &["pinrev"]),
    ];
    for (hook, priority, verb, maps) in chains {
        let _ = writeln!(text, "chain {hook} {{\ntype nat hook {hook} priority {priority};");
        for family in Family::BOTH {
            let (ip, digit) = (keyword(family), digit(family));
            for map in maps {
                let _ = writeln!(
                    text,
                    "{verb} {ip} to {ip} saddr . th sport . {ip} daddr . meta l4proto . th dport map @{map}{digit}"
                );
            }
        }
        text.push_str("}\n");
    }
    text.push_str("}\n");
    text
}

fn map(text: &mut String, family: Family, name: &str, rewrites: &Rewrites) {
    let address = match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    let _ = writeln!(
        text,
        "map {name}{digit} {{\ntype {address} . inet_service . {address} . inet_proto . inet_service : \
         {address} . inet_service",
        digit = digit(family)
    );
    if !rewrites.is_empty() {
        text.push_str("elements = {\n");
        for ((source, destination, protocol), becomes) in rewrites {
            let _ = writeln!(
                text,
                "{} . {} . {} . {protocol} . {} : {} . {},",
                source.ip(),
                source.port(),
                destination.ip(),
                destination.port(),
                becomes.ip(),
                becomes.port()
            );
        }
        text.push_str("}\n");
    }
    text.push_str("}\n");
}

/// Reads what `nft -j` printed; what makes no sense, if there is something.
fn parse(text: &str) -> Result<Pins, String> {
    let whole: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let objects = whole["nftables"].as_array().ok_or("no list of objects")?;
    let mut families = Family::BOTH.map(|family| (family, Maps::default()));
    for object in objects {
        let Some(map) = object.get("map") else { continue };
        let name = map["name"].as_str().unwrap_or_default();
        let rewrites = families
            .iter_mut()
            .find_map(|(family, maps)| maps.named_mut(name.strip_suffix(digit(*family))?))
            .ok_or_else(|| format!("the map {name:?}"))?;
        for element in map["elem"].as_array().into_iter().flatten() {
            let (from, becomes) = element_of(element).ok_or_else(|| format!("{element} in the map {name}"))?;
            rewrites.insert(from, becomes);
        }
    }
    Ok(families.iter().flat_map(|(_, maps)| maps.pins()).collect())
}

type Rewrite = ((SocketAddr, SocketAddr, Protocol), SocketAddr);

/// `[{"concat": ["10.1.1.2", 49360, "10.96.0.9", "tcp", 80]}, {"concat": ["10.1.3.2", 8080]}]`
fn element_of(element: &Value) -> Option<Rewrite> {
    let [key, becomes] = element.as_array()?.as_slice() else {
        return None;
    };
    let [source, source_port, destination, protocol, destination_port] = key["concat"].as_array()?.as_slice() else {
        return None;
    };
    let [address, port] = becomes["concat"].as_array()?.as_slice() else {
        return None;
    };
    let socket = |address: &Value, port: &Value| {
        let address: IpAddr = address.as_str()?.parse().ok()?;
        Some(SocketAddr::new(address, u16::try_from(port.as_u64()?).ok()?))
    };
    // By its name, or by its number on a node that has no /etc/protocols.
    let protocol = match protocol.as_str() {
        Some(name) => name.to_uppercase().parse().ok()?,
        None => Protocol::from_number(u8::try_from(protocol.as_u64()?).ok()?)?,
    };
    let key = (
        socket(source, source_port)?,
        socket(destination, destination_port)?,
        protocol,
    );
    Some((key, socket(address, port)?))
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};
    use proptest::prelude::*;

    use super::*;
    use crate::host::ThisHost;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn pin(protocol: Protocol, [client, vip, endpoint, seen]: [&str; 4]) -> (Key, Pin) {
        let (client, vip) = (at(client), at(vip));
        let key = Key { protocol, client, vip };
        let (endpoint, seen) = (at(endpoint), at(seen));
        (key, Pin { endpoint, seen })
    }

    #[test]
    fn a_masqueraded_connection_is_in_all_four_maps_and_another_in_two() {
        let pins = Pins::from([
            pin(
                Protocol::Tcp,
                ["10.0.0.1:4000", "10.96.0.9:80", "10.1.0.1:8080", "10.0.0.1:4000"],
            ),
            pin(
                Protocol::Udp,
                ["172.16.0.1:4001", "10.96.0.9:53", "10.1.0.2:53", "192.0.2.1:61000"],
            ),
        ]);
        let maps = Maps::of(&pins, Family::V4);
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let expected = Maps {
            pinned: [
                ((at("10.0.0.1:4000"), at("10.96.0.9:80"), tcp), at("10.1.0.1:8080")),
                ((at("172.16.0.1:4001"), at("10.96.0.9:53"), udp), at("10.1.0.2:53")),
            ]
            .into(),
            seen: [((at("172.16.0.1:4001"), at("10.1.0.2:53"), udp), at("192.0.2.1:61000"))].into(),
            seenrev: [((at("10.1.0.2:53"), at("192.0.2.1:61000"), udp), at("172.16.0.1:4001"))].into(),
            pinrev: [
                ((at("10.1.0.1:8080"), at("10.0.0.1:4000"), tcp), at("10.96.0.9:80")),
                ((at("10.1.0.2:53"), at("172.16.0.1:4001"), udp), at("10.96.0.9:53")),
            ]
            .into(),
        };
        assert_eq!(maps, expected);
        assert_eq!(Maps::of(&pins, Family::V6), Maps::default());
    }

    fn socket(family: Family) -> impl Strategy<Value = SocketAddr> {
        // Neither the unspecified address nor one of IPv6 that stands for one of IPv4.
        (any::<u32>(), any::<u128>(), 1u16..).prop_map(move |(short, long, port)| {
            let address = match family {
                Family::V4 => IpAddr::from((short | 0x0100_0000).to_be_bytes()),
                Family::V6 => IpAddr::from((long | 0x2000 << 112).to_be_bytes()),
            };
            SocketAddr::new(address, port)
        })
    }

    fn pins() -> impl Strategy<Value = Pins> {
        let pin = prop_oneof![Just(Family::V4), Just(Family::V6)].prop_flat_map(|family| {
            let sockets = std::array::from_fn::<_, 4, _>(|_| socket(family));
            let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
            (sockets, protocol, any::<bool>()).prop_map(|([client, vip, endpoint, other], protocol, masqueraded)| {
                let seen = if masqueraded { other } else { client };
                (Key { protocol, client, vip }, Pin { endpoint, seen })
            })
        });
        proptest::collection::vec(pin, 0..40).prop_map(|pins| pins.into_iter().collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// By a real `nft` and kernel, in a namespace of its own (as root).
        #[test]
        fn what_is_written_is_read_back(first in pins(), second in pins()) {
            std::thread::scope(|scope| {
                let inside = scope.spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET).unwrap();
                    for pins in [&first, &second, &second] {
                        write(&ThisHost, pins).unwrap();
                        assert_eq!(read(&ThisHost).unwrap(), *pins);
                    }
                    delete(&ThisHost).unwrap();
                    delete(&ThisHost).unwrap();
                    read(&ThisHost).unwrap_err();
                });
                inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        }
    }

    #[test]
    fn a_strangers_map_is_told() {
        let text = r#"{"nftables": [{"metainfo": {}}, {"map": {"name": "pinned5", "elem": []}}]}"#;
        assert_eq!(parse(text), Err("the map \"pinned5\"".to_owned()));
        let text = r#"{"nftables": [{"map": {"name": "pinned4", "elem": [[1, 2]]}}]}"#;
        assert_eq!(parse(text), Err("[1,2] in the map pinned4".to_owned()));
    }
}
