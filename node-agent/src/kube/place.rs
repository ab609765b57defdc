//! Where the node stands: which of its addresses node ports listen on, and how its pods are told from others.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use nftfleet_domain::service::Family;

use super::meaning::Place;
use super::object::Node;
use crate::dataplane::desired::{PodMatch, Pods};

/// On which of the node's addresses node ports listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On the first that the Node object has in each family, as kube-proxy's nftables mode does unless told otherwise.
    Primary,
    /// On those of the kernel's that are in one of these networks.
    Networks(Vec<IpNet>),
}

/// How a pod of this node is known, as kube-proxy's `--detect-local-mode`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalTraffic {
    /// By the cluster's pod addresses.
    ClusterCidr(Vec<IpNet>),
    /// By the node's pod addresses (`spec.podCIDRs`).
    NodeCidr,
    /// By the bridge that pods hang on.
    Bridge(String),
    /// By the beginning of their devices' names.
    InterfacePrefix(String),
    /// Not at all: nobody is masqueraded on the way to a `ClusterIP`.
    None,
}

/// The node's place.
pub(super) fn place(node: Option<&Node>, kernel: &BTreeSet<IpAddr>, nodeports: &NodePortAddresses) -> Place {
    let named = node.map(|node| node.addresses.as_slice()).unwrap_or_default();
    let first = |family| named.iter().find(|address| Family::of(**address) == family).copied();
    let addresses: BTreeSet<IpAddr> = Family::BOTH.into_iter().filter_map(first).collect();
    let nodeport_ips = match nodeports {
        NodePortAddresses::Primary => addresses.clone(),
        NodePortAddresses::Networks(networks) => kernel
            .iter()
            .filter(|address| networks.iter().any(|network| network.contains(*address)))
            .copied()
            .collect(),
    };
    Place {
        zone: node.and_then(|node| node.zone.clone()),
        addresses,
        nodeport_ips,
    }
}

/// How pods are told from others.
pub(super) fn pods(how: &LocalTraffic, node: Option<&Node>) -> Pods {
    let by_network = |networks: &[IpNet]| {
        let first = |family| networks.iter().find(|network| Family::of(network.addr()) == family);
        Pods {
            v4: first(Family::V4).copied().map(PodMatch::Source),
            v6: first(Family::V6).copied().map(PodMatch::Source),
        }
    };
    let by_device = |device: PodMatch| Pods {
        v4: Some(device.clone()),
        v6: Some(device),
    };
    match how {
        LocalTraffic::ClusterCidr(networks) => by_network(networks),
        LocalTraffic::NodeCidr => by_network(node.map(|node| node.pod_cidrs.as_slice()).unwrap_or_default()),
        LocalTraffic::Bridge(name) => by_device(PodMatch::Interface(name.clone())),
        LocalTraffic::InterfacePrefix(prefix) => by_device(PodMatch::InterfacePrefix(prefix.clone())),
        LocalTraffic::None => Pods::default(),
    }
}
