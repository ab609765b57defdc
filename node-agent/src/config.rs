//! What the agent is told at its start.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use ipnet::IpNet;
use nftfleet_domain::ids::NodeName;
use nftfleet_domain::rollout::ProbeTarget;
use nftfleet_domain::service::{Protocol, Vip};

use crate::dataplane::LayoutSettings;
use crate::dataplane::explain::{BadPacket, Packet};
use crate::kube::kube_proxy::Label;
use crate::kube::{LocalTraffic, NodePortAddresses};
use crate::switchover::run::Rehearsal;

/// What the program is asked for.
#[derive(Clone, Debug)]
pub enum Task {
    /// To run as the node's agent.
    Run(Box<Config>),
    /// To answer a question and end, or to guard.
    Answer(Question),
}

impl Task {
    /// Reads the command line. With a question nothing of what the agent needs is asked for, although it may stand in the
    /// environment, as it does in the agent's own pod.
    ///
    /// # Errors
    /// What is wrong with it, or the help that it asks for.
    pub fn try_parse_from<A: Into<OsString> + Clone>(
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self, clap::Error> {
        let agent = Config::command();
        // The questions' own text would take its place.
        let about = agent.get_about().cloned().unwrap_or_default();
        let command = Question::augment_subcommands(agent)
            .about(about)
            .long_about(None::<&str>)
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
            .subcommand_required(false)
            .arg_required_else_help(false)
            .disable_help_subcommand(true);
        let matches = command.try_get_matches_from(arguments)?;
        if matches.subcommand_name().is_some() {
            return Question::from_arg_matches(&matches).map(Self::Answer);
        }
        Config::from_arg_matches(&matches).map(|config| Self::Run(Box::new(config)))
    }
}

/// What is asked for or done on this node alone, without a server.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Question {
    /// Says what would become of the first packet of a connection on this node, and why.
    Explain(ExplainArguments),
    /// Moves this node to nftfleet's data plane, by the agent that runs here, and tells how it goes.
    Switch(SwitchArguments),
    /// Takes this node back to kube-proxy's rules, from wherever it is.
    Rollback(RollbackArguments),
    /// Says where this node is.
    Status(StatusArguments),
    /// The dead-man's switch: puts the table to sleep when the agent does not disarm it in time. It is armed by the agent.
    Guard(GuardArguments),
}

/// How to move the node.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct SwitchArguments {
    /// The agent's state folder.
    #[arg(long, env = "NFTFLEET_STATE_DIR", default_value = "/var/lib/nftfleet")]
    pub state_dir: PathBuf,

    /// For how many seconds the probe must pass after the flip before kube-proxy leaves, 1-86400.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub hold_seconds: u32,

    /// A Service's TCP port that must answer before and after, as NAMESPACE/NAME:PORT; may be repeated. A sample of all others
    /// is taken besides.
    #[arg(long, value_name = "NAMESPACE/NAME:PORT", value_parser = probe_target)]
    pub probe: Vec<ProbeTarget>,

    /// Gives the order and ends, without telling how it goes.
    #[arg(long)]
    pub no_wait: bool,
}

/// How to go back.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct RollbackArguments {
    /// The agent's state folder.
    #[arg(long, env = "NFTFLEET_STATE_DIR", default_value = "/var/lib/nftfleet")]
    pub state_dir: PathBuf,

    /// Makes the table dormant at once, even where kube-proxy's rules are not seen to be in sync. For emergencies.
    #[arg(long)]
    pub now: bool,

    /// Gives the order and ends, without telling how it goes.
    #[arg(long)]
    pub no_wait: bool,
}

/// Which node.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct StatusArguments {
    /// The agent's state folder.
    #[arg(long, env = "NFTFLEET_STATE_DIR", default_value = "/var/lib/nftfleet")]
    pub state_dir: PathBuf,

    /// Says it as JSON.
    #[arg(long)]
    pub json: bool,
}

/// To be a guard, or to ask the one that listens.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct GuardArguments {
    /// Says the state of the guard that listens in this network namespace, as JSON.
    #[arg(long)]
    pub query: bool,

    /// Disarms it for this attempt, as --query names it.
    #[arg(long, value_name = "ID", conflicts_with = "query")]
    pub disarm: Option<String>,

    /// As the agent starts it: it ends when there is nothing to guard.
    #[arg(long, hide = true, conflicts_with_all = ["query", "disarm"])]
    pub spawned: bool,
}

/// The first packet of which connection.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct ExplainArguments {
    /// Where the connection goes: an IPv4 or IPv6 address.
    #[arg(value_name = "IP", value_parser = address)]
    pub to: IpAddr,

    /// Its protocol: tcp, udp or sctp.
    #[arg(value_name = "PROTO", value_parser = protocol)]
    pub protocol: Protocol,

    /// Its port, 1-65535.
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// Where it comes from; without it somebody outside is meant, and what differs for pods and for the node is said too.
    #[arg(long, value_name = "IP", value_parser = address)]
    pub from: Option<IpAddr>,

    /// The device through which it comes in, where pods are known by that.
    #[arg(long, value_name = "NAME", value_parser = interface_name, requires = "from")]
    pub device: Option<String>,

    /// Says it as JSON, with every endpoint.
    #[arg(long)]
    pub json: bool,
}

impl ExplainArguments {
    /// The packet that is asked about.
    ///
    /// # Errors
    /// See [`BadPacket`].
    pub fn packet(&self) -> Result<Packet, BadPacket> {
        let to = Vip {
            address: self.to,
            protocol: self.protocol,
            port: self.port,
        };
        Packet::new(to, self.from, self.device.clone())
    }
}

/// The agent of one node: reports facts, programs Services into nftables, and moves the node over when its turn comes.
#[derive(Clone, Debug, Parser)]
#[command(name = "nftfleet-agent", version)]
pub struct Config {
    /// Base URL of the server; without it the node is moved by `switch` alone.
    #[arg(long, env = "NFTFLEET_SERVER")]
    pub server: Option<reqwest::Url>,

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

    /// The label of the Node that keeps kube-proxy away, which the node affinity of its `DaemonSet` must exclude: KEY=VALUE. Without it
    /// kube-proxy has to be stopped by hand after a move.
    #[arg(long, env = "NFTFLEET_KUBE_PROXY_LABEL")]
    pub kube_proxy_label: Option<Label>,

    /// For how many seconds kube-proxy's rules stand by after it has gone, 0-86400.
    #[arg(long, env = "NFTFLEET_STAND_BY_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub stand_by_seconds: u32,

    /// For how many seconds a node that leaves IPVS mode waits for connections that need `kube-ipvs0`, 0-86400.
    #[arg(long, env = "NFTFLEET_IPVS_DRAIN_SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub ipvs_drain_seconds: u32,

    /// kube-proxy's metrics address, as its --metrics-bind-address: there it is asked for its mode.
    #[arg(long, env = "NFTFLEET_KUBE_PROXY_METRICS", default_value = "127.0.0.1:10249")]
    pub kube_proxy_metrics: SocketAddr,

    /// The node's os-release file.
    #[arg(long, default_value = "/etc/os-release")]
    pub os_release: PathBuf,

    /// The node's folder of CNI configurations.
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_dir: PathBuf,

    /// For drills: the agent kills itself at POSITION:before or POSITION:after of its ledger, or stays at POSITION:hold until a
    /// person asks to go back.
    #[arg(long, env = "NFTFLEET_REHEARSE", hide = true)]
    pub rehearse: Option<Rehearsal>,
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

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| "an IPv4 or IPv6 address is allowed, such as 10.96.0.1 or fd00::1".to_owned())
}

fn probe_target(text: &str) -> Result<ProbeTarget, String> {
    let parts = || {
        let (namespace, rest) = text.split_once('/')?;
        let (name, port) = rest.split_once(':')?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        (!namespace.is_empty() && !name.is_empty()).then(|| ProbeTarget {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            port,
        })
    };
    parts().ok_or_else(|| "NAMESPACE/NAME:PORT is allowed, such as default/kubernetes:443".to_owned())
}

fn protocol(text: &str) -> Result<Protocol, String> {
    let protocol = text.to_ascii_uppercase().parse::<Protocol>();
    protocol.map_err(|_| "tcp, udp or sctp is allowed".to_owned())
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

    fn task(arguments: &str) -> Result<Task, String> {
        let arguments = std::iter::once("agent").chain(arguments.split_whitespace());
        Task::try_parse_from(arguments).map_err(|error| error.to_string())
    }

    fn question(arguments: &str) -> Result<ExplainArguments, String> {
        match task(arguments)? {
            Task::Answer(Question::Explain(asked)) => Ok(asked),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_question_needs_nothing_of_what_the_agent_needs() {
        let asked = question("explain 10.96.0.1 TCP 443 --from 192.0.2.1 --device eth0 --json").unwrap();
        assert_eq!((asked.protocol, asked.json), (Protocol::Tcp, true));
        let packet = asked.packet().unwrap();
        assert_eq!(packet.to.to_string(), "10.96.0.1 tcp 443");
        assert_eq!((packet.from, packet.device.as_deref()), (asked.from, Some("eth0")));
        let asked = question("explain fd00::1 sctp 1").unwrap();
        assert_eq!((asked.from, asked.device, asked.json), (None, None, false));
    }

    #[test]
    fn a_guard_is_run_or_asked() {
        let guard = |arguments: &str| match task(&format!("guard {arguments}"))? {
            Task::Answer(Question::Guard(guard)) => Ok(guard),
            other => Err(format!("{other:?}")),
        };
        let run = guard("").unwrap();
        assert_eq!((run.query, run.spawned, run.disarm), (false, false, None));
        assert!(guard("--spawned").unwrap().spawned);
        assert_eq!(guard("--disarm a/1").unwrap().disarm.as_deref(), Some("a/1"));
        for mixed in ["--query --disarm a/1", "--query --spawned", "--disarm a/1 --spawned"] {
            let error = guard(mixed).unwrap_err();
            assert!(error.contains("cannot be used with"), "{error}");
        }
    }

    #[test]
    fn the_help_tells_of_the_agent_and_of_its_questions() {
        let help = task("--help").unwrap_err();
        assert!(help.starts_with("The agent of one node"), "{help}");
        assert!(help.contains("explain"), "{help}");
    }

    #[test]
    fn the_agent_runs_as_before() {
        let Ok(Task::Run(config)) = task("--server http://server --node node-1 --masquerade-bit 3") else {
            panic!("no agent");
        };
        assert_eq!((config.node.to_string().as_str(), config.masquerade_bit), ("node-1", 3));
        for (given, said) in [
            ("", "--node <NODE>"),
            ("--server http://server", "--node <NODE>"),
            ("--node node-1 --server explain", "relative URL without a base"),
            (
                "--server http://server --node node-1 explain 10.96.0.1 tcp 1",
                "cannot be used with",
            ),
            ("--server http://server --node node-1 run", "'run' cannot be used"),
        ] {
            let error = task(given).unwrap_err();
            assert!(error.contains(said), "{given}: {error}");
        }
    }

    #[test]
    fn a_bad_question_names_the_field_and_what_is_allowed() {
        for (given, field, allowed) in [
            ("10.96.0.300 tcp 80", "'<IP>'", "IPv4 or IPv6 address"),
            ("10.96.0.1 icmp 80", "'<PROTO>'", "tcp, udp or sctp"),
            ("10.96.0.1 tcp 0", "'<PORT>'", "1..=65535"),
            ("10.96.0.1 tcp 65536", "'<PORT>'", "1..=65535"),
            ("10.96.0.1 tcp http", "'<PORT>'", "invalid digit"),
            ("10.96.0.1 tcp", "<PORT>", "required"),
            (
                "10.96.0.1 tcp 80 --from node-1",
                "'--from <IP>'",
                "IPv4 or IPv6 address",
            ),
            ("10.96.0.1 tcp 80 --device eth0", "--from <IP>", "required"),
            (
                "10.96.0.1 tcp 80 --from 192.0.2.1 --device a-name-of-16-chr",
                "'--device <NAME>'",
                "1 to 15",
            ),
        ] {
            let error = question(&format!("explain {given}")).unwrap_err();
            assert!(error.contains(field) && error.contains(allowed), "{given}: {error}");
        }
        let families = question("explain 10.96.0.1 tcp 80 --from fd00::1")
            .unwrap()
            .packet()
            .unwrap_err();
        assert!(families.to_string().contains("--from is an IPv6 address"), "{families}");
    }
}
