//! Builders for Pods, and the `DaemonSet` of kube-proxy.

use serde_json::{Value, json};

use super::build::CREATED;

/// The namespace and the name of kube-proxy's `DaemonSet`.
pub const KUBE_PROXY: (&str, &str) = ("kube-system", "kube-proxy");

/// The label that keeps kube-proxy off a Node, and the value that does it.
pub const SERVICE_PROXY: (&str, &str) = ("nftfleet.io/service-proxy", "nftfleet");

/// Begins a Pod that is on no node yet.
pub fn pod(namespace: &str, name: &str) -> PodBuilder {
    PodBuilder(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": CREATED,
            "labels": {},
        },
        "spec": {
            "containers": [{"name": name, "image": format!("registry.example/{name}:v1")}],
            "restartPolicy": "Always",
        },
        "status": {"phase": "Pending"},
    }))
}

/// The Pod of kube-proxy on a node, as its `DaemonSet` makes it: pending.
pub fn kube_proxy_pod(node: &str) -> PodBuilder {
    let (namespace, name) = KUBE_PROXY;
    let mut pod = pod(namespace, &format!("{name}-{node}"))
        .label("k8s-app", name)
        .node(node);
    pod.0["spec"]["hostNetwork"] = json!(true);
    pod.0["spec"]["priorityClassName"] = json!("system-node-critical");
    pod.0["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "name": name,
        "uid": "00000000-0000-4000-8000-00000000da01",
        "controller": true,
        "blockOwnerDeletion": true,
    }]);
    pod
}

/// kube-proxy's `DaemonSet`, which keeps off the Nodes that [`SERVICE_PROXY`] marks.
pub fn kube_proxy_daemon_set() -> Value {
    let (namespace, name) = KUBE_PROXY;
    let (key, value) = SERVICE_PROXY;
    let elsewhere = json!({"key": key, "operator": "NotIn", "values": [value]});
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [elsewhere]}],
    }}});
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": CREATED,
            "generation": 1,
            "labels": {"k8s-app": name},
            "uid": "00000000-0000-4000-8000-00000000da01",
        },
        "spec": {
            "selector": {"matchLabels": {"k8s-app": name}},
            "template": {
                "metadata": {"labels": {"k8s-app": name}},
                "spec": {
                    "affinity": affinity,
                    "containers": [{"name": name, "image": "registry.k8s.io/kube-proxy:v1.33.4"}],
                    "hostNetwork": true,
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "tolerations": [{"operator": "Exists"}],
                },
            },
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
        },
        "status": {"observedGeneration": 1},
    })
}

/// A Pod being built; [`PodBuilder::object`] ends it.
#[derive(Clone, Debug)]
pub struct PodBuilder(Value);

impl PodBuilder {
    /// The node on which it is to run.
    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.0["spec"]["nodeName"] = json!(name);
        self
    }

    /// One label of the object.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0["metadata"]["labels"][key] = json!(value);
        self
    }

    /// kubelet has started it, and it is ready.
    #[must_use]
    pub fn running(mut self) -> Self {
        let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"];
        let conditions = conditions.map(|kind| json!({"type": kind, "status": "True"}));
        self.0["status"] = json!({"phase": "Running", "conditions": conditions});
        self
    }

    /// It has been told to go at this time, and has not gone yet.
    #[must_use]
    pub fn terminating(mut self, since: &str) -> Self {
        self.0["metadata"]["deletionTimestamp"] = json!(since);
        self.0["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        self
    }

    /// The Pod as the API would print it.
    pub fn object(self) -> Value {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_one_that_the_daemon_set_selects() {
        let (pod, set) = (kube_proxy_pod("node-1").running().object(), kube_proxy_daemon_set());
        let wanted = set["spec"]["selector"]["matchLabels"].as_object().unwrap();
        for (key, value) in wanted {
            assert_eq!(pod["metadata"]["labels"][key], *value);
        }
        assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], set["metadata"]["uid"]);
        assert_eq!(pod["spec"]["nodeName"], "node-1");
    }
}
