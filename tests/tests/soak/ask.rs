//! One question from a source port that the asker chooses.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nftfleet_domain::service::{Protocol, Vip};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, UdpSocket};

use crate::judge::Outcome;

/// Asks who answers at a VIP, within a time.
pub async fn ask(vip: Vip, port: u16, patience: Duration) -> Outcome {
    let asking = async {
        match vip.protocol {
            Protocol::Tcp => ask_tcp(vip, port).await,
            Protocol::Udp => question(&flow(vip, port).await?).await,
            Protocol::Sctp => panic!("the lab does not speak SCTP"),
        }
    };
    within(patience, asking).await
}

/// What becomes of a question within a time.
pub async fn within(patience: Duration, asking: impl Future<Output = io::Result<String>>) -> Outcome {
    match tokio::time::timeout(patience, asking).await {
        Err(_) => Outcome::Silence,
        Ok(Ok(line)) => Outcome::Answered(line.trim_end().to_owned()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Outcome::Refused,
        Ok(Err(error)) => Outcome::Failed(error.to_string()),
    }
}

/// A socket for datagrams to a VIP.
pub async fn flow(vip: Vip, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any(vip, port)).await?;
    socket.connect(target(vip)).await?;
    Ok(socket)
}

/// One datagram, and the answer to it.
pub async fn question(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"who\n").await?;
    let mut line = [0; 64];
    let length = socket.recv(&mut line).await?;
    Ok(String::from_utf8_lossy(&line[..length]).into_owned())
}

/// Connects, hears who it is, and resets: the port is free again.
async fn ask_tcp(vip: Vip, port: u16) -> io::Result<String> {
    let socket = if vip.address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(any(vip, port))?;
    let mut stream = socket.connect(target(vip)).await?;
    stream.set_zero_linger()?;
    let mut line = [0; 64];
    let mut length = 0;
    while !line[..length].contains(&b'\n') {
        match stream.read(&mut line[length..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => length += more,
        }
    }
    Ok(String::from_utf8_lossy(&line[..length]).into_owned())
}

fn target(vip: Vip) -> SocketAddr {
    SocketAddr::new(vip.address, vip.port)
}

fn any(vip: Vip, port: u16) -> SocketAddr {
    if vip.address.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, port).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, port).into()
    }
}
