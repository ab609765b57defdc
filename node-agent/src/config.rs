//! What the agent is told at its start.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use ipnet::IpNet;
use nftfleet_domain::ids::NodeName;

use crate::dataplane::LayoutSettings;
use crate::kube::{LocalTraffic, NodePortAddresses};
use crate::switchover::run::Rehearsal;

/// The agent of one node: reports facts, programs Services into nftables, and moves the node over when its turn comes.
#[derive(Clone, Debug, Parser)]
#[command(name = "nftfleet-agent", version)]
pub struct Config {
    /// Base URL of the server.
    #[arg(long, env = "NFTFLEET_SERVER")]
    pub server: reqwest::Url,

    /// The node's name as Kubernetes knows it.
    #[arg(long, env = "NODE_NAME")]
    pub node: NodeName,

    /// Folder for the credential and the ledger. It must survive restarts and reboots.
    #[arg(long, env = "NFTFLEET_STATE_DIR", default_value = "/var/lib/nftfleet")]
    pub state_dir: PathBuf,

    /// File with the cluster's enrolment token; needed until the agent has a credential.
    #[arg(long, env = "NFTFLEET_ENROLMENT_TOKEN_FILE")]
    pub enrolment_token_file: Option<PathBuf>,

    /// Kubeconfig for the Kubernetes API; without it the agent expects to be a pod of the cluster.
    #[arg(long, env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// How a pod of this node is told from others, as kube-proxy's --detect-local-mode: who connects from elsewhere to a
    /// `ClusterIP` is masqueraded.
    #[arg(long, env = "NFTFLEET_DETECT_LOCAL_MODE", value_enum, default_value_t = DetectLocalMode::ClusterCidr)]
    pub detect_local_mode: DetectLocalMode,

    /// Pod addresses, at most one CIDR per family, as kube-proxy's --cluster-cidr. For mode cluster-cidr; without it nobody
    /// is masqueraded.
    #[arg(long, env = "NFTFLEET_CLUSTER_CIDR", value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,

    /// The bridge that pods hang on, as kube-proxy's --pod-bridge-interface. For mode bridge-interface.
    #[arg(long, env = "NFTFLEET_POD_BRIDGE_INTERFACE", value_parser = interface_name)]
    pub pod_bridge_interface: Option<String>,

    /// The beginning of pods' devices' names, as kube-proxy's --pod-interface-name-prefix. For mode interface-name-prefix.
    #[arg(long, env = "NFTFLEET_POD_INTERFACE_NAME_PREFIX", value_parser = interface_name)]
    pub pod_interface_name_prefix: Option<String>,

    /// On which of the node's addresses node ports listen: `primary`, or networks in which they must be.
    #[arg(long, env = "NFTFLEET_NODEPORT_ADDRESSES", default_value = "primary", value_parser = nodeport_addresses)]
    pub nodeport_addresses: NodePortAddresses,

    /// Masquerade every connection to a `ClusterIP`, whoever makes it.
    #[arg(long, env = "NFTFLEET_MASQUERADE_ALL")]
    pub masquerade_all: bool,

    /// Bit of the packet mark that carries "masquerade" through the hooks, 0-31.
    #[arg(long, env = "NFTFLEET_MASQUERADE_BIT", default_value_t = 14, value_parser = clap::value_parser!(u8).range(0..=31))]
    pub masquerade_bit: u8,

    /// Address for the /healthz and /livez that load balancers ask, as kube-proxy's --healthz-bind-address. Open once this
    /// node's Services are answered by the agent and kube-proxy has left the port.
    #[arg(long, env = "NFTFLEET_HEALTHZ_LISTEN", default_value = "[::]:10256")]
    pub healthz_listen: SocketAddr,

    /// Address for /metrics and the agent's own /healthz; none by default.
    #[arg(long, env = "NFTFLEET_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,

    /// The node's os-release file.
    #[arg(long, default_value = "/etc/os-release")]
    pub os_release: PathBuf,

    /// The node's folder of CNI configurations.
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_dir: PathBuf,

    /// Rehearses a crash: the agent kills itself at POSITION:before or POSITION:after of its ledger. For drills only.
    #[arg(long, env = "NFTFLEET_REHEARSE_CRASH", hide = true)]
    pub rehearse_crash: Option<Rehearsal>,
}

/// How a pod of this node is told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DetectLocalMode {
    /// By `--cluster-cidr`.
    ClusterCidr,
    /// By the Node's `podCIDRs`.
    NodeCidr,
    /// By `--pod-bridge-interface`.
    BridgeInterface,
    /// By `--pod-interface-name-prefix`.
    InterfaceNamePrefix,
}

/// What is wrong with the configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// More than one CIDR of a family.
    #[error("--cluster-cidr has more than one {0} CIDR; at most one per family is allowed")]
    TwoCidrs(&'static str),
    /// A mode without what it goes by.
    #[error("--detect-local-mode {0} needs {1}")]
    Needs(&'static str, &'static str),
}

impl Config {
    /// The table's settings.
    pub const fn layout(&self) -> LayoutSettings {
        LayoutSettings {
            masquerade_bit: self.masquerade_bit,
            masquerade_all: self.masquerade_all,
        }
    }

    /// How pods are told from others.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn local_traffic(&self) -> Result<LocalTraffic, ConfigError> {
        for (name, is_v4) in [("IPv4", true), ("IPv6", false)] {
            let of_family = self.cluster_cidr.iter().filter(|net| net.addr().is_ipv4() == is_v4);
            if of_family.count() > 1 {
                return Err(ConfigError::TwoCidrs(name));
            }
        }
        let needs = |given: &Option<String>, mode, flag| given.clone().ok_or(ConfigError::Needs(mode, flag));
        match self.detect_local_mode {
            DetectLocalMode::ClusterCidr if self.cluster_cidr.is_empty() => Ok(LocalTraffic::None),
            DetectLocalMode::ClusterCidr => Ok(LocalTraffic::ClusterCidr(self.cluster_cidr.clone())),
            DetectLocalMode::NodeCidr => Ok(LocalTraffic::NodeCidr),
            DetectLocalMode::BridgeInterface => {
                let given = &self.pod_bridge_interface;
                needs(given, "bridge-interface", "--pod-bridge-interface").map(LocalTraffic::Bridge)
            }
            DetectLocalMode::InterfaceNamePrefix => {
                let given = &self.pod_interface_name_prefix;
                let name = needs(given, "interface-name-prefix", "--pod-interface-name-prefix")?;
                Ok(LocalTraffic::InterfacePrefix(name))
            }
        }
    }
}

/// Longer than any name that the kernel gives to a device (`IFNAMSIZ`).
const LONGEST_INTERFACE_NAME: usize = 15;

fn interface_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > LONGEST_INTERFACE_NAME {
        return Err("1 to 15 characters are allowed".to_owned());
    }
    Ok(text.to_owned())
}

fn nodeport_addresses(text: &str) -> Result<NodePortAddresses, String> {
    if text == "primary" {
        return Ok(NodePortAddresses::Primary);
    }
    let networks = text.split(',').map(|part| {
        let network = part.trim().parse::<IpNet>();
        network.map_err(|_| format!("{part:?} is neither `primary` nor a network such as 10.0.0.0/8"))
    });
    networks.collect::<Result<_, _>>().map(NodePortAddresses::Networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> Result<Config, String> {
        let always = ["agent", "--server", "http://server", "--node", "node-1"];
        Config::try_parse_from(always.iter().chain(arguments)).map_err(|error| error.to_string())
    }

    fn local_traffic(arguments: &[&str]) -> Result<LocalTraffic, String> {
        config(arguments)?.local_traffic().map_err(|error| error.to_string())
    }

    #[test]
    fn every_mode_says_what_it_needs() {
        assert_eq!(local_traffic(&[]), Ok(LocalTraffic::None));
        assert_eq!(
            local_traffic(&["--detect-local-mode", "node-cidr"]),
            Ok(LocalTraffic::NodeCidr)
        );
        for (mode, flag) in [
            ("bridge-interface", "--pod-bridge-interface"),
            ("interface-name-prefix", "--pod-interface-name-prefix"),
        ] {
            let said = local_traffic(&["--detect-local-mode", mode]).unwrap_err();
            assert_eq!(said, format!("--detect-local-mode {mode} needs {flag}"));
            local_traffic(&["--detect-local-mode", mode, flag, "cni0"]).unwrap();
            config(&[flag, "a-name-of-16-chr"]).unwrap_err();
        }
        let two = local_traffic(&["--cluster-cidr", "10.0.0.0/8,fd00::/8,11.0.0.0/8"]).unwrap_err();
        assert!(two.contains("more than one IPv4"), "{two}");
    }

    #[test]
    fn node_port_addresses_are_primary_or_networks() {
        assert_eq!(config(&[]).unwrap().nodeport_addresses, NodePortAddresses::Primary);
        let given = config(&["--nodeport-addresses", "10.0.0.0/8, fd00::/8"]).unwrap();
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|n| n.parse().unwrap());
        assert_eq!(given.nodeport_addresses, NodePortAddresses::Networks(networks.into()));
        let said = config(&["--nodeport-addresses", "10.0.0.0/8,eth0"]).unwrap_err();
        assert!(said.contains("\"eth0\" is neither `primary` nor a network"), "{said}");
    }
}
