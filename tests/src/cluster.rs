//! What every world of a test begins with: a lab, a Kubernetes API that knows its nodes, endpoints that answer, and a folder.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::backends::Backend as Endpoints;
use crate::kube_sim::KubeSim;
use crate::lab::{CLUSTER_CIDR4, CLUSTER_CIDR6, CONTROL4, Lab, LabNode, LabSpec};
use crate::manifests::{self, node_with};

/// Where the Kubernetes API listens, in the control namespace.
pub(crate) const KUBERNETES_PORT: u16 = 6443;

/// How many lines of each log are shown when a test fails.
const LOG_TAIL: usize = 40;

/// The running parts; they end in this order when they are dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The Kubernetes API, which holds the manifests.
    pub kubernetes: KubeSim,
    /// The servers behind the Services: they answer as long as they are held.
    pub endpoints: Vec<Endpoints>,
    /// The namespaces.
    pub lab: Lab,
    /// State and logs of the processes.
    pub folder: Folder,
}

impl Cluster {
    /// Builds the lab with one node per entry, which says whether it has IPv6.
    pub fn new(ipv6: &[bool]) -> Self {
        let without_ipv6 = (1..).zip(ipv6).filter(|(_, has)| !**has).map(|(number, _)| number);
        let lab = Lab::new(&LabSpec {
            nodes: ipv6.len(),
            backends: 3,
            without_ipv6: without_ipv6.collect(),
        });
        let endpoints = lab.serve_backends(&[8080, 9090, 9053], &[9053]);
        let kubernetes = KubeSim::start_in(&lab.control, SocketAddr::new(CONTROL4.into(), KUBERNETES_PORT));
        kubernetes.load(manifests::all());
        let folder = Folder::new();
        std::fs::write(folder.kubeconfig(), kubernetes.kubeconfig()).expect("a kubeconfig can be written");
        Self {
            kubernetes,
            endpoints,
            lab,
            folder,
        }
    }
}

/// Puts a Node per node of the lab into the API, and the `DaemonSet` of kube-proxy.
pub fn register_nodes(kubernetes: &KubeSim, lab: &Lab) {
    for LabNode {
        name, address4, ipv6, ..
    } in &lab.nodes
    {
        let node = node_with(name).address(&address4.to_string());
        let node = match ipv6 {
            Some(ipv6) => node.address(&ipv6.address.to_string()),
            None => node,
        };
        kubernetes.apply(node.object());
    }
    kubernetes.apply(manifests::kube_proxy_daemon_set());
}

/// A folder that goes on drop; if a test fails, the ends of the logs (`*.log`) in it are shown first.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("nftfleet-lab-").tempdir();
        Self(folder.expect("a folder for the lab"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The kubeconfig of the cluster's API.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path().join("kubeconfig")
    }

    /// Where a node's agent keeps its state.
    pub fn state(&self, node: &str) -> PathBuf {
        self.path().join(node)
    }

    /// Where a node's agent logs.
    pub fn log(&self, node: &str) -> PathBuf {
        self.path().join(format!("{node}.log"))
    }

    /// What a node's agent must be told, with or without a server.
    pub fn agent_arguments(&self, node: &str) -> Vec<String> {
        [
            ("--node", node.to_owned()),
            ("--state-dir", self.state(node).display().to_string()),
            ("--kubeconfig", self.kubeconfig().display().to_string()),
            ("--cluster-cidr", format!("{CLUSTER_CIDR4},{CLUSTER_CIDR6}")),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    /// The position in a node's ledger; none before the first work.
    pub fn ledger(&self, node: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.state(node).join("ledger.json")).ok()?;
        let ledger: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(ledger["position"].as_str()?.to_owned())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for entry in std::fs::read_dir(self.path()).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|ending| ending == "log") {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
                eprintln!("---- {}\n{}", entry.file_name().display(), tail.join("\n"));
            }
        }
    }
}
