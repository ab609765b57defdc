//! Services and slices as kube-proxy sees them: one entry per Service port, with the endpoints to use.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Family;

/// One port of one Service in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServicePort {
    /// `namespace/name:port`, or without `:port` when the port has no name.
    pub(super) name: String,
    /// In small letters.
    pub(super) protocol: String,
    pub(super) cluster_ip: String,
    pub(super) port: u64,
    pub(super) node_port: Option<u64>,
    pub(super) endpoints: BTreeSet<Endpoint>,
}

/// One endpoint: its address and its port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Endpoint {
    pub(super) address: String,
    pub(super) port: u64,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.address.contains(':') {
            write!(f, "[{}]:{}", self.address, self.port)
        } else {
            write!(f, "{}:{}", self.address, self.port)
        }
    }
}

impl ServicePort {
    /// Every port that kube-proxy serves, sorted by name and protocol.
    pub(super) fn all(objects: &[Value], family: Family) -> Vec<Self> {
        let mut all: Vec<Self> = objects
            .iter()
            .filter(|object| object["kind"] == "Service")
            .flat_map(|service| Self::of_service(service, objects, family))
            .collect();
        all.sort_by(|a, b| (&a.name, &a.protocol).cmp(&(&b.name, &b.protocol)));
        all
    }

    fn of_service(service: &Value, objects: &[Value], family: Family) -> Vec<Self> {
        let foreign = !service["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"].is_null();
        let cluster_ip = strings(&service["spec"]["clusterIPs"])
            .find(|address| *address != "None" && !address.is_empty() && family.contains(address));
        let Some(cluster_ip) = cluster_ip.filter(|_| !foreign) else {
            return Vec::new();
        };
        let (namespace, name) = (
            text(&service["metadata"]["namespace"]),
            text(&service["metadata"]["name"]),
        );
        let of_port = |port: &Value| {
            let port_name = text(&port["name"]);
            let suffix = if port_name.is_empty() {
                String::new()
            } else {
                format!(":{port_name}")
            };
            Self {
                name: format!("{namespace}/{name}{suffix}"),
                protocol: protocol(port).to_lowercase(),
                cluster_ip: cluster_ip.to_owned(),
                port: port["port"]
                    .as_u64()
                    .unwrap_or_else(|| panic!("{namespace}/{name} has a port without number")),
                node_port: port["nodePort"].as_u64(),
                endpoints: endpoints(objects, namespace, name, port_name, protocol(port), family),
            }
        };
        array(&service["spec"]["ports"]).iter().map(of_port).collect()
    }
}

/// The ready endpoints of a Service port; if there are none, those that still serve while they terminate.
fn endpoints(
    objects: &[Value],
    namespace: &str,
    service: &str,
    port_name: &str,
    port_protocol: &str,
    family: Family,
) -> BTreeSet<Endpoint> {
    let mut ready = BTreeSet::new();
    let mut draining = BTreeSet::new();
    let slices = objects.iter().filter(|object| {
        object["kind"] == "EndpointSlice"
            && object["metadata"]["namespace"] == namespace
            && object["metadata"]["labels"]["kubernetes.io/service-name"] == service
    });
    for slice in slices {
        let ports = array(&slice["ports"])
            .iter()
            .filter(|port| text(&port["name"]) == port_name && protocol(port) == port_protocol)
            .filter_map(|port| port["port"].as_u64());
        for port in ports {
            for endpoint in array(&slice["endpoints"]) {
                // Only the first address counts; the others have no meaning any more.
                let address = strings(&endpoint["addresses"])
                    .next()
                    .filter(|address| family.contains(address));
                let Some(address) = address else { continue };
                let found = Endpoint {
                    address: address.to_owned(),
                    port,
                };
                let conditions = &endpoint["conditions"];
                let is_ready = conditions["ready"].as_bool().unwrap_or(true);
                let is_serving = conditions["serving"].as_bool().unwrap_or(is_ready);
                let is_terminating = conditions["terminating"].as_bool().unwrap_or(false);
                if is_ready {
                    ready.insert(found);
                } else if is_serving && is_terminating {
                    draining.insert(found);
                }
            }
        }
    }
    if ready.is_empty() { draining } else { ready }
}

fn protocol(port: &Value) -> &str {
    port["protocol"].as_str().unwrap_or("TCP")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    array(value).iter().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::{self, AddressType, Readiness, endpoint_slice, service};

    #[test]
    fn only_what_a_service_proxy_serves() {
        let of = |family| ServicePort::all(&manifests::all(), family);
        let named = |ports: &[ServicePort]| {
            ports
                .iter()
                .map(|port| format!("{} {}", port.name, port.endpoints.len()))
                .collect::<Vec<_>>()
        };
        let dns = ["kube-system/kube-dns:dns 2", "kube-system/kube-dns:dns-tcp 2"];
        assert_eq!(
            named(&of(Family::V4)),
            [
                "default/kubernetes:https 1",
                dns[0],
                dns[1],
                "shop/api:http 3",
                "shop/db:postgres 1",
                "shop/empty:http 0",
                "shop/web:http 3"
            ]
        );
        assert_eq!(
            named(&of(Family::V6)),
            [dns[0], dns[1], "shop/db:postgres 1", "shop/web:http 3"]
        );
    }

    #[test]
    fn draining_endpoints_are_used_only_when_none_is_ready() {
        let web = service("shop", "web")
            .cluster_ips(["10.96.10.1"])
            .port("", "TCP", 80, 8080)
            .object();
        let slice = |second| {
            endpoint_slice("shop", "web", "a", AddressType::IPv4)
                .port("", "TCP", 8080)
                .endpoint("10.128.200.1", "", Readiness::DRAINING)
                .endpoint("10.128.200.2", "", second)
                .object()
        };
        let used = |second| {
            let ports = ServicePort::all(&[web.clone(), slice(second)], Family::V4);
            ports[0].endpoints.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(used(Readiness::READY), ["10.128.200.2:8080"]);
        assert_eq!(used(Readiness::UNREADY), ["10.128.200.1:8080"]);
    }
}
