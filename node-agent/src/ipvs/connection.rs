//! The connections that IPVS carries, from `/proc/net/ip_vs_conn`.
//!
//! IPVS' generic netlink lists virtual services and destinations only; this file is the one place where the kernel tells of
//! connections, and what `ipvsadm -Lc` reads too. It is printed some 4 KB at a time, and each time the kernel counts from the
//! beginning: one that ends meanwhile makes it leave out another. So this list alone is never enough; what IPVS translates is
//! in conntrack as well, see [`super::takeover`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nftfleet_domain::service::{Protocol, Vip};

use super::{IpvsError, read_if_there};
use crate::host::Host;

/// Of the calling thread, whose namespace need not be the process'.
const PATH: &str = "/proc/thread-self/net/ip_vs_conn";

/// A connection that IPVS carries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// Who connected.
    pub client: SocketAddr,
    /// Where it knocked.
    pub vip: Vip,
    /// Who answers.
    pub endpoint: SocketAddr,
    /// IPVS' name for its state, for example `ESTABLISHED`; `UDP` for UDP.
    pub state: String,
}

impl Connection {
    /// Whether data may still flow. What is over, or not begun, is left to itself.
    pub fn is_live(&self) -> bool {
        let is_over = ["NONE", "TIME_WAIT", "CLOSE", "CLOSED", "LISTEN"].contains(&self.state.as_str());
        !is_over
    }
}

/// All connections of the calling thread's network namespace; none if IPVS is not loaded.
///
/// # Errors
/// The file can't be read, or has a line that makes no sense.
pub fn list(host: &dyn Host) -> Result<Vec<Connection>, IpvsError> {
    parse(&read_if_there(host, PATH)?).map_err(|line| IpvsError::Line {
        path: PATH.to_owned(),
        line,
    })
}

/// Reads the file's text; the line that makes no sense, if there is one.
///
/// Left out are templates, which have no client's port and only remember where a client is to come back to, and protocols
/// that Services don't have.
///
/// # Errors
/// The line.
pub fn parse(text: &str) -> Result<Vec<Connection>, String> {
    let lines = text.lines().skip(1).filter(|line| is_of_services(line));
    let connections: Result<Vec<Connection>, String> = lines
        .map(|line| connection(line).ok_or_else(|| line.to_owned()))
        .collect();
    let mut connections = connections?;
    connections.retain(|connection| connection.client.port() != 0);
    Ok(connections)
}

fn is_of_services(line: &str) -> bool {
    line.split_whitespace().next().and_then(protocol).is_some()
}

fn protocol(word: &str) -> Option<Protocol> {
    word.parse().ok()
}

/// `TCP 0A010102 C0D0 0A600009 0050 0A010202 1F90 ESTABLISHED     899`, or addresses like `fd01:0001:...:0002`.
fn connection(line: &str) -> Option<Connection> {
    let mut words = line.split_whitespace();
    let protocol = protocol(words.next()?)?;
    let mut socket = || Some(SocketAddr::new(address(words.next()?)?, port(words.next()?)?));
    let (client, vip, endpoint) = (socket()?, socket()?, socket()?);
    Some(Connection {
        client,
        vip: Vip {
            address: vip.ip(),
            protocol,
            port: vip.port(),
        },
        endpoint,
        state: words.next()?.to_owned(),
    })
}

fn address(word: &str) -> Option<IpAddr> {
    if word.contains(':') {
        return word.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    let number = u32::from_str_radix(word, 16).ok().filter(|_| word.len() == 8)?;
    Some(Ipv4Addr::from(number).into())
}

fn port(word: &str) -> Option<u16> {
    u16::from_str_radix(word, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n";

    fn read(line: &str) -> Vec<Connection> {
        parse(&format!("{HEADER}{line}\n")).unwrap()
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn both_families_are_read() {
        let [v4] = read("TCP 0A010102 C0D0 0A600009 0050 0A010202 1F90 ESTABLISHED     899")
            .try_into()
            .unwrap();
        assert_eq!(
            v4,
            Connection {
                client: at("10.1.1.2:49360"),
                vip: Vip {
                    address: at("10.96.0.9:80").ip(),
                    protocol: Protocol::Tcp,
                    port: 80
                },
                endpoint: at("10.1.2.2:8080"),
                state: "ESTABLISHED".to_owned(),
            }
        );
        let [v6] = read(
            "UDP fd01:0001:0000:0000:0000:0000:0000:0002 C0D0 fd96:0000:0000:0000:0000:0000:0000:0009 0035 \
             fd01:0002:0000:0000:0000:0000:0000:0002 0035 UDP             299",
        )
        .try_into()
        .unwrap();
        assert_eq!(
            (v6.client, v6.endpoint),
            (at("[fd01:1::2]:49360"), at("[fd01:2::2]:53"))
        );
        assert_eq!(
            (v6.vip.address, v6.vip.protocol, v6.vip.port),
            (at("[fd96::9]:0").ip(), Protocol::Udp, 53)
        );
        assert!(v4.is_live() && v6.is_live());
    }

    #[test]
    fn what_is_over_or_only_remembered_is_not_live() {
        for state in ["TIME_WAIT", "CLOSE", "NONE"] {
            let [over] = read(&format!(
                "TCP 0A010102 C0D0 0A600009 0050 0A010202 1F90 {state}      20"
            ))
            .try_into()
            .unwrap();
            assert!(!over.is_live(), "{state}");
        }
        assert_eq!(
            read("TCP 0A010102 0000 0A600009 0050 0A010202 1F90 ASSURED      10799"),
            []
        );
        assert_eq!(
            read("IP  0A010102 0000 0000000A 0000 0A010202 0000 NONE         99"),
            []
        );
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn a_line_that_makes_no_sense_is_told() {
        for line in [
            "TCP 0A010102 C0D0 0A600009 0050 0A010202",
            "TCP 0A0102 C0D0 0A600009 0050 0A010202 1F90 ESTABLISHED 9",
            "TCP 0A010102 C0D0C 0A600009 0050 0A010202 1F90 ESTABLISHED 9",
        ] {
            assert_eq!(parse(&format!("{HEADER}{line}\n")), Err(line.to_owned()));
        }
    }
}
