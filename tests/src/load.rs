//! What a node's clients do all the time: open connections through it to every Service, and hold one open.

use std::net::SocketAddr;
use std::time::Duration;

use crate::kube_proxy::Family;
use crate::lab::LabNode;
use crate::netns::Netns;
use crate::traffic::{Counts, LongLived, LongLivedStatus, NewConnections, UdpQueries};
use crate::wait;

/// How long attempts may be waited for.
const MORE_WITHIN: Duration = Duration::from_secs(30);

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

/// The traffic from one place through one node.
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
    /// Starts about `rate` TCP connections and a tenth as many UDP queries a second through `node` from its outside client, over
    /// all Services and both families where the node has them.
    pub fn start(node: &LabNode, rate: u32) -> Self {
        Self::start_from(&node.client, families(node), rate)
    }

    /// The same from any place that reaches Services through a node, in these families.
    pub fn start_from(from: &Netns, families: &[Family], rate: u32) -> Self {
        let (mut tcp, mut udp, mut held) = (vec![], vec![], vec![]);
        for family in families {
            let (all, dns): (&[&str], _) = match family {
                Family::V4 => (&TCP4, UDP4),
                Family::V6 => (&TCP6, UDP6),
            };
            tcp.extend(sockets(all));
            udp.extend(sockets(&[dns]));
            held.extend(sockets(&all[..1]));
        }
        Self {
            held: held.into_iter().map(|target| LongLived::open(from, target)).collect(),
            tcp: NewConnections::start(from, tcp, rate),
            udp: UdpQueries::start(from, udp, (rate / 10).max(1)),
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

/// The traffic from everywhere that a node's data plane serves: its outside client and its pod, whose packets it forwards,
/// and the node itself, whose packets take other hooks.
#[derive(Debug)]
pub struct LoadFromEverywhere(Vec<(&'static str, Load)>);

impl LoadFromEverywhere {
    /// Starts the load of [`Load::start`], with this rate, from each of the three.
    pub fn start(node: &LabNode, rate: u32) -> Self {
        Self::start_in(node, families(node), rate)
    }

    /// The same in these families alone.
    pub fn start_in(node: &LabNode, families: &[Family], rate: u32) -> Self {
        let places = [("client", &node.client), ("pod", &node.pod), ("node", &node.netns)];
        Self(
            places
                .map(|(place, from)| (place, Load::start_from(from, families, rate)))
                .into(),
        )
    }

    /// TCP connections and UDP queries so far: made and failed.
    pub fn so_far(&self) -> (u64, u64) {
        sum(self.0.iter().map(|(_, load)| load.so_far()))
    }

    /// Waits until each of the three has made this many more.
    pub fn wait_for_more(&self, attempts: u64) {
        let before = self.0.iter().map(|(_, load)| load.so_far().0);
        for ((place, load), before) in self.0.iter().zip(before.collect::<Vec<_>>()) {
            let what = format!("{attempts} more attempts of the {place}");
            wait::until_blocking(&what, MORE_WITHIN, || {
                (load.so_far().0 >= before + attempts).then_some(())
            });
        }
    }

    /// Stops, and says what happened, by place.
    pub fn stop(self) -> Vec<(&'static str, Outcome)> {
        self.0.into_iter().map(|(place, load)| (place, load.stop())).collect()
    }

    /// Stops, and panics if anything was lost, or nothing was tried. Gives attempts made, and connections held.
    pub fn stop_without_loss(self, who: &str) -> (u64, usize) {
        let outcomes = self.stop();
        for (place, outcome) in &outcomes {
            outcome.assert_no_loss(&format!("{who}, from the {place}"));
        }
        let (made, _) = sum(outcomes.iter().map(|(_, outcome)| outcome.totals()));
        (made, outcomes.iter().map(|(_, outcome)| outcome.held.len()).sum())
    }
}

fn families(node: &LabNode) -> &'static [Family] {
    if node.ipv6.is_some() {
        &Family::BOTH
    } else {
        &[Family::V4]
    }
}

fn sum(counts: impl Iterator<Item = (u64, u64)>) -> (u64, u64) {
    counts.fold((0, 0), |(made, failed), (more, lost)| (made + more, failed + lost))
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
