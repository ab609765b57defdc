//! Read a cluster.

use axum::Json;
use axum::extract::State;
use nftfleet_domain::ids::ClusterName;
use nftfleet_web_api_spec::types;

use crate::api::parameters::Segments;
use crate::api::problem::Refusal;
use crate::app::App;

pub(in crate::api) async fn get(
    State(app): State<App>,
    Segments(text): Segments<String>,
) -> Result<Json<types::Cluster>, Refusal> {
    // What can't be a name is not the name of a cluster.
    let name: ClusterName = text.parse().map_err(|_| Refusal::no_such_cluster(&text))?;
    let cluster = app.store.cluster(&name).await?;
    let cluster = cluster.ok_or_else(|| Refusal::no_such_cluster(&text))?;
    Ok(Json(super::view(cluster)))
}
