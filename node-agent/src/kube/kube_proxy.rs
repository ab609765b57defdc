//! kube-proxy on this node, as the Kubernetes API has it: sent away and let in again by a label of the Node.
//!
//! kube-proxy's `DaemonSet` must exclude nodes with the label by its node affinity (docs/OPERATIONS.md). Its controller then deletes
//! the Pod of a node that gets the label, and makes one again when the label goes.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use super::watch::{ConnectError, client};

/// How long one question to the API may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What kube-proxy's Pods are labelled with by kubeadm, and by the platforms that FACTS name.
const PODS: &str = "k8s-app=kube-proxy";

/// A label of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = "KEY=VALUE is allowed, such as nftfleet.io/service-proxy=nftfleet";
        let (key, value) = text.split_once('=').ok_or(allowed)?;
        let (prefix, name) = key.rsplit_once('/').unwrap_or(("", key));
        // https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
        let is_word = |word: &str| {
            let edge = |c: char| c.is_ascii_alphanumeric();
            (1..=63).contains(&word.len())
                && word.starts_with(edge)
                && word.ends_with(edge)
                && word.chars().all(|c| edge(c) || "-_.".contains(c))
        };
        let is_prefix = !key.starts_with('/')
            && prefix.len() <= 253
            && prefix
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c));
        if is_word(name) && is_word(value) && is_prefix {
            Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            })
        } else {
            Err(format!("{allowed}; each word has 1 to 63 letters, digits, -, _ and ."))
        }
    }
}

/// Why kube-proxy could not be sent away, let in, or asked for.
#[derive(Debug, thiserror::Error)]
pub enum KubeProxyError {
    /// There is no way to the API.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The API refused.
    #[error("the Kubernetes API refuses to {what}: {source}")]
    Api {
        /// What was asked.
        what: &'static str,
        /// Why.
        source: kube::Error,
    },
    /// No answer.
    #[error("the Kubernetes API gave no answer in {} s", ANSWER_WITHIN.as_secs())]
    Silent,
}

/// kube-proxy on this node.
#[derive(Clone, Debug)]
pub struct KubeProxy {
    /// How to reach the API.
    pub kubeconfig: Option<PathBuf>,
    /// The node's name.
    pub node: String,
    /// The label that keeps it away.
    pub label: Label,
}

impl KubeProxy {
    /// Sets the label.
    ///
    /// # Errors
    /// See [`KubeProxyError`].
    pub async fn send_away(&self) -> Result<(), KubeProxyError> {
        self.set_label(json!(self.label.value)).await
    }

    /// Takes the label away.
    ///
    /// # Errors
    /// See [`KubeProxyError`].
    pub async fn let_in(&self) -> Result<(), KubeProxyError> {
        self.set_label(json!(null)).await
    }

    async fn set_label(&self, value: serde_json::Value) -> Result<(), KubeProxyError> {
        let patch = json!({ "metadata": { "labels": { &self.label.key: value } } });
        let patched = async {
            let nodes: Api<Node> = Api::all(client(self.kubeconfig.as_deref()).await?);
            let done = nodes
                .patch(&self.node, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            done.map(drop).map_err(|source| KubeProxyError::Api {
                what: "label the Node",
                source,
            })
        };
        within(patched).await
    }

    /// Whether no Pod of it is on this node, one that ends among them.
    ///
    /// # Errors
    /// See [`KubeProxyError`].
    pub async fn is_gone(&self) -> Result<bool, KubeProxyError> {
        let listed = async {
            let pods: Api<Pod> = Api::all(client(self.kubeconfig.as_deref()).await?);
            let on_node = format!("spec.nodeName={}", self.node);
            let found = pods.list(&ListParams::default().labels(PODS).fields(&on_node)).await;
            found
                .map(|pods| pods.items.is_empty())
                .map_err(|source| KubeProxyError::Api {
                    what: "list kube-proxy's Pods of the node",
                    source,
                })
        };
        within(listed).await
    }
}

async fn within<T>(asking: impl Future<Output = Result<T, KubeProxyError>>) -> Result<T, KubeProxyError> {
    let answer = tokio::time::timeout(ANSWER_WITHIN, asking).await;
    answer.unwrap_or(Err(KubeProxyError::Silent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_or_refused_with_what_is_allowed() {
        let label: Label = "nftfleet.io/service-proxy=nftfleet".parse().unwrap();
        assert_eq!(
            (label.key.as_str(), label.value.as_str()),
            ("nftfleet.io/service-proxy", "nftfleet")
        );
        for bad in [
            "",
            "a",
            "a=",
            "=b",
            "a b=c",
            "Example.com/a=b",
            "-a=b",
            "a=b=c",
            "x/y/z=é",
            "/a=b",
        ] {
            let said = bad.parse::<Label>().unwrap_err();
            assert!(said.contains("KEY=VALUE"), "{bad}: {said}");
        }
    }
}
