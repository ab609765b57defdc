//! Paths of the service itself: is it alive, is it ready, what does it count, how is it called.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use nftfleet_web_api_spec::openapi;
use utoipa_swagger_ui::Config;

use super::problem::{Refusal, no_such_path};
use crate::app::App;
use crate::store::{Ready, StoreError};
use crate::telemetry::chain;

/// The paths, for the test that knows every path of the service.
#[cfg(test)]
pub(super) const PATHS: &[&str] = &[
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/docs/",
    "/docs/{*file}",
];

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(document))
        .route("/docs", get(to_index))
        .route("/docs/", get(index))
        .route("/docs/{*file}", get(file))
}

/// Whether the database answers and is up to date.
async fn ready(State(app): State<App>) -> Result<&'static str, Refusal> {
    let ready = app.ready.borrow().clone();
    match ready {
        Ready::No(why) => Err(Refusal::not_ready(why)),
        Ready::Yes => match app.store.ping().await {
            Ok(()) => Ok("ready\n"),
            Err(StoreError::Unreachable(_)) => {
                let why = format!("Postgres at {} can't be reached", app.store.place());
                Err(Refusal::not_ready(why))
            }
            Err(error) => Err(error.into()),
        },
    }
}

/// In the text format `OpenMetrics` 1.0, which Prometheus reads.
async fn metrics(State(app): State<App>) -> Response {
    // What the database says is left as it was when it can't be asked; this server's own numbers are still worth having.
    match app.store.count_tasks().await {
        Ok(counts) => app.metrics.tasks(&counts),
        Err(error) => tracing::warn!("can't count tasks: {}", chain(&error)),
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], app.metrics.text().unwrap_or_default()).into_response()
}

async fn document() -> Response {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| openapi::document_json().unwrap_or_default());
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.as_str()).into_response()
}

/// The process lives.
async fn alive() -> &'static str {
    "ok\n"
}

async fn to_index() -> Redirect {
    Redirect::permanent("/docs/")
}

async fn index(request: Request) -> Response {
    page("index.html", request).await
}

async fn file(Path(file): Path<String>, request: Request) -> Response {
    page(&file, request).await
}

/// A file of the page that shows the document.
async fn page(file: &str, request: Request) -> Response {
    static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| Arc::new(Config::from("/openapi.json")));
    // Its error can't be held while something is awaited.
    let found = utoipa_swagger_ui::serve(file, Arc::clone(&CONFIG)).ok().flatten();
    match found {
        Some(file) => ([(CONTENT_TYPE, file.content_type)], file.bytes.into_owned()).into_response(),
        None => no_such_path(request).await.into_response(),
    }
}
