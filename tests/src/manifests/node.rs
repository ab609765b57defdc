//! Builders for Nodes and `ServiceCIDR`s.

use serde_json::{Value, json};

use super::build::CREATED;

/// A Node with one internal address, ready.
pub fn node(name: &str, address: &str) -> Value {
    node_with(name).address(address).object()
}

/// Begins a Node that is ready, without addresses.
pub fn node_with(name: &str) -> NodeBuilder {
    NodeBuilder(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "creationTimestamp": CREATED,
            "labels": {
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
            },
        },
        "spec": {},
        "status": {
            "addresses": [{"address": name, "type": "Hostname"}],
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"},
            ],
        },
    }))
}

/// A Node being built; [`NodeBuilder::object`] ends it.
#[derive(Clone, Debug)]
pub struct NodeBuilder(Value);

impl NodeBuilder {
    /// One more internal address; the first of a family is the primary one.
    #[must_use]
    pub fn address(mut self, address: &str) -> Self {
        let addresses = self.0["status"]["addresses"].as_array_mut();
        let addresses = addresses.expect("a Node with a list of addresses");
        // The host name comes last.
        addresses.insert(addresses.len() - 1, json!({"address": address, "type": "InternalIP"}));
        self
    }

    /// The zone in which it stands.
    #[must_use]
    pub fn zone(mut self, zone: &str) -> Self {
        self.0["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(zone);
        self
    }

    /// The networks of its pods, at most one per family.
    #[must_use]
    pub fn pod_cidrs(mut self, networks: &[&str]) -> Self {
        self.0["spec"]["podCIDR"] = json!(networks.first());
        self.0["spec"]["podCIDRs"] = json!(networks);
        self
    }

    /// The Node as the API would print it.
    pub fn object(self) -> Value {
        self.0
    }
}

/// A `ServiceCIDR` with at most one network per family.
pub fn service_cidr(name: &str, networks: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {
            "name": name,
            "creationTimestamp": CREATED,
            "finalizers": ["networking.k8s.io/service-cidr-finalizer"],
        },
        "spec": {"cidrs": networks},
        "status": {
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "", "message": "Kubernetes Service CIDR is ready"},
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_order_before_the_host_name() {
        let node = node_with("node-1").address("192.0.2.1").address("fd00::1").object();
        let addresses: Vec<&Value> = node["status"]["addresses"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| &entry["address"])
            .collect();
        assert_eq!(addresses, ["192.0.2.1", "fd00::1", "node-1"]);
    }
}
