//! Builders for Services and `EndpointSlices`, with the defaults that a real API server fills in.

use serde_json::{Value, json};

/// A fixed date: objects of tests have no history.
pub(super) const CREATED: &str = "2026-01-05T08:00:00Z";

/// Begins a Service of type `ClusterIP` without addresses and ports.
pub fn service(namespace: &str, name: &str) -> ServiceBuilder {
    ServiceBuilder(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": CREATED,
            "labels": {},
        },
        "spec": {
            "internalTrafficPolicy": "Cluster",
            "ipFamilyPolicy": "SingleStack",
            "ports": [],
            "selector": {"app": name},
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
        "status": {"loadBalancer": {}},
    }))
}

/// A Service being built; [`ServiceBuilder::object`] ends it.
#[derive(Clone, Debug)]
pub struct ServiceBuilder(pub(super) Value);

impl ServiceBuilder {
    /// Its `ClusterIPs`, the first one's family first; `["None"]` makes it headless.
    #[must_use]
    pub fn cluster_ips<const N: usize>(mut self, addresses: [&str; N]) -> Self {
        let families: Vec<_> = addresses
            .iter()
            .filter(|address| **address != "None")
            .map(|address| if address.contains(':') { "IPv6" } else { "IPv4" })
            .collect();
        let spec = &mut self.0["spec"];
        spec["clusterIP"] = json!(addresses.first());
        spec["clusterIPs"] = json!(addresses.as_slice());
        spec["ipFamilyPolicy"] = json!(if families.len() > 1 {
            "PreferDualStack"
        } else {
            "SingleStack"
        });
        spec["ipFamilies"] = if families.is_empty() {
            json!(["IPv4"])
        } else {
            json!(families)
        };
        self
    }

    /// One more port: its name (`""` for none), `TCP`, `UDP` or `SCTP`, the port that clients use and the one in the
    /// pods, a number or the name of a container port.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: &str, port: u16, target: impl Into<Value>) -> Self {
        let mut port = json!({"port": port, "protocol": protocol, "targetPort": target.into()});
        if !name.is_empty() {
            port["name"] = json!(name);
        }
        self.0["spec"]["ports"]
            .as_array_mut()
            .expect("a Service with a list of ports")
            .push(port);
        self
    }

    /// One label of the object.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0["metadata"]["labels"][key] = json!(value);
        self
    }

    /// Any other field of the spec, for example `sessionAffinity` or `type`.
    #[must_use]
    pub fn spec(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0["spec"][field] = value.into();
        self
    }

    /// The Service as the API would print it.
    pub fn object(self) -> Value {
        self.0
    }
}

/// The kind of addresses in an `EndpointSlice`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressType {
    /// IPv4 addresses.
    IPv4,
    /// IPv6 addresses.
    IPv6,
}

/// The three conditions of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// May get new connections.
    pub ready: bool,
    /// Passes its readiness probe, terminating or not.
    pub serving: bool,
    /// Its pod has been told to go.
    pub terminating: bool,
}

impl Readiness {
    /// A pod in good health.
    pub const READY: Self = Self {
        ready: true,
        serving: true,
        terminating: false,
    };
    /// A pod that fails its readiness probe.
    pub const UNREADY: Self = Self {
        ready: false,
        serving: false,
        terminating: false,
    };
    /// A pod that is going but still answers.
    pub const DRAINING: Self = Self {
        ready: false,
        serving: true,
        terminating: true,
    };
    /// A pod that is going and answers no more.
    pub const GONE: Self = Self {
        ready: false,
        serving: false,
        terminating: true,
    };
}

/// Begins a slice named `SERVICE-SUFFIX` of this Service, without ports and endpoints.
pub fn endpoint_slice(namespace: &str, service: &str, suffix: &str, address_type: AddressType) -> EndpointSliceBuilder {
    let address_type = match address_type {
        AddressType::IPv4 => "IPv4",
        AddressType::IPv6 => "IPv6",
    };
    EndpointSliceBuilder(json!({
        "addressType": address_type,
        "apiVersion": "discovery.k8s.io/v1",
        "endpoints": [],
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{suffix}"),
            "namespace": namespace,
            "creationTimestamp": CREATED,
            "generation": 1,
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service,
            },
        },
        "ports": [],
    }))
}

/// An `EndpointSlice` being built; [`EndpointSliceBuilder::object`] ends it.
#[derive(Clone, Debug)]
pub struct EndpointSliceBuilder(pub(super) Value);

impl EndpointSliceBuilder {
    /// One more port: the name of the Service's port (`""` for an unnamed one), the protocol and the pods' number.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: &str, port: u16) -> Self {
        let port = json!({"name": name, "port": port, "protocol": protocol});
        self.0["ports"]
            .as_array_mut()
            .expect("a slice with a list of ports")
            .push(port);
        self
    }

    /// One more endpoint; `node` is the Kubernetes name of its node, `""` for none.
    #[must_use]
    pub fn endpoint(mut self, address: &str, node: &str, readiness: Readiness) -> Self {
        let Readiness {
            ready,
            serving,
            terminating,
        } = readiness;
        let mut endpoint = json!({
            "addresses": [address],
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        });
        if !node.is_empty() {
            endpoint["nodeName"] = json!(node);
        }
        self.0["endpoints"]
            .as_array_mut()
            .expect("a slice with a list of endpoints")
            .push(endpoint);
        self
    }

    /// The slice as the API would print it.
    pub fn object(self) -> Value {
        self.0
    }
}
