//! The node itself.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{BadObject, Object, Read, address, network};

/// This node as far as it concerns the data plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its zone.
    pub zone: Option<String>,
    /// Where its pods' addresses come from.
    pub pod_cidrs: Vec<IpNet>,
    /// Its addresses, internal ones first, in the order in which the API has them.
    pub addresses: Vec<IpAddr>,
    /// Whether load balancers may send new connections here: it is not about to go.
    pub eligible: bool,
}

/// Set by the cluster autoscaler on a node that it is about to delete.
const GOING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

mod json {
    use serde::Deserialize;

    #[derive(Deserialize)]
    pub struct Node {
        #[serde(default)]
        pub spec: Spec,
        #[serde(default)]
        pub status: Status,
    }

    #[derive(Default, Deserialize)]
    pub struct Spec {
        #[serde(rename = "podCIDR")]
        pub pod_cidr: Option<String>,
        #[serde(rename = "podCIDRs", default)]
        pub pod_cidrs: Vec<String>,
        #[serde(default)]
        pub taints: Vec<Taint>,
    }

    #[derive(Deserialize)]
    pub struct Taint {
        pub key: String,
    }

    #[derive(Default, Deserialize)]
    pub struct Status {
        #[serde(default)]
        pub addresses: Vec<Address>,
    }

    #[derive(Deserialize)]
    pub struct Address {
        #[serde(rename = "type")]
        pub kind: String,
        pub address: String,
    }
}

/// Reads a Node. Addresses and networks that make no sense are left out alone.
///
/// # Errors
/// The first other field that makes no sense.
pub fn node(object: &Object) -> Result<Read<Node>, BadObject> {
    let json::Node { spec, status } = object.read()?;
    let mut left_out = Vec::new();
    let given = match (spec.pod_cidr, spec.pod_cidrs.as_slice()) {
        (Some(cidr), []) if !cidr.is_empty() => vec![cidr],
        (_, cidrs) => cidrs.to_vec(),
    };
    let mut pod_cidrs = Vec::new();
    for (i, text) in given.iter().enumerate() {
        match network(&format!("spec.podCIDRs[{i}]"), text) {
            Ok(network) => pod_cidrs.push(network),
            Err(bad) => left_out.push(bad),
        }
    }
    let mut addresses = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for (i, json) in status.addresses.iter().enumerate().filter(|(_, a)| a.kind == kind) {
            match address(&format!("status.addresses[{i}].address"), &json.address) {
                Ok(address) => addresses.push(address),
                Err(bad) => left_out.push(bad),
            }
        }
    }
    let going = object.is_going() || spec.taints.iter().any(|taint| taint.key == GOING_TAINT);
    let object = Node {
        zone: object.zone().map(str::to_owned),
        pod_cidrs,
        addresses,
        eligible: !going,
    };
    Ok(Read { object, left_out })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_read() {
        let object = json!({
            "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "a"}},
            "spec": {"podCIDR": "10.128.1.0/24", "podCIDRs": ["10.128.1.0/24", "fd00:128:1::/64", "x"],
                     "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
            "status": {"addresses": [
                {"type": "ExternalIP", "address": "203.0.113.9"}, {"type": "Hostname", "address": "node-1"},
                {"type": "InternalIP", "address": "192.168.50.1"}, {"type": "InternalIP", "address": "fd00:50::1"},
            ]},
        });
        let read = node(&serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!(read.left_out.len(), 1);
        let expected = Node {
            zone: Some("a".to_owned()),
            pod_cidrs: ["10.128.1.0/24", "fd00:128:1::/64"].map(|n| n.parse().unwrap()).into(),
            addresses: ["192.168.50.1", "fd00:50::1", "203.0.113.9"]
                .map(|a| a.parse().unwrap())
                .into(),
            eligible: false,
        };
        assert_eq!(read.object, expected);
    }
}
