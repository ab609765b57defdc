//! Sockets of the node's own processes, by the address at their own end, from `/proc/net/{tcp,udp}{,6}`.
//!
//! A process that connected to a Service while `kube-ipvs0` had its address got that address as its source. Such a
//! connection hangs once the address goes, whoever translated it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{IpvsError, read_if_there};
use crate::host::Host;

/// Of the calling thread, whose namespace need not be the process'. Without IPv6 the files of IPv6 are not there.
const PATHS: [&str; 4] = [
    "/proc/thread-self/net/tcp",
    "/proc/thread-self/net/tcp6",
    "/proc/thread-self/net/udp",
    "/proc/thread-self/net/udp6",
];

/// The number of connected sockets whose own address is one of these.
///
/// # Errors
/// A file can't be read, or has a line that makes no sense.
pub fn connected_from(host: &dyn Host, addresses: &BTreeSet<IpAddr>) -> Result<usize, IpvsError> {
    let mut connected = 0;
    for path in PATHS {
        let text = read_if_there(host, path)?;
        let sources = connected_sources(&text).map_err(|line| IpvsError::Line {
            path: path.to_owned(),
            line,
        })?;
        connected += sources.iter().filter(|address| addresses.contains(address)).count();
    }
    Ok(connected)
}

/// The own address of each connected socket in one file; the line that makes no sense, if there is one.
///
/// # Errors
/// The line.
pub fn connected_sources(text: &str) -> Result<Vec<IpAddr>, String> {
    let sources: Result<Vec<_>, String> = text
        .lines()
        .skip(1)
        .map(|line| source(line).ok_or_else(|| line.to_owned()))
        .collect();
    let connected = sources?.into_iter().filter(|(_, is_connected)| *is_connected);
    Ok(connected.map(|(address, _)| address).collect())
}

/// `  0: 0100007F:1F90 0200000A:C0D0 01 00000000:00000000 ...`: own end, other end, state. The own address, and whether the
/// socket is connected.
fn source(line: &str) -> Option<(IpAddr, bool)> {
    /// `TCP_TIME_WAIT`, `TCP_CLOSE`, `TCP_LISTEN`; an unconnected UDP socket is in the second.
    const UNCONNECTED: [&str; 3] = ["06", "07", "0A"];
    let mut words = line.split_whitespace().skip(1);
    let (own, _, state) = (words.next()?, words.next()?, words.next()?);
    let address = address(own.split_once(':')?.0)?;
    Some((address, !UNCONNECTED.contains(&state)))
}

/// Words of 32 bits, each in the machine's own order.
fn address(hexadecimal: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = hexadecimal.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match hexadecimal.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;
    use crate::host::ThisHost;

    const HEADER: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n";

    #[test]
    fn connected_sockets_are_told_by_their_own_address() {
        let lines = "   0: 0900600A:C0D0 0202010A:1F90 01 00000000:00000000 02:000AE5A6 00000000     0\n   \
                     1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n   \
                     2: 0A00600A:C0D0 0202010A:1F90 06 00000000:00000000 03:000AE5A6 00000000     0\n";
        let read = connected_sources(&format!("{HEADER}{lines}")).unwrap();
        assert_eq!(read, [IpAddr::from([10, 96, 0, 9])]);
        let mapped = "   0: 0000000000000000FFFF00000900600A:C0D0 0000000000000000FFFF00000202010A:1F90 01 0:0\n";
        assert_eq!(
            connected_sources(&format!("{HEADER}{mapped}")).unwrap(),
            [IpAddr::from([10, 96, 0, 9])]
        );
        assert_eq!(connected_sources("header\nnonsense"), Err("nonsense".to_owned()));
    }

    #[test]
    fn the_kernels_own_files_are_read() {
        // Addresses that nobody else uses.
        let own = BTreeSet::from([IpAddr::from([127, 77, 66, 55])]);
        let listener = TcpListener::bind("127.77.66.55:0").unwrap();
        assert_eq!(connected_from(&ThisHost, &own).unwrap(), 0, "it listens only");
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap();
        assert_eq!(connected_from(&ThisHost, &own).unwrap(), 1);
        drop((stream, accepted));

        let own = BTreeSet::from([IpAddr::from([127, 77, 66, 44])]);
        let socket = UdpSocket::bind("127.77.66.44:0").unwrap();
        assert_eq!(connected_from(&ThisHost, &own).unwrap(), 0);
        socket.connect("127.0.0.1:9").unwrap();
        assert_eq!(connected_from(&ThisHost, &own).unwrap(), 1);
    }
}
