//! Exchange a cluster's enrolment token for an agent's credential.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use nftfleet_domain::ids::NodeId;
use nftfleet_web_api_spec::{convert, types};

use crate::api::body::{Body, BodyError};
use crate::api::problem::Refusal;
use crate::app::App;
use crate::secret::{self, SecretHash};
use crate::store::NewAgent;

pub(in crate::api) async fn enrol(
    State(app): State<App>,
    Body(enrolment): Body<types::Enrolment>,
) -> Result<(StatusCode, Json<types::Enrolled>), Refusal> {
    let node = convert::name("node", &enrolment.node).map_err(BodyError::Form)?;
    let characters = enrolment.agent_version.chars().count();
    if !(1..=100).contains(&characters) {
        let message = format!("has {characters} characters; 1-100 are needed");
        return Err(BodyError::field("agentVersion", message).into());
    }
    let credential = secret::to_text(&app.ids.secret());
    let agent = NewAgent {
        node,
        id_if_new: NodeId(app.ids.id()),
        version: enrolment.agent_version,
        credential: SecretHash::of(&credential),
    };
    let token = SecretHash::of(&enrolment.token);
    let (node_id, cluster) = app.store.enrol(token, &agent, app.clock.now()).await?;
    tracing::info!(%cluster, node = %agent.node, "an agent enrolled");
    let enrolled = types::Enrolled {
        node_id: node_id.0,
        cluster: cluster.into(),
        credential,
    };
    Ok((StatusCode::CREATED, Json(enrolled)))
}
