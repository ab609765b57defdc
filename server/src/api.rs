//! The HTTP edge: one file per endpoint, each extracts, calls and converts.
//!
//! [`router()`] mounts what `nftfleet_web_api_spec::endpoint::ALL` lists, and nothing else besides the few paths of the
//! service itself (`service`). [`problem`] is the only place where an error becomes an answer.

mod agent;
mod agents;
mod auth;
mod body;
mod clusters;
mod edge;
mod enrolment_tokens;
mod nodes;
mod page;
mod parameters;
pub mod problem;
mod rollouts;
mod service;
mod tasks;
#[cfg(test)]
mod tests;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, on};
use nftfleet_web_api_spec::endpoint::{ALL, Endpoint};
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::App;

/// The largest body that is read, in bytes.
const LARGEST_BODY: usize = 1024 * 1024;

/// Everything that the service answers.
pub fn router(app: App) -> Router {
    let mut router = Router::new();
    for endpoint in ALL {
        let Some(handler) = handler(endpoint) else {
            // A test fails before such a service is ever released.
            tracing::error!(endpoint = endpoint.id, "is listed and has no handler");
            continue;
        };
        let edge = from_fn_with_state((app.clone(), endpoint), edge::enter);
        router = router.route(endpoint.path, handler.route_layer(edge));
    }
    router
        .merge(service::routes())
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(CatchPanicLayer::custom(problem::of_panic))
        .with_state(app)
}

/// The handler of a listed endpoint.
fn handler(endpoint: &Endpoint) -> Option<MethodRouter<App>> {
    Some(match endpoint.id {
        "create_cluster" => mount(endpoint, clusters::create::create),
        "list_clusters" => mount(endpoint, clusters::list::list),
        "get_cluster" => mount(endpoint, clusters::get::get),
        "create_enrolment_token" => mount(endpoint, enrolment_tokens::create::create),
        "list_nodes" => mount(endpoint, nodes::list::list),
        "get_node" => mount(endpoint, nodes::get::get),
        "list_agents" => mount(endpoint, agents::list::list),
        "plan_rollout" => mount(endpoint, rollouts::plan::plan),
        "create_rollout" => mount(endpoint, rollouts::create::create),
        "list_rollouts" => mount(endpoint, rollouts::list::list),
        "get_rollout" => mount(endpoint, rollouts::get::get),
        "list_tasks" => mount(endpoint, tasks::list::list),
        "start_rollout" => mount(endpoint, rollouts::start::start),
        "pause_rollout" => mount(endpoint, rollouts::pause::pause),
        "resume_rollout" => mount(endpoint, rollouts::resume::resume),
        "abort_rollout" => mount(endpoint, rollouts::abort::abort),
        "enrol_agent" => mount(endpoint, agent::enrol::enrol),
        "put_report" => mount(endpoint, agent::put_report::put_report),
        "get_assignment" => mount(endpoint, agent::get_assignment::get_assignment),
        "post_progress" => mount(endpoint, agent::post_progress::post_progress),
        _ => return None,
    })
}

fn mount<H, T>(endpoint: &Endpoint, handler: H) -> MethodRouter<App>
where
    H: Handler<T, App>,
    T: 'static,
{
    let method = MethodFilter::try_from(endpoint.method.clone()).unwrap_or(MethodFilter::GET);
    on(method, handler)
}
