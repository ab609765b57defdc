//! The shapes that are compared: the same Services, written in different ways.

pub mod engine;
pub mod iptables;
pub mod kube_proxy;
pub mod ours;

use nftfleet_tests::kube_proxy::Backend;

use crate::cluster::{Cluster, Delta};

/// A way to have Services in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// kube-proxy's nftables mode until 1.35: a chain per endpoint.
    KubeProxyChains,
    /// kube-proxy's nftables mode of 1.36: an anonymous map per Service port.
    KubeProxyMaps,
    /// kube-proxy's iptables mode with `iptables-nft`.
    IptablesNft,
    /// kube-proxy's iptables mode with `iptables-legacy`, the faster of the two at this.
    IptablesLegacy,
    /// Our table, as text through `nft`.
    OursText,
    /// Our table, through the agent's engine.
    Engine,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::KubeProxyChains,
        Self::KubeProxyMaps,
        Self::IptablesNft,
        Self::IptablesLegacy,
        Self::OursText,
        Self::Engine,
    ];

    /// How tables and plots call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KubeProxyChains => "kube-proxy nftables, before 1.36",
            Self::KubeProxyMaps => "kube-proxy nftables, 1.36",
            Self::IptablesNft => "kube-proxy iptables-nft",
            Self::IptablesLegacy => "kube-proxy iptables-legacy",
            Self::OursText => "nftfleet's table through nft",
            Self::Engine => "nftfleet",
        }
    }

    /// The writer of its text; none for the engine, which writes no text.
    pub fn writer(self) -> Option<Box<dyn Writer>> {
        match self {
            Self::KubeProxyChains => Some(Box::new(kube_proxy::KubeProxy { per_endpoint: true })),
            Self::KubeProxyMaps => Some(Box::new(kube_proxy::KubeProxy { per_endpoint: false })),
            Self::IptablesNft => Some(Box::new(iptables::Iptables(Backend::Nft))),
            Self::IptablesLegacy => Some(Box::new(iptables::Iptables(Backend::Legacy))),
            Self::OursText => Some(Box::new(ours::Ours::default())),
            Self::Engine => None,
        }
    }
}

/// Writes Services as input of a program.
pub trait Writer {
    /// The program that takes it on its standard input, with its arguments.
    fn loader(&self) -> &'static [&'static str];

    /// What kube-proxy runs to see what is there before it writes a change; none if there is no such thing.
    fn listing(&self) -> Option<&'static [&'static str]>;

    /// The whole cluster, for an empty namespace.
    fn whole(&mut self, cluster: &Cluster) -> String;

    /// The transactions of a change, in order, given the cluster after it.
    fn change(&mut self, cluster: &Cluster, deltas: &[Delta]) -> Vec<String>;
}

/// `nft -f -`.
const NFT: &[&str] = &["nft", "-f", "-"];
