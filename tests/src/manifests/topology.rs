//! Where endpoints are and whom they are meant for.

use serde_json::{Value, json};

use super::build::EndpointSliceBuilder;

impl EndpointSliceBuilder {
    /// One label of the object.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0["metadata"]["labels"][key] = json!(value);
        self
    }

    /// One more port as it is given, for example one without a number.
    #[must_use]
    pub fn port_entry(mut self, entry: Value) -> Self {
        let ports = self.0["ports"].as_array_mut().expect("a slice with a list of ports");
        ports.push(entry);
        self
    }

    /// The zone of the endpoint that was added last.
    #[must_use]
    pub fn zone(self, zone: &str) -> Self {
        self.of_last("zone", json!(zone))
    }

    /// The zones whose clients the endpoint that was added last is meant for.
    #[must_use]
    pub fn for_zones(self, zones: &[&str]) -> Self {
        self.hint("forZones", zones)
    }

    /// The nodes whose clients the endpoint that was added last is meant for.
    #[must_use]
    pub fn for_nodes(self, nodes: &[&str]) -> Self {
        self.hint("forNodes", nodes)
    }

    /// The conditions of the endpoint that was added last, as they are given; the API allows any of them to be missing.
    #[must_use]
    pub fn conditions(self, conditions: Value) -> Self {
        self.of_last("conditions", conditions)
    }

    fn hint(mut self, kind: &str, names: &[&str]) -> Self {
        let names: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        self.last()["hints"][kind] = json!(names);
        self
    }

    fn of_last(mut self, field: &str, value: Value) -> Self {
        self.last()[field] = value;
        self
    }

    fn last(&mut self) -> &mut Value {
        let endpoints = self.0["endpoints"].as_array_mut();
        let endpoints = endpoints.expect("a slice with a list of endpoints");
        endpoints.last_mut().expect("an endpoint before what is said of it")
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AddressType, Readiness, endpoint_slice};
    use super::*;

    #[test]
    fn hints_belong_to_the_last_endpoint() {
        let object = endpoint_slice("shop", "web", "a", AddressType::IPv4)
            .endpoint("10.128.1.1", "node-1", Readiness::READY)
            .endpoint("10.128.1.2", "node-1", Readiness::READY)
            .zone("a")
            .for_zones(&["a", "b"])
            .for_nodes(&["node-1"])
            .object();
        assert_eq!(object["endpoints"][0].get("hints"), None);
        assert_eq!(
            object["endpoints"][1]["hints"],
            json!({"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "node-1"}]})
        );
        assert_eq!(object["endpoints"][1]["zone"], "a");
    }
}
