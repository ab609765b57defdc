//! List clusters, by name.

use axum::Json;
use axum::extract::State;
use nftfleet_domain::ids::ClusterName;
use nftfleet_web_api_spec::types;

use crate::api::page::Page;
use crate::api::parameters::Parameters;
use crate::api::problem::Refusal;
use crate::app::App;

pub(in crate::api) async fn list(
    State(app): State<App>,
    parameters: Parameters,
) -> Result<Json<types::ClusterPage>, Refusal> {
    let page = Page::<ClusterName>::of(&parameters)?;
    let mut clusters = app.store.clusters(page.after.as_ref(), page.one_more()).await?;
    let next_page_token = page.cut(&mut clusters, |cluster| cluster.name.clone());
    Ok(Json(types::ClusterPage {
        items: clusters.into_iter().map(super::view).collect(),
        next_page_token,
    }))
}
