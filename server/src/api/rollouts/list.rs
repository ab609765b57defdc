//! List rollouts, newest first.

use axum::Json;
use axum::extract::State;
use nftfleet_domain::ids::RolloutId;
use nftfleet_web_api_spec::types;

use crate::api::page::Page;
use crate::api::parameters::Parameters;
use crate::api::problem::Refusal;
use crate::app::App;

pub(in crate::api) async fn list(
    State(app): State<App>,
    parameters: Parameters,
) -> Result<Json<types::RolloutPage>, Refusal> {
    let page = Page::<RolloutId>::of(&parameters)?;
    let mut rollouts = app.store.rollouts(page.after, page.one_more()).await?;
    let next_page_token = page.cut(&mut rollouts, |rollout| rollout.id);
    Ok(Json(types::RolloutPage {
        items: rollouts.into_iter().map(super::view).collect(),
        next_page_token,
    }))
}
