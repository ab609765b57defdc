//! A whole small world: a lab whose nodes kube-proxy serves, a Kubernetes API, our server, and an agent on every node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use nftfleet_web_api_spec::types::{
    NewRollout, Node, Probe, Rollout, RolloutAction, RolloutSettings, RolloutState, StageSize, StageSpec, Task, Verdict,
};
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;

use crate::api::Api;
use crate::backends::Backend as Server;
use crate::cluster::{Cluster, Folder, register_nodes};
use crate::guard;
use crate::kube_proxy::{self, Backend, Family, KubeProxy, Mode};
use crate::kube_sim::KubeSim;
use crate::lab::{CONTROL4, Lab};
use crate::manifests;
use crate::process::Process;
use crate::wait;

/// The cluster's name at our server.
pub const CLUSTER: &str = "lab";

/// The operator's token.
pub const OPERATOR_TOKEN: &str = "operator-of-the-lab";

/// Where our server listens, in the control namespace.
const SERVER_PORT: u16 = 8640;

/// How long a server may take from its start to being ready: a first one makes its database.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// How long agents may take to enrol and report.
const REPORTED_WITHIN: Duration = Duration::from_secs(30);

/// How a node begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// The iptables backend in which kube-proxy's rules are.
    pub backend: Backend,
    /// Whether the node has IPv6.
    pub ipv6: bool,
}

impl NodeSpec {
    /// The node's families.
    pub fn families(self) -> &'static [Family] {
        if self.ipv6 { &Family::BOTH } else { &[Family::V4] }
    }
}

/// A running world. Everything in it ends when it is dropped.
pub struct World {
    runtime: Runtime,
    /// Calls of our server's API.
    pub api: Api,
    agents: BTreeMap<usize, Process>,
    server: Process,
    token_file: PathBuf,
    /// The Kubernetes API.
    pub kubernetes: KubeSim,
    /// Those that live, if any do.
    kube_proxies: Vec<KubeProxy>,
    /// The endpoints: they answer as long as they are held.
    _endpoints: Vec<Server>,
    /// The namespaces.
    pub lab: Lab,
    folder: Folder,
}

impl World {
    /// Builds the lab, installs kube-proxy's rules, and starts everything but the agents. The calling thread moves into the
    /// control namespace for good.
    pub fn new(nodes: &[NodeSpec]) -> Self {
        let ipv6: Vec<bool> = nodes.iter().map(|node| node.ipv6).collect();
        let Cluster {
            kubernetes,
            endpoints,
            lab,
            folder,
        } = Cluster::new(&ipv6);
        let objects = manifests::all();
        for (node, spec) in lab.nodes.iter().zip(nodes) {
            let families = spec.families();
            kube_proxy::install_kubelet(&node.netns, spec.backend, families);
            kube_proxy::install_foreign(&node.netns, spec.backend, families);
            kube_proxy::install(&node.netns, spec.backend, &objects, families);
        }
        lab.control.enter();
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let base = format!("http://{CONTROL4}:{SERVER_PORT}");
        let api = Api::new(&base, OPERATOR_TOKEN);
        let server = start_server(&lab, &folder);
        let token_file = folder.path().join("enrolment-token");
        let mut world = Self {
            runtime,
            api,
            agents: BTreeMap::new(),
            server,
            token_file,
            kubernetes,
            kube_proxies: Vec::new(),
            _endpoints: endpoints,
            lab,
            folder,
        };
        world.wait_until_ready();
        let token = world.run(async |api| {
            api.create_cluster(CLUSTER).await.expect("a cluster can be registered");
            api.create_enrolment_token(CLUSTER).await.expect("a token can be made")
        });
        std::fs::write(&world.token_file, token.token).expect("the token can be written");
        world
    }

    /// Puts the Nodes into the API and lets kube-proxy live on each, where only its rules were before: it follows Services until
    /// it is stopped by the Node's label.
    pub fn start_kube_proxies(&mut self, nodes: &[NodeSpec]) {
        register_nodes(&self.kubernetes, &self.lab);
        for (node, spec) in self.lab.nodes.iter().zip(nodes) {
            let mode = match spec.backend {
                Backend::Legacy => Mode::IptablesLegacy,
                Backend::Nft => Mode::IptablesNft,
            };
            let started = KubeProxy::start_unwanted(node, mode, &self.kubernetes, spec.families());
            self.kube_proxies.push(started);
        }
        self.kube_proxies.iter().for_each(KubeProxy::wait_until_in_sync);
    }

    /// A node's living kube-proxy.
    pub fn kube_proxy(&self, number: usize) -> &KubeProxy {
        &self.kube_proxies[number - 1]
    }

    /// The same, with an agent on every node that has reported.
    pub fn with_agents(nodes: &[NodeSpec]) -> Self {
        let mut world = Self::new(nodes);
        for number in 1..=nodes.len() {
            world.start_agent(number, &[]);
        }
        for number in 1..=nodes.len() {
            world.wait_until_reported(number);
        }
        world
    }

    /// Runs calls of the API to their end.
    pub fn run<T>(&mut self, calls: impl AsyncFnOnce(&Api) -> T) -> T {
        let api = self.api.clone();
        self.runtime.block_on(calls(&api))
    }

    /// Where the processes keep their state and logs.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Waits until the server is ready.
    pub fn wait_until_ready(&mut self) {
        self.run(async |api| {
            wait::until("the server to be ready", READY_WITHIN, async || {
                api.is_ready().await.then_some(())
            })
            .await;
        });
    }

    /// Starts the server again after its end, on the same data.
    pub fn start_server(&mut self) {
        self.server = start_server(&self.lab, &self.folder);
    }

    /// Kills the server with SIGKILL; its database is left to itself.
    pub fn kill_server(&mut self) {
        self.server.kill();
    }

    /// Starts the agent of a node.
    pub fn start_agent(&mut self, number: usize, environment: &[(&str, &str)]) {
        let node = self.lab.node(number);
        let mut arguments = self.folder.agent_arguments(&node.name);
        arguments.extend([
            "--server".to_owned(),
            format!("http://{CONTROL4}:{SERVER_PORT}"),
            "--enrolment-token-file".to_owned(),
            self.token_file.display().to_string(),
        ]);
        let log = self.folder.log(&node.name);
        let name = format!("the agent of {}", node.name);
        let agent = Process::start(&name, &node.netns, "nftfleet-agent", &arguments, environment, &log);
        self.agents.insert(number, agent);
    }

    /// A node's agent.
    pub fn agent(&mut self, number: usize) -> &mut Process {
        self.agents
            .get_mut(&number)
            .unwrap_or_else(|| panic!("node-{number} has an agent"))
    }

    /// The position in a node's ledger; none before the first work.
    pub fn ledger(&self, number: usize) -> Option<String> {
        self.folder.ledger(&self.lab.node(number).name)
    }

    /// Waits until a node has reported and is ready to be moved.
    pub fn wait_until_reported(&mut self, number: usize) {
        let name = self.lab.node(number).name.clone();
        self.run(async |api| {
            wait::until(&format!("{name} to be ready"), REPORTED_WITHIN, async || {
                let nodes = api.nodes(CLUSTER).await.ok()?;
                nodes
                    .into_iter()
                    .find(|n| n.name == name && n.readiness.verdict == Verdict::Ready)
                    .map(drop)
            })
            .await;
        });
    }

    /// A node as the server knows it.
    pub fn node(&mut self, number: usize) -> Node {
        let name = self.lab.node(number).name.clone();
        self.run(async |api| {
            let nodes = api.nodes(CLUSTER).await.expect("nodes can be listed");
            nodes
                .into_iter()
                .find(|n| n.name == name)
                .unwrap_or_else(|| panic!("{name} is known"))
        })
    }

    /// Plans and starts a rollout.
    pub fn start_rollout(&mut self, wish: &NewRollout) -> Rollout {
        self.run(async |api| {
            let draft = api.create_rollout(wish).await.expect("the rollout can be planned");
            api.start_rollout(&draft).await.expect("the rollout can be started")
        })
    }

    /// Waits until a rollout has ended and none of its nodes is under way; gives it with its tasks.
    pub fn wait_for_end(&mut self, rollout: Uuid, limit: Duration) -> (Rollout, Vec<Task>) {
        self.run(async |api| {
            wait::until("the rollout to end", limit, async || {
                let found = api.rollout(rollout).await.ok()?;
                let tasks = api.tasks(rollout).await.ok()?;
                let is_over = has_ended(found.state) && tasks.iter().all(|task| is_end(&task.state));
                is_over.then_some((found, tasks))
            })
            .await
        })
    }

    /// Waits until a node's task is in one of these states.
    pub fn wait_for_task(&mut self, rollout: Uuid, node: &str, states: &[&str], limit: Duration) -> Task {
        self.run(async |api| {
            wait::until(&format!("{node} to be {states:?}"), limit, async || {
                let tasks = api.tasks(rollout).await.ok()?;
                tasks
                    .into_iter()
                    .find(|task| task.node == node && states.contains(&task.state.as_str()))
            })
            .await
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // SIGTERM, so that the server stops its database too.
        self.agents.clear();
        self.server.terminate();
        // They outlive their agents: that is what they are for.
        for node in &self.lab.nodes {
            guard::kill_it(&node.netns);
        }
    }
}

fn start_server(lab: &Lab, folder: &Folder) -> Process {
    let arguments = [
        "--listen".to_owned(),
        format!("{CONTROL4}:{SERVER_PORT}"),
        "--data-dir".to_owned(),
        folder.path().join("server").display().to_string(),
    ];
    let environment = [("NFTFLEET_OPERATOR_TOKEN", OPERATOR_TOKEN)];
    let log = folder.path().join("server.log");
    Process::start(
        "the server",
        &lab.control,
        "nftfleet-server",
        &arguments,
        &environment,
        &log,
    )
}

fn has_ended(state: RolloutState) -> bool {
    use RolloutState::{Aborted, Failed, Succeeded, SucceededWithFailures};
    matches!(state, Succeeded | SucceededWithFailures | Failed | Aborted)
}

fn is_end(state: &str) -> bool {
    let ends = [
        "CONFIRMED",
        "ALREADY_DONE",
        "REVERTED",
        "REJECTED",
        "TIMED_OUT",
        "NEEDS_ATTENTION",
        "SKIPPED",
    ];
    ends.contains(&state)
}

/// A rollout of one stage over these nodes (all, if none is named), with limits that suit a test: a soak of a second.
pub fn rollout(nodes: &[&str]) -> NewRollout {
    NewRollout {
        name: "move".to_owned(),
        action: RolloutAction::MoveToNftfleet,
        clusters: vec![CLUSTER.to_owned()],
        nodes: (!nodes.is_empty()).then(|| nodes.iter().map(|n| (*n).to_owned()).collect()),
        stages: vec![StageSpec {
            name: "all".to_owned(),
            size: StageSize::Rest,
        }],
        settings: RolloutSettings {
            max_concurrent: Some(10),
            node_soak_seconds: Some(1),
            confirm_within_seconds: Some(60),
            node_deadline_seconds: Some(120),
            probe: Some(vec![probe("default", "kubernetes", 443), probe("shop", "web", 80)]),
            ..RolloutSettings::default()
        },
    }
}

/// A probe's target.
pub fn probe(namespace: &str, name: &str, port: u16) -> Probe {
    Probe {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        port,
    }
}
