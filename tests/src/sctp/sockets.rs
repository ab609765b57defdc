//! Whole SCTP associations, where the kernel has sockets for them: Debian's has, and loads their module when asked.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::{LOOK, Peers, SCTP, lock};
use crate::netns::Netns;

/// Whether this kernel has SCTP sockets.
pub fn has_sockets() -> bool {
    stream(Ipv4Addr::UNSPECIFIED.into()).is_ok()
}

/// Opens an association from inside `netns` and returns the line that the server sends back for a line.
pub fn sctp_association(netns: &Netns, target: SocketAddr, limit: Duration) -> io::Result<String> {
    netns.run(|| {
        let mut socket = stream(target.ip())?;
        // The time limit of a connect that waits, too.
        socket.set_write_timeout(Some(limit))?;
        socket.set_read_timeout(Some(limit))?;
        socket.connect(&target.into())?;
        socket.write_all(b"who")?;
        let mut buffer = [0; 256];
        let count = socket.read(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
    })
}

fn stream(family_of: IpAddr) -> io::Result<Socket> {
    let domain = if family_of.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::from(SCTP)))?;
    if family_of.is_ipv6() {
        // An association names the addresses that it may use; translation changes none of those.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// A server that says who it is over SCTP sockets. It stops on drop.
#[derive(Debug)]
pub struct SctpListener {
    peers: Peers,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl SctpListener {
    /// Starts to listen on this port of all addresses of both families.
    pub fn start(netns: &Netns, identity: &str, port: u16) -> Self {
        let peers = Peers::default();
        let stop = Arc::<AtomicBool>::default();
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let threads = any.map(|any| {
            let socket = netns
                .run(|| listen(SocketAddr::new(any, port)))
                .unwrap_or_else(|error| panic!("{identity} cannot listen for SCTP: {error}"));
            let (identity, peers, stop) = (identity.to_owned(), Arc::clone(&peers), Arc::clone(&stop));
            netns.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Nobody came, or one who has gone already: no reason to stop.
                    let _ = answer(&socket, &identity, &peers);
                }
            })
        });
        let threads = threads.into();
        Self { peers, stop, threads }
    }

    /// The addresses from which it was asked.
    pub fn peers(&self) -> BTreeSet<IpAddr> {
        lock(&self.peers).clone()
    }
}

impl Drop for SctpListener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "an SCTP listener died, see above"
            );
        }
    }
}

fn listen(at: SocketAddr) -> io::Result<Socket> {
    let socket = stream(at.ip())?;
    socket.bind(&at.into())?;
    socket.listen(128)?;
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket)
}

fn answer(socket: &Socket, identity: &str, peers: &Peers) -> io::Result<()> {
    let (mut association, from) = socket.accept()?;
    lock(peers).extend(from.as_socket().map(|from| from.ip()));
    association.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut question = [0; 16];
    if association.read(&mut question)? > 0 {
        association.write_all(identity.as_bytes())?;
    }
    Ok(())
}
