//! The servers behind Services: each says who it is, and remembers who asked.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::netns::{Netns, RuntimeThread};

/// A server inside one namespace, on one thread. It stops, and its connections are cut, on drop.
///
/// TCP: says its identity and a newline at once, then echoes whatever comes until the peer closes.
/// UDP: answers each datagram with its identity and a newline.
#[derive(Debug)]
pub struct Backend {
    identity: String,
    peers: Peers,
    _thread: RuntimeThread,
}

type Peers = Arc<Mutex<BTreeSet<IpAddr>>>;

impl Backend {
    /// Starts the server in `netns` on all its addresses, of both families unless the namespace has no IPv6; returns
    /// when it listens on every port.
    pub fn start(netns: &Netns, identity: &str, tcp_ports: &[u16], udp_ports: &[u16]) -> Self {
        let peers = Peers::default();
        let (ready, listening) = mpsc::channel();
        let (tcp_ports, udp_ports) = (tcp_ports.to_vec(), udp_ports.to_vec());
        let line: Arc<str> = format!("{identity}\n").into();
        let seen = Arc::clone(&peers);
        let thread = RuntimeThread::start(Some(netns), move |stopped| async move {
            let any = any_address();
            for port in tcp_ports {
                let address = SocketAddr::new(any, port);
                let listener = TcpListener::bind(address)
                    .await
                    .unwrap_or_else(|error| panic!("a backend cannot listen on TCP {address}: {error}"));
                tokio::spawn(serve_tcp(listener, Arc::clone(&line), Arc::clone(&seen)));
            }
            for port in udp_ports {
                let address = SocketAddr::new(any, port);
                let socket = UdpSocket::bind(address)
                    .await
                    .unwrap_or_else(|error| panic!("a backend cannot listen on UDP {address}: {error}"));
                tokio::spawn(serve_udp(socket, Arc::clone(&line), Arc::clone(&seen)));
            }
            // The starter waits for this; it cannot have gone.
            let _ = ready.send(());
            let _ = stopped.await;
        });
        listening
            .recv()
            .unwrap_or_else(|_| panic!("the backend {identity} did not start, see above"));
        Self {
            identity: identity.to_owned(),
            peers,
            _thread: thread,
        }
    }

    /// What it says, without the newline.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The addresses from which it was asked since the start or the last [`Backend::forget_peers`]: the client's own, or the
    /// node's when the node masqueraded.
    pub fn peers(&self) -> BTreeSet<IpAddr> {
        lock(&self.peers).clone()
    }

    /// Begins a new count of peers.
    pub fn forget_peers(&self) {
        lock(&self.peers).clear();
    }
}

/// `::` takes IPv4 as well; a kernel without IPv6 refuses it.
fn any_address() -> IpAddr {
    match std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => Ipv6Addr::UNSPECIFIED.into(),
        Err(_) => Ipv4Addr::UNSPECIFIED.into(),
    }
}

fn lock(peers: &Peers) -> std::sync::MutexGuard<'_, BTreeSet<IpAddr>> {
    peers.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve_tcp(listener: TcpListener, line: Arc<str>, peers: Peers) {
    loop {
        // An accept fails when a connection was reset before we took it; the next one is none the worse for it.
        if let Ok((stream, peer)) = listener.accept().await {
            lock(&peers).insert(peer.ip().to_canonical());
            tokio::spawn(converse(stream, Arc::clone(&line)));
        }
    }
}

/// One connection until either side has enough of it: whose fault that was is judged by the client.
async fn converse(mut stream: TcpStream, line: Arc<str>) {
    let _ = stream.set_nodelay(true);
    if stream.write_all(line.as_bytes()).await.is_err() {
        return;
    }
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn serve_udp(socket: UdpSocket, line: Arc<str>, peers: Peers) {
    let mut buffer = [0; 2048];
    loop {
        // A receive fails when an earlier answer was refused by a client that had gone: no reason to stop.
        if let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
            lock(&peers).insert(peer.ip().to_canonical());
            let _ = socket.send_to(line.as_bytes(), peer).await;
        }
    }
}
