//! One question to one backend: who are you?

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::netns::Netns;
use crate::wait;

/// Opens one TCP connection from inside `netns` and returns the identity of the backend that answered.
pub fn tcp_identity(netns: &Netns, target: SocketAddr, limit: Duration) -> io::Result<String> {
    netns.run(|| block_on(within(limit, ask_tcp(target))))
}

/// Sends one datagram from inside `netns` and returns the identity of the backend that answered.
pub fn udp_identity(netns: &Netns, target: SocketAddr, limit: Duration) -> io::Result<String> {
    netns.run(|| block_on(within(limit, ask_udp_anew(target))))
}

/// The same as [`tcp_identity`], from this one of the namespace's addresses.
pub fn tcp_identity_from(netns: &Netns, source: IpAddr, target: SocketAddr, limit: Duration) -> io::Result<String> {
    let asking = async {
        let socket = if source.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.bind(SocketAddr::new(source, 0))?;
        hear_tcp(socket.connect(target).await?).await
    };
    netns.run(|| block_on(within(limit, asking)))
}

/// The same as [`udp_identity`], from this one of the namespace's addresses; with a port other than 0, every datagram is of
/// the same flow.
pub fn udp_identity_from(netns: &Netns, source: SocketAddr, target: SocketAddr, limit: Duration) -> io::Result<String> {
    netns.run(|| block_on(within(limit, hear_udp(source, target))))
}

/// Connects, reads the identity line and resets, so that the source port is free again at once.
pub(super) async fn ask_tcp(target: SocketAddr) -> io::Result<String> {
    hear_tcp(TcpStream::connect(target).await?).await
}

async fn hear_tcp(stream: TcpStream) -> io::Result<String> {
    stream.set_zero_linger()?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    identity(&line)
}

/// Source ports of single questions: neither those that the kernel gives out nor node ports.
const SOURCE_PORTS: std::ops::Range<u16> = 22_000..30_000;

/// Asks from the next of all source ports. The kernel would now and then give out one again that was used a moment ago, and
/// what is sent from it continues the flow that it had.
async fn ask_udp_anew(target: SocketAddr) -> io::Result<String> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let port = SOURCE_PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % (SOURCE_PORTS.end - SOURCE_PORTS.start);
    let any: IpAddr = if target.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    hear_udp(SocketAddr::new(any, port), target).await
}

/// Asks from any source port that is free.
pub(super) async fn ask_udp(target: SocketAddr) -> io::Result<String> {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    hear_udp(any.parse().expect("an address"), target).await
}

async fn hear_udp(source: SocketAddr, target: SocketAddr) -> io::Result<String> {
    let socket = bind_udp(source).await?;
    socket.connect(target).await?;
    socket.send(b"who\n").await?;
    let mut buffer = [0; 256];
    let count = socket.recv(&mut buffer).await?;
    identity(&String::from_utf8_lossy(&buffer[..count]))
}

/// Takes this address as soon as it is free. A process that another thread starts just now has a copy of the last socket
/// there, until it becomes another program.
async fn bind_udp(source: SocketAddr) -> io::Result<UdpSocket> {
    loop {
        match UdpSocket::bind(source).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => wait::pause().await,
            bound => return bound,
        }
    }
}

/// `asking`, or an error of the kind `TimedOut`.
pub(super) async fn within<T>(limit: Duration, asking: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(limit, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {limit:?}"),
        )),
    }
}

fn identity(line: &str) -> io::Result<String> {
    match line.strip_suffix('\n') {
        Some(identity) => Ok(identity.to_owned()),
        None => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("half an identity line: {line:?}"),
        )),
    }
}

fn block_on<T>(asking: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a tokio runtime for one question");
    runtime.block_on(asking)
}
