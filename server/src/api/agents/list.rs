//! List enrolled agents, by cluster and node.

use axum::Json;
use axum::extract::State;
use nftfleet_web_api_spec::types;

use crate::api::nodes::{Key, of_key, to_key};
use crate::api::page::Page;
use crate::api::parameters::Parameters;
use crate::api::problem::Refusal;
use crate::app::App;
use crate::store::Agent;

pub(in crate::api) async fn list(
    State(app): State<App>,
    parameters: Parameters,
) -> Result<Json<types::AgentPage>, Refusal> {
    let cluster = parameters.cluster()?;
    let page = Page::<Key>::of(&parameters)?;
    let after = page.after.clone().map(of_key);
    let mut agents = app
        .store
        .agents(cluster.as_ref(), after.as_ref(), page.one_more())
        .await?;
    let next_page_token = page.cut(&mut agents, |agent| to_key(&agent.key));
    Ok(Json(types::AgentPage {
        items: agents.into_iter().map(view).collect(),
        next_page_token,
    }))
}

fn view(agent: Agent) -> types::Agent {
    types::Agent {
        node_id: agent.node_id.0,
        cluster: agent.key.cluster.into(),
        node: agent.key.node.into(),
        version: agent.version,
        enrolled_at: agent.enrolled_at,
        last_seen_at: agent.last_seen_at,
    }
}
