//! What the agent is told at its start.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nftfleet_domain::ids::NodeName;

use crate::dataplane::LayoutSettings;
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

    /// Pod addresses, at most one CIDR per family: who connects from elsewhere to a `ClusterIP` is masqueraded, as with
    /// kube-proxy's --cluster-cidr.
    #[arg(long, env = "NFTFLEET_CLUSTER_CIDR", value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,

    /// Bit of the packet mark that carries "masquerade" through the hooks, 0-31.
    #[arg(long, env = "NFTFLEET_MASQUERADE_BIT", default_value_t = 14, value_parser = clap::value_parser!(u8).range(0..=31))]
    pub masquerade_bit: u8,

    /// Address for /metrics and /healthz; none by default.
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

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// More than one CIDR of a family.
    #[error("--cluster-cidr has more than one {0} CIDR; at most one per family is allowed")]
    TwoCidrs(&'static str),
}

impl Config {
    /// The table's settings.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn layout(&self) -> Result<LayoutSettings, ConfigError> {
        let v4: Vec<Ipv4Net> = self
            .cluster_cidr
            .iter()
            .filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None })
            .collect();
        let v6: Vec<Ipv6Net> = self
            .cluster_cidr
            .iter()
            .filter_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None })
            .collect();
        if v4.len() > 1 {
            return Err(ConfigError::TwoCidrs("IPv4"));
        }
        if v6.len() > 1 {
            return Err(ConfigError::TwoCidrs("IPv6"));
        }
        Ok(LayoutSettings {
            cluster_cidr4: v4.first().copied(),
            cluster_cidr6: v6.first().copied(),
            masquerade_bit: self.masquerade_bit,
        })
    }
}
