//! Services and EndpointSlices, read from the API's JSON field by field.
//!
//! Only the fields that matter are read, and each object by itself: one that makes no sense is refused with the path of the
//! field, and the others live on. A typed list of `k8s-openapi` would fail as a whole.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kube::core::DynamicObject;
use nftfleet_domain::service::{Family, ObjectName, Protocol};
use serde::Deserialize;

/// An object that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct BadObject {
    /// Path of the field.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl BadObject {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }
}

/// A Service as far as it concerns the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its virtual addresses; empty for headless Services and those of type `ExternalName`.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// What it asks for beyond a plain `ClusterIP`, which this data plane does not do yet.
    pub unsupported: BTreeSet<&'static str>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, which the slices' ports bear too; empty for an only port.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port, 1-65535.
    pub port: u16,
}

/// An EndpointSlice as far as it concerns the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service that it belongs to.
    pub service: ObjectName,
    /// The family of its addresses.
    pub family: Family,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// The node it runs on, if it is known.
    pub node: Option<String>,
    /// Whether it takes new connections. Not said means yes.
    pub ready: bool,
    /// Whether it still answers while it ends. Not said means yes.
    pub serving: bool,
    /// Whether it is ending.
    pub terminating: bool,
}

/// The namespace and name of an object.
pub fn name_of(object: &DynamicObject) -> ObjectName {
    ObjectName {
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
    }
}

mod json {
    use serde::Deserialize;

    #[derive(Deserialize)]
    pub struct Service {
        #[serde(default)]
        pub spec: ServiceSpec,
    }

    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct ServiceSpec {
        #[serde(rename = "type")]
        pub kind: Option<String>,
        #[serde(rename = "clusterIP")]
        pub cluster_ip: Option<String>,
        #[serde(rename = "clusterIPs", default)]
        pub cluster_ips: Vec<String>,
        #[serde(rename = "externalIPs", default)]
        pub external_ips: Vec<String>,
        #[serde(default)]
        pub ports: Vec<Port>,
        pub session_affinity: Option<String>,
        pub internal_traffic_policy: Option<String>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Port {
        pub name: Option<String>,
        pub protocol: Option<String>,
        #[serde(rename = "port")]
        pub number: Option<i64>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Slice {
        pub address_type: String,
        #[serde(default)]
        pub ports: Option<Vec<Port>>,
        #[serde(default)]
        pub endpoints: Option<Vec<Endpoint>>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Endpoint {
        #[serde(default)]
        pub addresses: Vec<String>,
        #[serde(default)]
        pub conditions: Option<Conditions>,
        pub node_name: Option<String>,
    }

    #[derive(Default, Deserialize)]
    pub struct Conditions {
        pub ready: Option<bool>,
        pub serving: Option<bool>,
        pub terminating: Option<bool>,
    }
}

fn read<'a, T: Deserialize<'a>>(object: &'a DynamicObject) -> Result<T, BadObject> {
    serde_path_to_error::deserialize(&object.data)
        .map_err(|error| BadObject::new(error.path().to_string(), error.inner().to_string()))
}

/// Reads a Service.
///
/// # Errors
/// The first field that makes no sense.
pub fn service(object: &DynamicObject) -> Result<Service, BadObject> {
    let json::Service { spec } = read(object)?;
    let mut unsupported = BTreeSet::new();
    match spec.kind.as_deref().unwrap_or("ClusterIP") {
        "ClusterIP" => {}
        "NodePort" => drop(unsupported.insert("type NodePort")),
        "LoadBalancer" => drop(unsupported.insert("type LoadBalancer")),
        "ExternalName" => {
            return Ok(Service {
                cluster_ips: vec![],
                ports: vec![],
                unsupported,
            });
        }
        other => {
            return Err(BadObject::new(
                "spec.type",
                format!("{other:?} is not a type of Service"),
            ));
        }
    }
    if !spec.external_ips.is_empty() {
        unsupported.insert("externalIPs");
    }
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        unsupported.insert("sessionAffinity ClientIP");
    }
    if spec.internal_traffic_policy.as_deref() == Some("Local") {
        unsupported.insert("internalTrafficPolicy Local");
    }
    let given = match (&spec.cluster_ip, spec.cluster_ips.as_slice()) {
        (Some(ip), []) => vec![ip.clone()],
        (_, ips) => ips.to_vec(),
    };
    let mut cluster_ips = Vec::new();
    for (i, text) in given.iter().enumerate() {
        if text == "None" || text.is_empty() {
            return Ok(Service {
                cluster_ips: vec![],
                ports: vec![],
                unsupported: BTreeSet::new(),
            });
        }
        cluster_ips.push(address(&format!("spec.clusterIPs[{i}]"), text)?);
    }
    let mut ports = Vec::with_capacity(spec.ports.len());
    for (i, port) in spec.ports.iter().enumerate() {
        let port = service_port(&format!("spec.ports[{i}]"), port)?
            .ok_or_else(|| BadObject::new(format!("spec.ports[{i}].port"), "is missing"))?;
        if port.protocol == Protocol::Sctp {
            unsupported.insert("protocol SCTP");
        }
        ports.push(port);
    }
    Ok(Service {
        cluster_ips,
        ports,
        unsupported,
    })
}

/// The label that names a slice's Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Reads an EndpointSlice; none if it concerns no Service or holds host names.
///
/// # Errors
/// The first field that makes no sense.
pub fn slice(object: &DynamicObject) -> Result<Option<Slice>, BadObject> {
    let Some(service) = object
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SERVICE_LABEL))
    else {
        return Ok(None);
    };
    let service = ObjectName {
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: service.clone(),
    };
    let slice: json::Slice = read(object)?;
    let family = match slice.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Ok(None),
        other => {
            return Err(BadObject::new(
                "addressType",
                format!("{other:?} is not IPv4, IPv6 or FQDN"),
            ));
        }
    };
    let mut ports = Vec::new();
    for (i, port) in slice.ports.unwrap_or_default().iter().enumerate() {
        // A slice's port without a number means "all ports", which a Service can't use.
        ports.extend(service_port(&format!("ports[{i}]"), port)?);
    }
    let mut endpoints = Vec::new();
    for (i, endpoint) in slice.endpoints.unwrap_or_default().into_iter().enumerate() {
        // The API promises that all addresses of an endpoint are the same one; clients use the first.
        let path = format!("endpoints[{i}].addresses[0]");
        let Some(text) = endpoint.addresses.first() else {
            return Err(BadObject::new(path, "is missing"));
        };
        let address = address(&path, text)?;
        if Family::of(address) != family {
            return Err(BadObject::new(
                path,
                format!("{address} is not of the slice's family {family}"),
            ));
        }
        let conditions = endpoint.conditions.unwrap_or_default();
        endpoints.push(SliceEndpoint {
            address,
            node: endpoint.node_name,
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
        });
    }
    Ok(Some(Slice {
        service,
        family,
        ports,
        endpoints,
    }))
}

fn service_port(path: &str, port: &json::Port) -> Result<Option<ServicePort>, BadObject> {
    let protocol = match &port.protocol {
        None => Protocol::Tcp,
        Some(text) => text.parse().map_err(|error: nftfleet_domain::service::BadProtocol| {
            BadObject::new(format!("{path}.protocol"), error.to_string())
        })?,
    };
    let number = match port.number {
        None | Some(0) => return Ok(None),
        Some(number) => u16::try_from(number)
            .map_err(|_| BadObject::new(format!("{path}.port"), format!("{number} is not 1-65535")))?,
    };
    Ok(Some(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol,
        port: number,
    }))
}

/// Reads an address. Leading zeros in IPv4 are decimal, as Kubernetes has always read them.
fn address(path: &str, text: &str) -> Result<IpAddr, BadObject> {
    let bad = || BadObject::new(path, format!("{text:?} is not an IP address"));
    if text.contains(':') {
        return text.parse().map_err(|_| bad());
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts
            .next()
            .filter(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(bad)?;
        *octet = part.parse().map_err(|_| bad())?;
    }
    if parts.next().is_some() {
        Err(bad())
    } else {
        Ok(IpAddr::from(octets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: serde_json::Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    fn a_service(spec: &serde_json::Value) -> Result<Service, BadObject> {
        service(&object(
            json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}),
        ))
    }

    #[test]
    fn a_plain_service_is_read() {
        let read = a_service(&json!({
            "type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        }))
        .unwrap();
        assert_eq!(
            read.cluster_ips,
            ["10.96.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]
        );
        assert_eq!(
            read.ports[1],
            ServicePort {
                name: "dns".to_owned(),
                protocol: Protocol::Udp,
                port: 53
            }
        );
        assert!(read.unsupported.is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let cases = [
            (
                json!({"clusterIPs": ["10.96.0.256"]}),
                "spec.clusterIPs[0]: \"10.96.0.256\" is not an IP address",
            ),
            (
                json!({"clusterIPs": ["10.0.0.1"], "ports": [{"port": 70000}]}),
                "spec.ports[0].port: 70000 is not 1-65535",
            ),
            (
                json!({"clusterIPs": ["10.0.0.1"], "ports": [{"port": 1, "protocol": "GRE"}]}),
                "spec.ports[0].protocol: protocol \"GRE\" is not TCP, UDP or SCTP",
            ),
            (
                json!({"ports": "many"}),
                "spec.ports: invalid type: string \"many\", expected a sequence",
            ),
            (
                json!({"type": "Magic"}),
                "spec.type: \"Magic\" is not a type of Service",
            ),
        ];
        for (spec, message) in cases {
            assert_eq!(a_service(&spec).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn headless_and_external_names_have_no_address() {
        assert!(
            a_service(&json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}))
                .unwrap()
                .cluster_ips
                .is_empty()
        );
        assert!(
            a_service(&json!({"type": "ExternalName", "externalName": "x.example"}))
                .unwrap()
                .cluster_ips
                .is_empty()
        );
    }

    #[test]
    fn what_is_not_built_yet_is_named() {
        let read =
            a_service(&json!({"type": "NodePort", "clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP"})).unwrap();
        assert_eq!(
            read.unsupported.into_iter().collect::<Vec<_>>(),
            ["sessionAffinity ClientIP", "type NodePort"]
        );
    }

    #[test]
    fn a_slice_is_read_with_its_conditions() {
        let read = slice(&object(json!({
            "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.128.001.010"], "nodeName": "node-1"},
                {"addresses": ["10.128.1.11"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            ],
        })))
        .unwrap()
        .unwrap();
        assert_eq!(read.endpoints[0].address, IpAddr::from([10, 128, 1, 10]));
        assert!(read.endpoints[0].ready && !read.endpoints[0].terminating);
        assert!(!read.endpoints[1].ready && read.endpoints[1].serving && read.endpoints[1].terminating);
    }

    #[test]
    fn a_slice_of_the_wrong_family_is_refused() {
        let bad = slice(&object(json!({
            "metadata": {"name": "x", "namespace": "s", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv6", "endpoints": [{"addresses": ["10.0.0.1"]}],
        })));
        assert_eq!(bad.unwrap_err().path, "endpoints[0].addresses[0]");
    }
}
