//! Nodes that are moved without our server: by a person on the node, or by what the ledger says. A living kube-proxy serves
//! each of them, and the shipped agent runs on it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use crate::backends::Backend as Endpoints;
use crate::cluster::{Cluster, Folder, KUBERNETES_PORT, register_nodes};
use crate::fault;
use crate::kube_proxy::{self, Family, KubeProxy, Mode};
use crate::kube_sim::KubeSim;
use crate::lab::{Lab, LabNode};
use crate::process::{Process, Ran, run};
use crate::rulesets::rulesets;
use crate::small_disk::SmallDisk;
use crate::wait;

/// The agent's program.
const AGENT: &str = "nftfleet-agent";

/// How a node begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeStart {
    /// How kube-proxy programs it.
    pub mode: Mode,
    /// Whether it has IPv6.
    pub ipv6: bool,
}

impl NodeStart {
    /// The node's families.
    pub fn families(self) -> &'static [Family] {
        if self.ipv6 { &Family::BOTH } else { &[Family::V4] }
    }
}

/// A running world. Everything in it ends, in this order, when it is dropped. Nodes are named by their number, from 1.
#[derive(Debug)]
pub struct Standalone {
    agents: BTreeMap<usize, Process>,
    kube_proxies: Vec<KubeProxy>,
    disks: Vec<SmallDisk>,
    rules_of_others: Vec<String>,
    starts: Vec<NodeStart>,
    /// The Kubernetes API.
    pub kubernetes: KubeSim,
    /// The servers behind the Services: they answer as long as they are held.
    pub endpoints: Vec<Endpoints>,
    /// The namespaces.
    pub lab: Lab,
    folder: Folder,
}

impl Standalone {
    /// Builds the lab with the rules of others on every node (kubelet's, Docker's, a CNI's and firewalld's), and waits until
    /// kube-proxy serves each node. No agent runs.
    pub fn new(nodes: &[NodeStart]) -> Self {
        let ipv6: Vec<bool> = nodes.iter().map(|node| node.ipv6).collect();
        let Cluster {
            kubernetes,
            endpoints,
            lab,
            folder,
        } = Cluster::new(&ipv6);
        register_nodes(&kubernetes, &lab);
        let mut rules_of_others = Vec::new();
        let mut kube_proxies = Vec::new();
        for (node, start) in lab.nodes.iter().zip(nodes) {
            for backend in start.mode.neighbours() {
                kube_proxy::install_kubelet(&node.netns, *backend, start.families());
                kube_proxy::install_foreign(&node.netns, *backend, start.families());
            }
            kube_proxy::install_firewalld(&node.netns);
            rules_of_others.push(rulesets(&node.netns));
            let started = KubeProxy::start_unwanted(node, start.mode, &kubernetes, start.families());
            kube_proxies.push(started);
        }
        kube_proxies.iter().for_each(KubeProxy::wait_until_in_sync);
        let disks = lab.nodes.iter().map(|node| SmallDisk::mount(&folder.state(&node.name)));
        Self {
            agents: BTreeMap::new(),
            kube_proxies,
            disks: disks.collect(),
            rules_of_others,
            starts: nodes.to_vec(),
            kubernetes,
            endpoints,
            lab,
            folder,
        }
    }

    /// A node of the lab.
    pub fn node(&self, number: usize) -> &LabNode {
        self.lab.node(number)
    }

    /// Its kube-proxy.
    pub fn kube_proxy(&self, number: usize) -> &KubeProxy {
        &self.kube_proxies[number - 1]
    }

    /// The same, to be ended.
    pub fn kube_proxy_mut(&mut self, number: usize) -> &mut KubeProxy {
        &mut self.kube_proxies[number - 1]
    }

    /// Its rulesets before kube-proxy came: what they must be again, but for our table, after a move and its clean-up.
    pub fn rules_of_others(&self, number: usize) -> &str {
        &self.rules_of_others[number - 1]
    }

    /// Its rulesets now.
    pub fn rulesets(&self, number: usize) -> String {
        rulesets(&self.node(number).netns)
    }

    /// What the agent of a node is told at its start, without a server; a test may add to it.
    pub fn agent_arguments(&self, number: usize) -> Vec<String> {
        self.folder.agent_arguments(&self.node(number).name)
    }

    /// Starts a node's agent with these arguments.
    pub fn start_agent_with(&mut self, number: usize, arguments: &[String], environment: &[(&str, &str)]) {
        let node = self.lab.node(number);
        let name = format!("the agent of {}", node.name);
        let log = self.folder.log(&node.name);
        // The one before must be gone: two can't hold the state folder.
        self.agents.remove(&number);
        let agent = Process::start(&name, &node.netns, AGENT, arguments, environment, &log);
        self.agents.insert(number, agent);
    }

    /// Starts a node's agent, or ends it by SIGKILL and starts it again.
    pub fn start_agent(&mut self, number: usize, environment: &[(&str, &str)]) {
        let arguments = self.agent_arguments(number);
        self.start_agent_with(number, &arguments, environment);
    }

    /// A node's agent.
    pub fn agent(&mut self, number: usize) -> &mut Process {
        let agent = self.agents.get_mut(&number);
        agent.unwrap_or_else(|| panic!("node-{number} has an agent"))
    }

    /// What a node's agent has logged, over all its starts.
    pub fn log(&self, number: usize) -> String {
        let log = self.folder.log(&self.node(number).name);
        std::fs::read_to_string(log).unwrap_or_default()
    }

    /// Runs a command of the agent's program on a node to its end, as a person there does: `["status"]`.
    pub fn command(&self, number: usize, arguments: &[&str], limit: Duration) -> Ran {
        run(&self.node(number).netns, AGENT, arguments, &[], limit)
    }

    /// The same for a command that needs the state folder: `switch`, `rollback` or `status`, and what follows it.
    pub fn command_on_state(&self, number: usize, verb: &str, more: &[&str], limit: Duration) -> Ran {
        let state = self.state_folder(number).display().to_string();
        let arguments = [&[verb, "--state-dir", &state], more].concat();
        self.command(number, &arguments, limit)
    }

    /// The position in a node's ledger; none before the first work.
    pub fn ledger(&self, number: usize) -> Option<String> {
        self.folder.ledger(&self.node(number).name)
    }

    /// Waits until the ledger of a node says one of these.
    pub fn wait_for_position(&self, number: usize, positions: &[&str], limit: Duration) -> String {
        let what = format!("node-{number} to be {positions:?}");
        wait::until_blocking(&what, limit, || {
            self.ledger(number)
                .filter(|position| positions.contains(&position.as_str()))
        })
    }

    /// Where a node's agent keeps its state.
    pub fn state_folder(&self, number: usize) -> PathBuf {
        self.folder.state(&self.node(number).name)
    }

    /// The file system of a node's state folder.
    pub fn disk(&self, number: usize) -> &SmallDisk {
        &self.disks[number - 1]
    }

    /// Does to our table what a stranger's `nft delete table` does.
    pub fn delete_table(&self, number: usize) {
        self.nft(number, "delete table inet nftfleet\n");
    }

    /// Does to our table what a stranger's `nft flush table` does: no rule is left, sets and maps keep their elements.
    pub fn flush_table(&self, number: usize) {
        self.nft(number, "flush table inet nftfleet\n");
    }

    /// Does to everything what a stranger's `nft flush ruleset` does: kube-proxy's rules in the nft backend go too.
    pub fn flush_ruleset(&self, number: usize) {
        self.nft(number, "flush ruleset\n");
    }

    fn nft(&self, number: usize, script: &str) {
        self.node(number).netns.pipe("nft", &["-f", "-"], script);
    }

    /// Makes the node's own connections to an address fail once our table is active, by [`fault::drop_marked_to`]. Gives what
    /// must be in the environment of its agent.
    pub fn break_probe(&self, number: usize, address: Ipv4Addr) -> [(&'static str, &'static str); 1] {
        let backend = self.starts[number - 1].mode.neighbours()[0];
        fault::drop_marked_to(&self.node(number).netns, backend, Some(address));
        [("NFTFLEET_MASQUERADE_BIT", fault::CLASHING_BIT)]
    }

    /// The Kubernetes API answers 503 to everyone, and cuts all watches; or it is back. The harness's kube-proxy does not go
    /// through HTTP: it still sees what a test writes.
    pub fn refuse_api(&self, yes: bool) {
        self.kubernetes.refuse(yes);
        if yes {
            self.kubernetes.cut_watches();
        }
    }

    /// The host of the Kubernetes API takes no packet of it any more, neither of new connections nor of open ones; or it does
    /// again. The Service default/kubernetes is as silent.
    pub fn silence_api(&self, yes: bool) {
        let script = if yes {
            format!(
                "table inet silence {{ chain input {{ type filter hook input priority 0; tcp dport {KUBERNETES_PORT} drop; }}; }}\n"
            )
        } else {
            "delete table inet silence\n".to_owned()
        };
        self.lab.control.pipe("nft", &["-f", "-"], &script);
    }
}
