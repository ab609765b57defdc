//! List nodes with their mode and readiness, by cluster and name.

use axum::Json;
use axum::extract::State;
use nftfleet_web_api_spec::types;

use crate::api::nodes::{Key, of_key, to_key};
use crate::api::page::Page;
use crate::api::parameters::Parameters;
use crate::api::problem::Refusal;
use crate::app::App;

pub(in crate::api) async fn list(
    State(app): State<App>,
    parameters: Parameters,
) -> Result<Json<types::NodePage>, Refusal> {
    let cluster = parameters.cluster()?;
    let page = Page::<Key>::of(&parameters)?;
    let after = page.after.clone().map(of_key);
    let mut nodes = app
        .store
        .nodes(cluster.as_ref(), after.as_ref(), page.one_more())
        .await?;
    let next_page_token = page.cut(&mut nodes, |node| to_key(&node.key));
    let now = app.clock.now();
    let view = |node| types::Node {
        report: None,
        ..super::view(node, &app.policy, now)
    };
    Ok(Json(types::NodePage {
        items: nodes.into_iter().map(view).collect(),
        next_page_token,
    }))
}
