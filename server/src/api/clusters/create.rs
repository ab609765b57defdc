//! Register a cluster.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use nftfleet_domain::ids::{ClusterId, ClusterName};
use nftfleet_web_api_spec::{convert, types};

use crate::api::body::{Body, BodyError};
use crate::api::problem::Refusal;
use crate::app::App;

pub(in crate::api) async fn create(
    State(app): State<App>,
    Body(wish): Body<types::NewCluster>,
) -> Result<(StatusCode, Json<types::Cluster>), Refusal> {
    let name: ClusterName = convert::name("name", &wish.name).map_err(BodyError::Form)?;
    let id = ClusterId(app.ids.id());
    let cluster = app.store.create_cluster(id, &name, app.clock.now()).await?;
    Ok((StatusCode::CREATED, Json(super::view(cluster))))
}
