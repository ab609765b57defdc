//! What a node's clients do all the time: open connections through it to every Service, and hold one open.

use std::net::SocketAddr;

use crate::lab::LabNode;
use crate::traffic::{Counts, LongLived, LongLivedStatus, NewConnections, UdpQueries};

/// TCP ports of the manifests' Services in IPv4: shop/web, shop/api, shop/db and DNS.
pub const TCP4: [&str; 4] = ["10.96.10.1:80", "10.96.10.2:8000", "10.96.10.3:5432", "10.96.0.10:53"];

/// The same in IPv6, where they have it.
pub const TCP6: [&str; 3] = ["[fd00:10:96::a01]:80", "[fd00:10:96::a03]:5432", "[fd00:10:96::a]:53"];

/// DNS over UDP.
pub const UDP4: &str = "10.96.0.10:53";

/// The same in IPv6.
pub const UDP6: &str = "[fd00:10:96::a]:53";

/// Addresses from their text.
pub fn sockets(texts: &[&str]) -> Vec<SocketAddr> {
    texts
        .iter()
        .map(|text| text.parse().expect("an address with a port"))
        .collect()
}

/// The traffic of one node's outside client.
#[derive(Debug)]
pub struct Load {
    tcp: NewConnections,
    udp: UdpQueries,
    held: Vec<LongLived>,
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// New TCP connections.
    pub tcp: Counts,
    /// UDP queries from fresh sockets.
    pub udp: Counts,
    /// Connections held open from the start, one per family.
    pub held: Vec<LongLivedStatus>,
}

impl Load {
    /// Starts about `rate` TCP connections and a tenth as many UDP queries a second through `node`, over all Services and
    /// both families where the node has them.
    pub fn start(node: &LabNode, rate: u32) -> Self {
        let (mut tcp, mut udp, mut held) = (sockets(&TCP4), sockets(&[UDP4]), sockets(&TCP4[..1]));
        if node.ipv6.is_some() {
            tcp.extend(sockets(&TCP6));
            udp.extend(sockets(&[UDP6]));
            held.extend(sockets(&TCP6[..1]));
        }
        Self {
            held: held
                .into_iter()
                .map(|target| LongLived::open(&node.client, target))
                .collect(),
            tcp: NewConnections::start(&node.client, tcp, rate),
            udp: UdpQueries::start(&node.client, udp, (rate / 10).max(1)),
        }
    }

    /// TCP connections and UDP queries so far: made and failed.
    pub fn so_far(&self) -> (u64, u64) {
        let (tcp, udp) = (self.tcp.counts(), self.udp.counts());
        (tcp.made + udp.made, tcp.failed + udp.failed)
    }

    /// Stops, and says what happened.
    pub fn stop(self) -> Outcome {
        let held = self.held.iter().map(LongLived::status).collect();
        Outcome {
            tcp: self.tcp.stop(),
            udp: self.udp.stop(),
            held,
        }
    }
}

impl Outcome {
    /// Panics if anything was lost, or nothing was tried.
    pub fn assert_no_loss(&self, who: &str) {
        eprintln!(
            "{who}: {} TCP, {} UDP, held {:?}",
            self.tcp.made, self.udp.made, self.held
        );
        self.tcp.assert_no_loss();
        self.udp.assert_no_loss();
        assert!(!self.held.is_empty(), "{who} held no connection open");
        for held in &self.held {
            assert!(held.alive && held.echoes > 0, "{who} lost a connection: {held:?}");
        }
    }

    /// New connections and queries made and failed.
    pub fn totals(&self) -> (u64, u64) {
        (self.tcp.made + self.udp.made, self.tcp.failed + self.udp.failed)
    }

    /// Whether every held connection lives.
    pub fn all_alive(&self) -> bool {
        self.held.iter().all(|held| held.alive && held.echoes > 0)
    }
}
