//! Say what a rollout would do, and do nothing.

use axum::Json;
use axum::extract::State;
use nftfleet_domain::ids::NodeId;
use nftfleet_domain::readiness::{assess, warnings};
use nftfleet_domain::rollout::{Fault, Plan};
use nftfleet_web_api_spec::problem::FieldFault;
use nftfleet_web_api_spec::{convert, types};

use crate::api::body::Body;
use crate::api::problem::Refusal;
use crate::app::App;
use crate::store::StoreError;

/// Why a rollout can't be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The wish has faults.
    #[error("the rollout can't be planned: {}", words(.0))]
    Faults(Vec<FieldFault>),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn words(faults: &[FieldFault]) -> String {
    let words: Vec<String> = faults.iter().map(|f| format!("{} {}", f.path, f.message)).collect();
    words.join("; ")
}

/// Resolves a wish against the fleet as it is now.
pub(super) async fn resolve(app: &App, wish: &types::NewRollout) -> Result<Plan, PlanError> {
    let request = convert::plan_request(wish).map_err(PlanError::Faults)?;
    let fleet = app.store.fleet(&request.clusters).await?;
    Plan::resolve(&request, &fleet)
        .map_err(|faults: Vec<Fault>| PlanError::Faults(faults.into_iter().map(Into::into).collect()))
}

pub(in crate::api) async fn plan(
    State(app): State<App>,
    Body(wish): Body<types::NewRollout>,
) -> Result<Json<types::RolloutPlan>, Refusal> {
    let plan = resolve(&app, &wish).await?;
    let ids: Vec<NodeId> = plan.stages.iter().flat_map(|s| &s.members).map(|m| m.id).collect();
    let reported = app.store.reported(&ids).await?;
    let now = app.clock.now();
    let stages = plan.stages.iter().map(|stage| types::PlannedStage {
        name: stage.name.to_string(),
        nodes: stage
            .members
            .iter()
            .map(|member| {
                let reported = reported.get(&member.id);
                types::PlannedNode {
                    cluster: member.cluster.to_string(),
                    node: member.node.to_string(),
                    readiness: convert::readiness(
                        &assess(reported, &app.policy, now),
                        &warnings(reported, &app.policy, now),
                    ),
                }
            })
            .collect(),
    });
    Ok(Json(types::RolloutPlan {
        plan_hash: plan.hash(),
        stages: stages.collect(),
    }))
}
