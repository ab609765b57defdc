//! One question to one backend: who are you?

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpStream, UdpSocket};

use crate::netns::Netns;

/// Opens one TCP connection from inside `netns` and returns the identity of the backend that answered.
pub fn tcp_identity(netns: &Netns, target: SocketAddr, limit: Duration) -> io::Result<String> {
    netns.run(|| block_on(within(limit, ask_tcp(target))))
}

/// Sends one datagram from inside `netns` and returns the identity of the backend that answered.
pub fn udp_identity(netns: &Netns, target: SocketAddr, limit: Duration) -> io::Result<String> {
    netns.run(|| block_on(within(limit, ask_udp(target))))
}

/// Connects, reads the identity line and resets, so that the source port is free again at once.
pub(super) async fn ask_tcp(target: SocketAddr) -> io::Result<String> {
    let stream = TcpStream::connect(target).await?;
    stream.set_zero_linger()?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    identity(&line)
}

/// Asks from a socket, and so a source port, that nobody used before.
pub(super) async fn ask_udp(target: SocketAddr) -> io::Result<String> {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    socket.send(b"who\n").await?;
    let mut buffer = [0; 256];
    let count = socket.recv(&mut buffer).await?;
    identity(&String::from_utf8_lossy(&buffer[..count]))
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
