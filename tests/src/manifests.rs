//! Kubernetes objects as the API has them: captured ones from YAML files, and builders for the rest.
//!
//! They are plain JSON values, since that is what travels; what they mean is for the code under test to find out.

mod build;
mod exposed;
mod node;
mod pod;
mod topology;

use serde_json::Value;

pub use build::{AddressType, EndpointSliceBuilder, Readiness, ServiceBuilder, endpoint_slice, service};
pub use node::{NodeBuilder, node, node_with, service_cidr};
pub use pod::{KUBE_PROXY, PodBuilder, SERVICE_PROXY, kube_proxy_daemon_set, kube_proxy_pod, pod};

/// The files, each a `kind: List` as `kubectl get -o yaml` prints it.
const FILES: [(&str, &str); 2] = [
    ("services.yaml", include_str!("manifests/services.yaml")),
    ("endpointslices.yaml", include_str!("manifests/endpointslices.yaml")),
];

/// Every object in the files: nine Services and the `EndpointSlices` that belong to them.
///
/// default/kubernetes (its endpoint is the lab's control host), shop/web (dual stack, three backends), shop/api
/// (IPv4, a named target port, two slices), shop/db (dual stack, one endpoint), kube-system/kube-dns (dual stack, UDP
/// and TCP 53), shop/headless, shop/empty (no endpoints), shop/mail (`ExternalName`) and shop/web-canary, which no
/// service proxy may serve because it is labelled for another one.
pub fn all() -> Vec<Value> {
    FILES.iter().flat_map(|(name, text)| parse_list(name, text)).collect()
}

/// The items of one list in YAML. Panics, with the `name` of the file, when it is none.
pub fn parse_list(name: &str, text: &str) -> Vec<Value> {
    let mut list: Value = serde_yaml_ng::from_str(text).unwrap_or_else(|error| panic!("{name} is no YAML: {error}"));
    match list["items"].take() {
        Value::Array(items) => items,
        _ => panic!("{name} has no items"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slice_belongs_to_a_service() {
        let objects = all();
        let owners: Vec<_> = objects.iter().filter(|object| object["kind"] == "Service").collect();
        assert_eq!(owners.len(), 9);
        for slice in objects.iter().filter(|object| object["kind"] == "EndpointSlice") {
            let owner = &slice["metadata"]["labels"]["kubernetes.io/service-name"];
            let found = owners.iter().any(|service| {
                service["metadata"]["name"] == *owner
                    && service["metadata"]["namespace"] == slice["metadata"]["namespace"]
            });
            assert!(found, "{owner} is no Service");
        }
    }

    #[test]
    fn a_built_service_looks_like_a_captured_one() {
        let objects = all();
        let web = objects
            .iter()
            .find(|object| object["metadata"]["name"] == "web")
            .unwrap();
        let built = service("shop", "web")
            .cluster_ips(["10.96.10.1", "fd00:10:96::a01"])
            .port("http", "TCP", 80, 8080)
            .object();
        for field in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "ports",
            "type",
            "sessionAffinity",
        ] {
            assert_eq!(built["spec"][field], web["spec"][field], "spec.{field}");
        }
    }
}
