//! What makes a Service more than a `ClusterIP`: node ports, load balancers, policies, affinity.

use serde_json::{Value, json};

use super::build::ServiceBuilder;

impl ServiceBuilder {
    /// Makes it of type `NodePort`, unless it is of another type by now, with this port on the nodes for the port that was added last.
    #[must_use]
    pub fn node_port(mut self, number: u16) -> Self {
        let spec = &mut self.0["spec"];
        let ports = spec["ports"].as_array_mut().expect("a Service with a list of ports");
        ports.last_mut().expect("a port before its node port")["nodePort"] = json!(number);
        if spec["type"] == "ClusterIP" {
            spec["type"] = json!("NodePort");
        }
        self.reachable_from_outside()
    }

    /// Makes it of type `LoadBalancer`, whose balancer has not given it an address yet.
    #[must_use]
    pub fn load_balancer(mut self) -> Self {
        self.0["spec"]["type"] = json!("LoadBalancer");
        self.0["spec"]["allocateLoadBalancerNodePorts"] = json!(true);
        self.reachable_from_outside()
    }

    /// Makes it of type `LoadBalancer`, with one more address from its balancer, in mode `VIP`.
    #[must_use]
    pub fn ingress(self, address: &str) -> Self {
        self.ingress_entry(json!({"ip": address, "ipMode": "VIP"}))
    }

    /// Makes it of type `LoadBalancer`, with one more entry of `status.loadBalancer.ingress` as it is given.
    #[must_use]
    pub fn ingress_entry(mut self, entry: Value) -> Self {
        self = self.load_balancer();
        let ingress = &mut self.0["status"]["loadBalancer"]["ingress"];
        match ingress.as_array_mut() {
            Some(entries) => entries.push(entry),
            None => *ingress = json!([entry]),
        }
        self
    }

    /// Addresses that the site sends to the nodes by its own means.
    #[must_use]
    pub fn external_ips<const N: usize>(mut self, addresses: [&str; N]) -> Self {
        self.0["spec"]["externalIPs"] = json!(addresses.as_slice());
        self.reachable_from_outside()
    }

    /// Who may reach the balancer's addresses.
    #[must_use]
    pub fn source_ranges<const N: usize>(self, ranges: [&str; N]) -> Self {
        self.spec("loadBalancerSourceRanges", json!(ranges.as_slice()))
    }

    /// One client, one endpoint, until it has been silent for this long.
    #[must_use]
    pub fn affinity(self, seconds: u32) -> Self {
        self.spec("sessionAffinity", "ClientIP").spec(
            "sessionAffinityConfig",
            json!({"clientIP": {"timeoutSeconds": seconds}}),
        )
    }

    /// `Cluster` or `Local`: which endpoints serve traffic from outside.
    #[must_use]
    pub fn external_policy(self, policy: &str) -> Self {
        self.spec("externalTrafficPolicy", policy)
    }

    /// `Cluster` or `Local`: which endpoints serve the `ClusterIP`.
    #[must_use]
    pub fn internal_policy(self, policy: &str) -> Self {
        self.spec("internalTrafficPolicy", policy)
    }

    /// Where a load balancer asks a node whether it has endpoints.
    #[must_use]
    pub fn health_check_node_port(self, port: u16) -> Self {
        self.spec("healthCheckNodePort", port)
    }

    /// Makes it of type `ExternalName`: a CNAME in the DNS and nothing else.
    #[must_use]
    pub fn external_name(mut self, name: &str) -> Self {
        let spec = self.0["spec"].as_object_mut().expect("a Service with a spec");
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
        self.spec("type", "ExternalName").spec("externalName", name)
    }

    /// When it was made, for example `2026-02-01T00:00:00Z`.
    #[must_use]
    pub fn created(mut self, timestamp: &str) -> Self {
        self.0["metadata"]["creationTimestamp"] = json!(timestamp);
        self
    }

    /// The API server fills this in for every Service that can be reached from outside.
    fn reachable_from_outside(mut self) -> Self {
        let policy = &mut self.0["spec"]["externalTrafficPolicy"];
        if policy.is_null() {
            *policy = json!("Cluster");
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::service;
    use super::*;

    #[test]
    fn a_load_balancer_is_what_the_api_prints() {
        let object = service("shop", "web")
            .cluster_ips(["10.96.0.9"])
            .port("http", "TCP", 80, 8080)
            .node_port(30080)
            .ingress("198.51.100.1")
            .ingress_entry(json!({"hostname": "balancer.example"}))
            .affinity(5)
            .object();
        assert_eq!(object["spec"]["type"], "LoadBalancer");
        assert_eq!(object["spec"]["ports"][0]["nodePort"], 30080);
        assert_eq!(object["spec"]["externalTrafficPolicy"], "Cluster");
        assert_eq!(object["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 5);
        assert_eq!(
            object["status"]["loadBalancer"]["ingress"],
            json!([{"ip": "198.51.100.1", "ipMode": "VIP"}, {"hostname": "balancer.example"}])
        );
    }
}
