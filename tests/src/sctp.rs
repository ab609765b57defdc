//! The beginning of an SCTP association, by hand: kernels translate SCTP without having sockets for it.
//!
//! A client sends an INIT from a raw socket, a server answers it with an INIT ACK whose state cookie says who it is. That
//! is what connection tracking needs to see for a new association and its answer; no data follows.

mod packet;
mod sockets;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{SockaddrStorage, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;
use packet::{Chunk, Packet};
pub use sockets::{SctpListener, has_sockets, sctp_association};

/// SCTP's number in the IP header (IANA).
const SCTP: i32 = 132;

/// How often a server looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Sends one INIT from inside `netns` and returns the identity of the server that acknowledged it. Fails like a socket of
/// another protocol: refused when the answer was an ICMP error, timed out when there was none.
pub fn sctp_identity(netns: &Netns, target: SocketAddr, limit: Duration) -> io::Result<String> {
    netns.run(|| {
        let socket = raw_socket(target.ip())?;
        socket.connect(&SocketAddr::new(target.ip(), 0).into())?;
        ask(&socket, target, limit)
    })
}

fn raw_socket(family_of: IpAddr) -> io::Result<Socket> {
    let domain = if family_of.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP)))
}

fn ask(mut socket: &Socket, target: SocketAddr, limit: Duration) -> io::Result<String> {
    // A port of its own for each question of this process, below the range that the kernel gives to others.
    static PORTS: AtomicU16 = AtomicU16::new(0);
    let own_port = 10_000 + PORTS.fetch_add(1, Ordering::Relaxed) % 20_000;
    let tag = 0x6e66_0000 | u32::from(own_port);
    let init = Packet {
        source: own_port,
        destination: target.port(),
        tag: 0,
        chunk: Chunk::Init { tag },
    };
    let started = Instant::now();
    socket.send(&init.encode())?;
    let mut buffer = [0; 2048];
    loop {
        let left = limit.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(io::Error::new(
                ErrorKind::TimedOut,
                format!("no answer within {limit:?}"),
            ));
        }
        socket.set_read_timeout(Some(left))?;
        let count = match socket.read(&mut buffer) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            other => other?,
        };
        // Every raw socket of the namespace gets every packet: others' answers come here too.
        let Some(answer) = Packet::decode(payload(&buffer[..count], target.is_ipv4())) else {
            continue;
        };
        if (answer.source, answer.destination, answer.tag) != (target.port(), own_port, tag) {
            continue;
        }
        if let Chunk::InitAck { cookie, .. } = answer.chunk {
            return Ok(String::from_utf8_lossy(&cookie).into_owned());
        }
    }
}

/// A raw IPv4 socket hands over the IP header too, an IPv6 one does not.
fn payload(received: &[u8], v4: bool) -> &[u8] {
    let header = match received.first() {
        Some(first) if v4 => usize::from(first & 0x0f) * 4,
        _ => 0,
    };
    received.get(header..).unwrap_or_default()
}

/// A server that acknowledges associations in one namespace. It stops on drop.
#[derive(Debug)]
pub struct SctpServer {
    peers: Peers,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

type Peers = Arc<Mutex<BTreeSet<IpAddr>>>;

impl SctpServer {
    /// Starts to answer on this port of all addresses, of both families unless the namespace has no IPv6.
    pub fn start(netns: &Netns, identity: &str, port: u16) -> Self {
        let peers = Peers::default();
        let stop = Arc::<AtomicBool>::default();
        let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
        // A kernel without IPv6 has no such socket.
        let sockets = netns.run(|| any.map(raw_socket)).into_iter().zip(any);
        let threads = sockets.filter_map(|(socket, any)| {
            let server = Server {
                socket: socket.ok()?,
                v4: any.is_ipv4(),
                port,
                cookie: identity.as_bytes().to_vec(),
                peers: Arc::clone(&peers),
            };
            let stop = Arc::clone(&stop);
            Some(netns.spawn(move || server.serve(&stop)))
        });
        let threads = threads.collect();
        Self { peers, stop, threads }
    }

    /// The addresses from which it was asked since the start or the last [`SctpServer::forget_peers`].
    pub fn peers(&self) -> BTreeSet<IpAddr> {
        lock(&self.peers).clone()
    }

    /// Begins a new count of peers.
    pub fn forget_peers(&self) {
        lock(&self.peers).clear();
    }
}

impl Drop for SctpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "an SCTP server died, see above"
            );
        }
    }
}

fn lock(peers: &Peers) -> MutexGuard<'_, BTreeSet<IpAddr>> {
    peers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One family's half of a server.
struct Server {
    socket: Socket,
    v4: bool,
    port: u16,
    cookie: Vec<u8>,
    peers: Peers,
}

impl Server {
    fn serve(&self, stop: &AtomicBool) {
        self.socket
            .set_read_timeout(Some(LOOK))
            .expect("a raw socket that waits for a while");
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            // Nothing came, or an earlier answer was refused by a client that had gone: no reason to stop.
            if let Ok((count, Some(from))) = recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer)
                && let Some(from) = ip_of(&from)
                && let Some(question) = Packet::decode(payload(&buffer[..count], self.v4))
            {
                self.answer(from, &question);
            }
        }
    }

    fn answer(&self, from: IpAddr, question: &Packet) {
        let Chunk::Init { tag } = question.chunk else { return };
        if question.destination != self.port {
            return;
        }
        lock(&self.peers).insert(from);
        let chunk = Chunk::InitAck {
            tag: !tag,
            cookie: self.cookie.clone(),
        };
        let answer = Packet {
            source: self.port,
            destination: question.source,
            tag,
            chunk,
        };
        // A client that has gone is judged by the test, not by us.
        let _ = self.socket.send_to(&answer.encode(), &SocketAddr::new(from, 0).into());
    }
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(v4.ip().into()),
        (_, Some(v6)) => Some(v6.ip().into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Lab, LabSpec};

    const LIMIT: Duration = Duration::from_secs(3);

    #[test]
    fn a_server_says_who_it_is_and_nobody_else_answers() {
        let lab = Lab::new(&LabSpec::dual_stack(1, 1));
        let backend = lab.backend(1);
        let server = SctpServer::start(&backend.netns, "backend-1", 9000);
        let node = lab.node(1);
        let pod6 = node.ipv6.expect("a node with IPv6").pod;
        for address in [IpAddr::from(backend.address4), backend.address6.into()] {
            let identity = sctp_identity(&node.pod, SocketAddr::new(address, 9000), LIMIT).unwrap();
            assert_eq!(identity, "backend-1");
            let error = sctp_identity(&node.pod, SocketAddr::new(address, 9001), Duration::from_millis(300));
            assert_eq!(error.unwrap_err().kind(), ErrorKind::TimedOut);
        }
        assert_eq!(server.peers(), [IpAddr::from(node.pod4), pod6.into()].into());
    }

    #[test]
    fn an_icmp_error_is_a_refusal() {
        let lab = Lab::new(&LabSpec::dual_stack(1, 1));
        let node = lab.node(1);
        node.netns.pipe(
            "nft",
            &["-f", "-"],
            "table inet wall { chain forward { type filter hook forward priority 0; meta l4proto sctp reject; }; }",
        );
        for address in [IpAddr::from(lab.backend(1).address4), lab.backend(1).address6.into()] {
            let error = sctp_identity(&node.pod, SocketAddr::new(address, 9000), LIMIT).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        }
    }
}
