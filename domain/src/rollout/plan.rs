//! From a wish to an immutable plan: which nodes, in which stages, under which limits.
//!
//! A plan leaves no choice to its execution. Its hash covers everything in it, and `start` must quote the hash, so nobody
//! starts another plan than the one that was looked at.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::{ClusterName, NodeId, NodeName, RolloutName, StageName};

/// What a rollout does to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// The agent becomes the node's Service proxy.
    MoveToNftfleet,
}

/// How many nodes a stage takes of those that earlier stages left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StageSize {
    /// So many nodes, at least 1.
    Count(u32),
    /// So many percent of all the rollout's nodes, 1-100, rounded up: at least one node.
    Percent(u32),
    /// Exactly these.
    Nodes(Vec<NodeName>),
    /// All that are left.
    Rest,
}

/// A stage as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageRequest {
    /// The stage's name.
    pub name: StageName,
    /// Its size.
    pub size: StageSize,
}

/// What the agent's probe connects to: a TCP port of a Service's `ClusterIP`s.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProbeTarget {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// The Service's port; every `ClusterIP` of the Service is tried on it.
    pub port: u16,
}

/// The limits of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// How many nodes may be under way at the same time, at least 1.
    pub max_concurrent: u32,
    /// How many nodes may end otherwise than wanted before the rollout stops; 0 stops at the first.
    pub max_failures: u32,
    /// How long a node's probes must keep passing before it is confirmed, in seconds.
    pub node_soak_seconds: u32,
    /// How long a stage waits after its last node before the next one opens, in seconds.
    pub stage_soak_seconds: u32,
    /// The dead-man's switch: an agent that is not confirmed so many seconds after its flip goes back by itself.
    pub confirm_within_seconds: u32,
    /// When the server gives up on a node that it granted, in seconds; longer than `confirm_within_seconds`.
    pub node_deadline_seconds: u32,
    /// What the probe connects to.
    pub probe: Vec<ProbeTarget>,
}

impl Default for Settings {
    /// One node at a time, no failure allowed, a soak of 30 s, two minutes to be confirmed, ten in all, and the Kubernetes
    /// API itself as the probe's target: it is in every cluster, and without it nothing else matters.
    fn default() -> Self {
        Self {
            max_concurrent: 1,
            max_failures: 0,
            node_soak_seconds: 30,
            stage_soak_seconds: 0,
            confirm_within_seconds: 120,
            node_deadline_seconds: 600,
            probe: vec![ProbeTarget {
                namespace: "default".to_owned(),
                name: "kubernetes".to_owned(),
                port: 443,
            }],
        }
    }
}

/// A rollout as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRequest {
    /// The rollout's name.
    pub name: RolloutName,
    /// What is done to each node.
    pub action: Action,
    /// The clusters whose nodes are meant.
    pub clusters: Vec<ClusterName>,
    /// If given, only the nodes of these names.
    pub nodes: Option<Vec<NodeName>>,
    /// The stages, in order.
    pub stages: Vec<StageRequest>,
    /// The limits.
    pub settings: Settings,
}

/// A node of the fleet, as the plan names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// The node's name in its cluster.
    pub node: NodeName,
    /// The node's identity.
    pub id: NodeId,
}

/// A stage with its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStage {
    /// The stage's name.
    pub name: StageName,
    /// Its nodes, by cluster and name.
    pub members: Vec<Member>,
}

/// An immutable plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The rollout's name.
    pub name: RolloutName,
    /// What is done to each node.
    pub action: Action,
    /// The stages, in order, each with its nodes.
    pub stages: Vec<PlannedStage>,
    /// The limits.
    pub settings: Settings,
}

/// What is wrong with a request, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Path of the field in the request, for example `stages[1].size.count`.
    pub path: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl Fault {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }
}

impl Plan {
    /// Resolves `request` against the nodes of `fleet`.
    ///
    /// # Errors
    /// Every fault of the request at once, each with its path.
    pub fn resolve(request: &PlanRequest, fleet: &BTreeMap<ClusterName, Vec<Member>>) -> Result<Self, Vec<Fault>> {
        let mut faults = settings_faults(&request.settings);
        let members = targeted(request, fleet, &mut faults);
        let stages = into_stages(request, &members, &mut faults);
        if faults.is_empty() {
            Ok(Self {
                name: request.name.clone(),
                action: request.action,
                stages,
                settings: request.settings.clone(),
            })
        } else {
            Err(faults)
        }
    }

    /// SHA-256 over the plan's canonical JSON, in hexadecimal.
    ///
    /// # Panics
    /// Never: a plan has only text keys and whole numbers, so it can always be written as JSON.
    pub fn hash(&self) -> String {
        let json = serde_json::to_vec(self).expect("a plan has only text keys and whole numbers");
        format!("{:x}", Sha256::digest(&json))
    }
}

fn settings_faults(settings: &Settings) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |path: &str, message: String| faults.push(Fault::new(path, message));
    if !(1..=10_000).contains(&settings.max_concurrent) {
        fault("maxConcurrent", format!("{} is not 1-10000", settings.max_concurrent));
    }
    if !(10..=86_400).contains(&settings.confirm_within_seconds) {
        fault(
            "confirmWithinSeconds",
            format!("{} is not 10-86400", settings.confirm_within_seconds),
        );
    }
    // The soak is part of what must fit before the dead-man's switch, with room for the probe and the server's tick.
    if settings.node_soak_seconds.saturating_add(5) > settings.confirm_within_seconds {
        fault(
            "nodeSoakSeconds",
            format!(
                "{} leaves less than 5 s until confirmWithinSeconds ({}) sends the node back",
                settings.node_soak_seconds, settings.confirm_within_seconds
            ),
        );
    }
    if settings.node_deadline_seconds <= settings.confirm_within_seconds || settings.node_deadline_seconds > 604_800 {
        fault(
            "nodeDeadlineSeconds",
            format!(
                "{} is not more than confirmWithinSeconds ({}) and at most 604800",
                settings.node_deadline_seconds, settings.confirm_within_seconds
            ),
        );
    }
    if settings.stage_soak_seconds > 2_592_000 {
        fault(
            "stageSoakSeconds",
            format!("{} is not 0-2592000", settings.stage_soak_seconds),
        );
    }
    if settings.probe.is_empty() || settings.probe.len() > 100 {
        fault("probe", format!("{} targets are not 1-100", settings.probe.len()));
    }
    for (i, target) in settings.probe.iter().enumerate() {
        if target.port == 0 {
            fault(&format!("probe[{i}].port"), "0 is not 1-65535".to_owned());
        }
        for (field, text) in [("namespace", &target.namespace), ("name", &target.name)] {
            if text.is_empty() || text.len() > 253 {
                fault(&format!("probe[{i}].{field}"), "is not 1-253 characters".to_owned());
            }
        }
    }
    faults
}

/// The nodes that are meant, sorted by cluster and name.
fn targeted(
    request: &PlanRequest,
    fleet: &BTreeMap<ClusterName, Vec<Member>>,
    faults: &mut Vec<Fault>,
) -> BTreeSet<Member> {
    if request.clusters.is_empty() {
        faults.push(Fault::new("clusters", "names no cluster; at least one is needed"));
    }
    let mut members = BTreeSet::new();
    for (i, cluster) in request.clusters.iter().enumerate() {
        match fleet.get(cluster) {
            Some(nodes) => members.extend(nodes.iter().cloned()),
            None => faults.push(Fault::new(
                format!("clusters[{i}]"),
                format!("there is no cluster {cluster}"),
            )),
        }
    }
    if let Some(wanted) = &request.nodes {
        let known: BTreeSet<&NodeName> = members.iter().map(|m| &m.node).collect();
        for (i, node) in wanted.iter().enumerate() {
            if !known.contains(node) {
                faults.push(Fault::new(
                    format!("nodes[{i}]"),
                    format!("there is no node {node} in these clusters"),
                ));
            }
        }
        let wanted: BTreeSet<&NodeName> = wanted.iter().collect();
        members.retain(|m| wanted.contains(&m.node));
    }
    if members.is_empty() && faults.is_empty() {
        faults.push(Fault::new(
            "clusters",
            "have no nodes yet; start the agent on them first",
        ));
    }
    members
}

fn into_stages(request: &PlanRequest, members: &BTreeSet<Member>, faults: &mut Vec<Fault>) -> Vec<PlannedStage> {
    if request.stages.is_empty() || request.stages.len() > 100 {
        faults.push(Fault::new(
            "stages",
            format!("{} stages are not 1-100", request.stages.len()),
        ));
    }
    let mut left = members.clone();
    let mut names = BTreeSet::new();
    let mut stages = Vec::new();
    for (i, stage) in request.stages.iter().enumerate() {
        if !names.insert(&stage.name) {
            faults.push(Fault::new(
                format!("stages[{i}].name"),
                format!("{} names two stages", stage.name),
            ));
        }
        let size = format!("stages[{i}].size");
        let taken: Vec<Member> = match &stage.size {
            StageSize::Count(0) => {
                faults.push(Fault::new(format!("{size}.count"), "0 is not at least 1"));
                continue;
            }
            StageSize::Count(count) => {
                if *count as usize > left.len() && !members.is_empty() {
                    let message = format!("{count} is more than the {} nodes that earlier stages left", left.len());
                    faults.push(Fault::new(format!("{size}.count"), message));
                }
                left.iter().take(*count as usize).cloned().collect()
            }
            StageSize::Percent(percent) => {
                if !(1..=100).contains(percent) {
                    faults.push(Fault::new(format!("{size}.percent"), format!("{percent} is not 1-100")));
                    continue;
                }
                let count = (members.len() * *percent as usize).div_ceil(100);
                left.iter().take(count).cloned().collect()
            }
            StageSize::Nodes(nodes) => {
                let known: BTreeSet<&NodeName> = left.iter().map(|m| &m.node).collect();
                for (j, node) in nodes.iter().enumerate() {
                    if !known.contains(node) {
                        let message = format!("{node} is not a node of this rollout, or an earlier stage has it");
                        faults.push(Fault::new(format!("{size}.nodes[{j}]"), message));
                    }
                }
                let nodes: BTreeSet<&NodeName> = nodes.iter().collect();
                left.iter().filter(|m| nodes.contains(&m.node)).cloned().collect()
            }
            StageSize::Rest => left.iter().cloned().collect(),
        };
        if taken.is_empty() && !members.is_empty() {
            faults.push(Fault::new(size, "leaves the stage without nodes"));
        }
        for member in &taken {
            left.remove(member);
        }
        stages.push(PlannedStage {
            name: stage.name.clone(),
            members: taken,
        });
    }
    if !left.is_empty() && faults.is_empty() {
        let message = format!(
            "leave {} of {} nodes without a stage; end with \"rest\"",
            left.len(),
            members.len()
        );
        faults.push(Fault::new("stages", message));
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn fleet(nodes: u128) -> BTreeMap<ClusterName, Vec<Member>> {
        let cluster: ClusterName = "demo".parse().unwrap();
        let members = (1..=nodes)
            .map(|n| Member {
                cluster: cluster.clone(),
                node: format!("node-{n:03}").parse().unwrap(),
                id: NodeId(Uuid::from_u128(n)),
            })
            .collect();
        BTreeMap::from([(cluster, members)])
    }

    fn request(sizes: Vec<StageSize>) -> PlanRequest {
        PlanRequest {
            name: "r".parse().unwrap(),
            action: Action::MoveToNftfleet,
            clusters: vec!["demo".parse().unwrap()],
            nodes: None,
            stages: sizes
                .into_iter()
                .enumerate()
                .map(|(i, size)| StageRequest {
                    name: format!("s{i}").parse().unwrap(),
                    size,
                })
                .collect(),
            settings: Settings::default(),
        }
    }

    fn paths(request: &PlanRequest, nodes: u128) -> Vec<String> {
        Plan::resolve(request, &fleet(nodes))
            .unwrap_err()
            .into_iter()
            .map(|f| f.path)
            .collect()
    }

    #[test]
    fn a_canary_and_the_rest() {
        let plan = Plan::resolve(&request(vec![StageSize::Count(1), StageSize::Rest]), &fleet(3)).unwrap();
        let names: Vec<Vec<&str>> = plan
            .stages
            .iter()
            .map(|s| s.members.iter().map(|m| m.node.as_str()).collect())
            .collect();
        assert_eq!(names, [vec!["node-001"], vec!["node-002", "node-003"]]);
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let mut bad = request(vec![StageSize::Count(0), StageSize::Percent(101), StageSize::Count(9)]);
        bad.settings.max_concurrent = 0;
        bad.settings.node_soak_seconds = 118;
        bad.nodes = Some(vec!["node-001".parse().unwrap(), "nobody".parse().unwrap()]);
        assert_eq!(
            paths(&bad, 3),
            [
                "maxConcurrent",
                "nodeSoakSeconds",
                "nodes[1]",
                "stages[0].size.count",
                "stages[1].size.percent",
                "stages[2].size.count"
            ]
        );
    }

    #[test]
    fn a_stage_without_nodes_and_nodes_without_a_stage_are_faults() {
        assert_eq!(
            paths(&request(vec![StageSize::Rest, StageSize::Rest]), 3),
            ["stages[1].size"]
        );
        assert_eq!(paths(&request(vec![StageSize::Count(2)]), 3), ["stages"]);
        assert_eq!(paths(&request(vec![StageSize::Rest]), 0), ["clusters"]);
    }

    #[test]
    fn the_hash_changes_with_anything_in_the_plan() {
        let plan = Plan::resolve(&request(vec![StageSize::Rest]), &fleet(3)).unwrap();
        let mut other = plan.clone();
        other.settings.max_failures = 1;
        assert_ne!(plan.hash(), other.hash());
        assert_eq!(plan.hash(), plan.clone().hash());
        assert_eq!(plan.hash().len(), 64);
    }

    proptest! {
        #[test]
        fn a_resolved_plan_holds_every_node_exactly_once(nodes in 1u128..60, percents in proptest::collection::vec(1u32..=100, 0..6)) {
            let mut sizes: Vec<_> = percents.into_iter().map(StageSize::Percent).collect();
            sizes.push(StageSize::Rest);
            if let Ok(plan) = Plan::resolve(&request(sizes), &fleet(nodes)) {
                let mut seen: Vec<_> = plan.stages.iter().flat_map(|s| s.members.clone()).collect();
                seen.sort();
                prop_assert_eq!(seen, fleet(nodes).into_values().next().unwrap());
            }
        }
    }
}
