//! `EndpointSlice`s.

use std::net::IpAddr;
use std::sync::Arc;

use nftfleet_domain::service::{Family, Protocol};

use super::{BadObject, Object, Read, address, port, protocol};
use crate::kube::id::Id;

/// An `EndpointSlice` as far as it concerns the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service that it belongs to.
    pub(in crate::kube) service: Id,
    /// The family of its addresses.
    pub family: Family,
    /// Its ports.
    pub ports: Box<[SlicePort]>,
    /// Its endpoints.
    pub endpoints: Box<[SliceEndpoint]>,
}

/// A port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port in the pods, 1-65535.
    pub port: u16,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// Whether it runs on this node.
    pub local: bool,
    /// Whether it takes new connections. Not said means yes.
    pub ready: bool,
    /// Whether it still answers while it ends. Not said means yes.
    pub serving: bool,
    /// Whether it is ending.
    pub terminating: bool,
    /// For which nodes it is meant.
    pub node_hint: NodeHint,
    /// The zones for which it is meant; none if nothing is said.
    pub zones: Option<Arc<Vec<String>>>,
}

/// For which nodes an endpoint is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeHint {
    /// Nothing is said.
    None,
    /// For this one, at least.
    This,
    /// For others.
    Others,
}

mod json {
    use serde::Deserialize;

    use super::super::Text;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Slice<'a> {
        #[serde(borrow)]
        pub address_type: Text<'a>,
        #[serde(borrow, default)]
        pub ports: Option<Vec<Port<'a>>>,
        #[serde(borrow, default)]
        pub endpoints: Option<Vec<Endpoint<'a>>>,
    }

    #[derive(Deserialize)]
    pub struct Port<'a> {
        #[serde(borrow)]
        pub name: Option<Text<'a>>,
        #[serde(borrow)]
        pub protocol: Option<Text<'a>>,
        #[serde(rename = "port")]
        pub number: Option<i64>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Endpoint<'a> {
        #[serde(borrow, default)]
        pub addresses: Vec<Text<'a>>,
        #[serde(default)]
        pub conditions: Option<Conditions>,
        #[serde(borrow)]
        pub node_name: Option<Text<'a>>,
        #[serde(borrow)]
        pub hints: Option<Hints<'a>>,
    }

    #[derive(Default, Deserialize)]
    pub struct Conditions {
        pub ready: Option<bool>,
        pub serving: Option<bool>,
        pub terminating: Option<bool>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Hints<'a> {
        #[serde(borrow)]
        pub for_zones: Option<Vec<Named<'a>>>,
        #[serde(borrow)]
        pub for_nodes: Option<Vec<Named<'a>>>,
    }

    #[derive(Deserialize)]
    pub struct Named<'a> {
        #[serde(borrow)]
        pub name: Text<'a>,
    }
}

/// Reads an `EndpointSlice` on the node of this name; none if it concerns no Service or holds host names. Endpoints that make
/// no sense are left out alone.
///
/// # Errors
/// The first other field that makes no sense.
pub fn slice(object: &Object, node: &str) -> Result<Option<Read<Slice>>, BadObject> {
    let Some(service) = object.service()? else {
        return Ok(None);
    };
    let slice: json::Slice<'_> = object.read()?;
    let family = match &*slice.address_type {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Ok(None),
        other => {
            let message = format!("{other:?} is not IPv4, IPv6 or FQDN");
            return Err(BadObject::new("addressType", message));
        }
    };
    let mut ports = Vec::new();
    for (i, json) in slice.ports.unwrap_or_default().iter().enumerate() {
        let path = format!("ports[{i}]");
        // A slice's port without a number means "all ports", which a Service can't use.
        if let Some(number) = port(&format!("{path}.port"), json.number)? {
            ports.push(SlicePort {
                name: json.name.as_deref().unwrap_or_default().into(),
                protocol: protocol(&path, json.protocol.as_deref())?,
                port: number,
            });
        }
    }
    let given = slice.endpoints.unwrap_or_default();
    let (mut endpoints, mut left_out) = (Vec::with_capacity(given.len()), Vec::new());
    for (i, json) in given.into_iter().enumerate() {
        match endpoint(i, family, json, node) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(bad) => left_out.push(bad),
        }
    }
    let object = Slice {
        service,
        family,
        ports: ports.into(),
        endpoints: endpoints.into(),
    };
    Ok(Some(Read { object, left_out }))
}

fn endpoint(i: usize, family: Family, json: json::Endpoint<'_>, node: &str) -> Result<SliceEndpoint, BadObject> {
    // The API promises that all addresses of an endpoint are the same one; clients use the first.
    let path = format!("endpoints[{i}].addresses[0]");
    let text = json.addresses.first();
    let text = text.ok_or_else(|| BadObject::new(&path, "is missing; an IP address is needed"))?;
    let address = address(&path, text)?;
    if Family::of(address) != family {
        let message = format!("{address} is not of the slice's family {family}");
        return Err(BadObject::new(path, message));
    }
    let conditions = json.conditions.unwrap_or_default();
    let hints = json.hints;
    let nodes = hints.as_ref().and_then(|hints| hints.for_nodes.as_deref());
    let zones = hints.as_ref().and_then(|hints| hints.for_zones.as_deref());
    Ok(SliceEndpoint {
        address,
        local: json.node_name.as_deref() == Some(node),
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node_hint: match nodes {
            None | Some([]) => NodeHint::None,
            Some(nodes) if nodes.iter().any(|named| &*named.name == node) => NodeHint::This,
            Some(_) => NodeHint::Others,
        },
        zones: zones
            .filter(|zones| !zones.is_empty())
            .map(|zones| Arc::new(zones.iter().map(|named| named.name.to_string()).collect())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn a_slice(family: &str, ports: &Value, endpoints: &Value) -> Result<Option<Read<Slice>>, BadObject> {
        let metadata = json!({"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}});
        let object = json!({"metadata": metadata, "addressType": family, "ports": ports, "endpoints": endpoints});
        slice(&serde_json::from_value(object).unwrap(), "node-1")
    }

    #[test]
    fn a_slice_is_read_with_its_conditions_and_hints() {
        let endpoints = json!([
            {"addresses": ["10.128.001.010"], "nodeName": "node-1",
             "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node-2"}]}},
            {"addresses": ["10.128.1.11"], "conditions": {"ready": false, "serving": true, "terminating": true},
             "hints": {"forNodes": [{"name": "node-2"}, {"name": "node-1"}]}},
        ]);
        let ports =
            json!([{"name": "", "port": 8080, "protocol": "TCP"}, {"name": "all"}, {"name": "none", "port": 0}]);
        let read = a_slice("IPv4", &ports, &endpoints).unwrap().unwrap();
        assert_eq!(read.left_out, []);
        let [first, second] = &*read.object.endpoints else {
            panic!("{read:?}")
        };
        assert_eq!(first.address, IpAddr::from([10, 128, 1, 10]));
        assert!(first.ready && !first.terminating && first.local);
        assert_eq!(first.node_hint, NodeHint::Others);
        assert_eq!(first.zones.as_deref(), Some(&vec!["a".to_owned()]));
        assert!(!second.ready && second.serving && second.terminating && !second.local);
        assert_eq!(second.node_hint, NodeHint::This);
        assert_eq!(read.object.ports.len(), 1);
    }

    #[test]
    fn bad_endpoints_are_left_out_alone() {
        let endpoints = json!([{"addresses": ["fd00::1"]}, {"addresses": ["10.0.0.1"]}, {"addresses": []},
            {"addresses": ["fd00::2x"]}]);
        let read = a_slice("IPv6", &json!([]), &endpoints).unwrap().unwrap();
        assert_eq!(read.object.endpoints.len(), 1);
        let said: Vec<_> = read.left_out.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "endpoints[1].addresses[0]: 10.0.0.1 is not of the slice's family IPv6",
                "endpoints[2].addresses[0]: is missing; an IP address is needed",
                "endpoints[3].addresses[0]: \"fd00::2x\" is not an IP address",
            ]
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let bad = a_slice("IPv4", &json!([{"port": 70000}]), &json!([])).unwrap_err();
        assert_eq!(bad.to_string(), "ports[0].port: 70000 is not 1-65535");
        let bad = a_slice("IPv5", &json!([]), &json!([])).unwrap_err();
        assert_eq!(bad.to_string(), "addressType: \"IPv5\" is not IPv4, IPv6 or FQDN");
    }

    #[test]
    fn a_slice_of_no_service_and_one_of_host_names_concern_nobody() {
        assert_eq!(a_slice("FQDN", &json!([]), &json!([])), Ok(None));
        let object = json!({"metadata": {"name": "x", "namespace": "shop"}, "addressType": "IPv4"});
        assert_eq!(slice(&serde_json::from_value(object).unwrap(), "node-1"), Ok(None));
    }
}
