//! Rollouts: the wish comes in, the plan and where it stands go out.

use nftfleet_domain::ids::{NodeName, StageName};
use nftfleet_domain::rollout as domain;

use super::name;
use crate::problem::FieldFault;
use crate::types as wire;

/// Reads a wish; what depends on the fleet is checked by [`domain::Plan::resolve`].
///
/// # Errors
/// Every field that is wrong, at once.
pub fn plan_request(wish: &wire::NewRollout) -> Result<domain::PlanRequest, Vec<FieldFault>> {
    let mut faults = Vec::new();
    let rollout = name("name", &wish.name).map_err(|fault| faults.push(fault)).ok();
    let clusters = names("clusters", &wish.clusters, &mut faults);
    let nodes = wish.nodes.as_ref().map(|nodes| names("nodes", nodes, &mut faults));
    let mut stages = Vec::new();
    for (i, stage) in wish.stages.iter().enumerate() {
        let named: Option<StageName> = name(&format!("stages[{i}].name"), &stage.name)
            .map_err(|fault| faults.push(fault))
            .ok();
        let size = match &stage.size {
            wire::StageSize::Count(count) => domain::StageSize::Count(*count),
            wire::StageSize::Percent(percent) => domain::StageSize::Percent(*percent),
            wire::StageSize::Rest => domain::StageSize::Rest,
            wire::StageSize::Nodes(nodes) => domain::StageSize::Nodes(names::<NodeName>(
                &format!("stages[{i}].size.nodes"),
                nodes,
                &mut faults,
            )),
        };
        if let Some(name) = named {
            stages.push(domain::StageRequest { name, size });
        }
    }
    match rollout {
        Some(name) if faults.is_empty() => Ok(domain::PlanRequest {
            name,
            action: wish.action.into(),
            clusters,
            nodes,
            stages,
            settings: (&wish.settings).into(),
        }),
        _ => Err(faults),
    }
}

fn names<T>(path: &str, texts: &[String], faults: &mut Vec<FieldFault>) -> Vec<T>
where
    T: std::str::FromStr<Err = nftfleet_domain::ids::BadName>,
{
    let mut named = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        match name(&format!("{path}[{i}]"), text) {
            Ok(good) => named.push(good),
            Err(fault) => faults.push(fault),
        }
    }
    named
}

impl From<domain::Fault> for FieldFault {
    fn from(fault: domain::Fault) -> Self {
        // Settings stand one level deeper on the wire.
        let in_settings = [
            "maxConcurrent",
            "maxFailures",
            "nodeSoak",
            "stageSoak",
            "confirmWithin",
            "nodeDeadline",
            "probe",
        ];
        let path = if in_settings.iter().any(|s| fault.path.starts_with(s)) {
            format!("settings.{}", fault.path)
        } else {
            fault.path
        };
        Self {
            path,
            message: fault.message,
        }
    }
}

impl From<wire::RolloutAction> for domain::Action {
    fn from(action: wire::RolloutAction) -> Self {
        match action {
            wire::RolloutAction::MoveToNftfleet => Self::MoveToNftfleet,
        }
    }
}

impl From<domain::Action> for wire::RolloutAction {
    fn from(action: domain::Action) -> Self {
        match action {
            domain::Action::MoveToNftfleet => Self::MoveToNftfleet,
        }
    }
}

impl From<&wire::RolloutSettings> for domain::Settings {
    fn from(wish: &wire::RolloutSettings) -> Self {
        let default = Self::default();
        Self {
            max_concurrent: wish.max_concurrent.unwrap_or(default.max_concurrent),
            max_failures: wish.max_failures.unwrap_or(default.max_failures),
            node_soak_seconds: wish.node_soak_seconds.unwrap_or(default.node_soak_seconds),
            stage_soak_seconds: wish.stage_soak_seconds.unwrap_or(default.stage_soak_seconds),
            confirm_within_seconds: wish.confirm_within_seconds.unwrap_or(default.confirm_within_seconds),
            node_deadline_seconds: wish.node_deadline_seconds.unwrap_or(default.node_deadline_seconds),
            probe: wish.probe.as_ref().map_or(default.probe, |targets| {
                targets.iter().cloned().map(Into::into).collect()
            }),
        }
    }
}

impl From<&domain::Settings> for wire::RolloutSettings {
    fn from(settings: &domain::Settings) -> Self {
        Self {
            max_concurrent: Some(settings.max_concurrent),
            max_failures: Some(settings.max_failures),
            node_soak_seconds: Some(settings.node_soak_seconds),
            stage_soak_seconds: Some(settings.stage_soak_seconds),
            confirm_within_seconds: Some(settings.confirm_within_seconds),
            node_deadline_seconds: Some(settings.node_deadline_seconds),
            probe: Some(settings.probe.iter().cloned().map(Into::into).collect()),
        }
    }
}

impl From<wire::Probe> for domain::ProbeTarget {
    fn from(probe: wire::Probe) -> Self {
        Self {
            namespace: probe.namespace,
            name: probe.name,
            port: probe.port,
        }
    }
}

impl From<domain::ProbeTarget> for wire::Probe {
    fn from(target: domain::ProbeTarget) -> Self {
        Self {
            namespace: target.namespace,
            name: target.name,
            port: target.port,
        }
    }
}

impl From<domain::RolloutState> for wire::RolloutState {
    fn from(state: domain::RolloutState) -> Self {
        match state {
            domain::RolloutState::Draft => Self::Draft,
            domain::RolloutState::Running => Self::Running,
            domain::RolloutState::Paused => Self::Paused,
            domain::RolloutState::Aborting => Self::Aborting,
            domain::RolloutState::Succeeded => Self::Succeeded,
            domain::RolloutState::SucceededWithFailures => Self::SucceededWithFailures,
            domain::RolloutState::Failed => Self::Failed,
            domain::RolloutState::Aborted => Self::Aborted,
        }
    }
}

impl From<domain::StageState> for wire::StageState {
    fn from(state: domain::StageState) -> Self {
        match state {
            domain::StageState::Pending => Self::Pending,
            domain::StageState::Running => Self::Running,
            domain::StageState::Soaking => Self::Soaking,
            domain::StageState::Passed => Self::Passed,
            domain::StageState::Failed => Self::Failed,
            domain::StageState::Skipped => Self::Skipped,
        }
    }
}

impl From<wire::AbortUnderway> for domain::Underway {
    fn from(underway: wire::AbortUnderway) -> Self {
        match underway {
            wire::AbortUnderway::Finish => Self::Finish,
            wire::AbortUnderway::Revert => Self::Revert,
        }
    }
}

impl From<&domain::Hold> for wire::Hold {
    fn from(hold: &domain::Hold) -> Self {
        let plain = |kind: &str, message: String| Self {
            kind: kind.to_owned(),
            node: None,
            until: None,
            message,
            reasons: vec![],
        };
        match hold {
            domain::Hold::NotStarted => plain("NOT_STARTED", "nobody has started the rollout".to_owned()),
            domain::Hold::Paused => plain("PAUSED", "the rollout is paused".to_owned()),
            domain::Hold::Capacity { max_concurrent } => plain(
                "CAPACITY",
                format!("{max_concurrent} node(s) are under way, as many as maxConcurrent allows"),
            ),
            domain::Hold::NodeUnderWay { node, phase, until } => Self {
                node: Some(node.to_string()),
                until: Some(*until),
                ..plain("NODE_UNDER_WAY", format!("node {node} is under way: {phase:?}"))
            },
            domain::Hold::NodeSoak { node, until } => Self {
                node: Some(node.to_string()),
                until: Some(*until),
                ..plain("NODE_SOAK", format!("the probes of node {node} must keep passing"))
            },
            domain::Hold::NodeUnknown { node, reasons } => Self {
                node: Some(node.to_string()),
                reasons: reasons.iter().map(Into::into).collect(),
                ..plain("NODE_UNKNOWN", format!("it can't be told whether node {node} is ready"))
            },
            domain::Hold::NodeBusy { node } => Self {
                node: Some(node.to_string()),
                ..plain(
                    "NODE_BUSY",
                    format!("another rollout has work under way on node {node}"),
                )
            },
            domain::Hold::StageSoak { until } => Self {
                until: Some(*until),
                ..plain("STAGE_SOAK", "the stage's soak has not ended".to_owned())
            },
        }
    }
}
