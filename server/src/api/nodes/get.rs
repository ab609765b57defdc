//! Read a node with its newest report.

use axum::Json;
use axum::extract::State;
use nftfleet_web_api_spec::types;

use crate::api::parameters::Segments;
use crate::api::problem::Refusal;
use crate::app::App;
use crate::store::NodeKey;

pub(in crate::api) async fn get(
    State(app): State<App>,
    Segments((cluster, node)): Segments<(String, String)>,
) -> Result<Json<types::Node>, Refusal> {
    let missing = || Refusal::no_such_node(&cluster, &node);
    let key = match (cluster.parse(), node.parse()) {
        (Ok(cluster), Ok(node)) => NodeKey { cluster, node },
        // What can't be a name is not the name of a node.
        _ => return Err(missing()),
    };
    let found = app.store.node(&key).await?.ok_or_else(missing)?;
    Ok(Json(super::view(found, &app.policy, app.clock.now())))
}
