//! The HTTP side: authentication, paths and query parameters.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::list::{ListOptions, list};
use super::patch::{PatchRequest, patch};
use super::resource::Target;
use super::selector::Selector;
use super::status::Status;
use super::verb::Verb;
use super::watch::{WatchOptions, watch};
use super::{Shared, TOKEN, Withheld};
use crate::netns::Stopped;

type Parameters = HashMap<String, String>;

/// Listens on `bind`, says on which address it is, and serves until it is stopped.
pub(super) async fn serve(bind: SocketAddr, shared: Arc<Shared>, ready: mpsc::Sender<SocketAddr>, stopped: Stopped) {
    let listener = TcpListener::bind(bind)
        .await
        .unwrap_or_else(|error| panic!("the API simulator cannot listen on {bind}: {error}"));
    let address = listener.local_addr().expect("a bound listener has an address");
    let router = Router::new()
        .route("/version", get(version))
        .route("/livez", get(healthy))
        .route("/readyz", get(healthy))
        .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events", post(event))
        .fallback(resource)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&shared), admit))
        .with_state(shared);
    // The starter waits for this; it cannot have gone.
    let _ = ready.send(address);
    tokio::select! {
        served = async { axum::serve(listener, router).await } => served.expect("the API simulator serves"),
        _ = stopped => {}
    }
}

/// Lets in who shows the token, and nobody while the test wants refusals.
async fn admit(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    if shared.refusing.load(Ordering::SeqCst) {
        return Status::unavailable().into_response();
    }
    let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if shown.and_then(|value| value.strip_prefix("Bearer ")) != Some(TOKEN) {
        return Status::unauthorized().into_response();
    }
    next.run(request).await
}

async fn version() -> Response {
    let version = json!({
        "major": "1",
        "minor": "33",
        "gitVersion": "v1.33.4",
        "gitCommit": "74cdb4273ef99aea48ebabe3fcd9f2a9fbc0d8c3",
        "gitTreeState": "clean",
        "buildDate": "2025-08-13T14:20:41Z",
        "goVersion": "go1.24.5",
        "compiler": "gc",
        "platform": "linux/amd64",
    });
    Json(version).into_response()
}

async fn healthy() -> &'static str {
    "ok"
}

/// Takes an Event that a client writes, and gives it back as written.
async fn event(State(shared): State<Arc<Shared>>, Json(event): Json<Value>) -> Response {
    shared.events().push(event.clone());
    (StatusCode::CREATED, Json(event)).into_response()
}

/// Every list, watch, get and patch.
async fn resource(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    Query(parameters): Query<Parameters>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Status> {
    let target = Target::of_path(uri.path()).ok_or_else(Status::unknown_path)?;
    let verb = match method {
        Method::GET if target.name.is_some() => Verb::Get,
        Method::GET if flag(&parameters, "watch")? => Verb::Watch,
        Method::GET => Verb::List,
        Method::PATCH if target.name.is_some() => Verb::Patch,
        _ => return Err(Status::method_not_allowed()),
    };
    match shared.withheld().get(&target.resource) {
        Some(Withheld::Unknown) => return Err(Status::unknown_path()),
        Some(Withheld::Forbidden) => return Err(Status::forbidden(verb, &target)),
        None => {}
    }
    if shared.forbidden().contains(&(verb, target.resource)) {
        return Err(Status::forbidden(verb, &target));
    }
    if let Some(name) = &target.name {
        if verb == Verb::Get {
            return get_object(&shared, &target, name);
        }
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let request = PatchRequest {
            content_type: content_type.unwrap_or_default(),
            dry_run: text(&parameters, "dryRun"),
            body: &body,
        };
        return patch(&shared, &target, name, &request);
    }
    let selector = Selector::parse(
        target.resource,
        target.namespace.as_deref(),
        text(&parameters, "labelSelector"),
        text(&parameters, "fieldSelector"),
    )?;
    if text(&parameters, "sendInitialEvents").is_some() {
        // A server whose WatchList gate is off says this, and clients fall back to list and watch.
        return Err(Status::invalid_list_options(
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        ));
    }
    if verb == Verb::Watch {
        let options = WatchOptions {
            resource_version: number(&parameters, "resourceVersion")?,
            bookmarks: flag(&parameters, "allowWatchBookmarks")?,
            timeout: number(&parameters, "timeoutSeconds")?
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs),
        };
        return watch(&shared, target.resource, &options, selector);
    }
    let options = ListOptions {
        limit: number(&parameters, "limit")?.unwrap_or(0),
        continue_token: text(&parameters, "continue").map(str::to_owned),
        resource_version: number(&parameters, "resourceVersion")?,
        version_match: text(&parameters, "resourceVersionMatch").map(str::to_owned),
    };
    let answer = list(&mut shared.store(), &target, &options, &selector)?;
    Ok(([(CONTENT_TYPE, "application/json")], answer).into_response())
}

fn get_object(shared: &Shared, target: &Target, name: &str) -> Result<Response, Status> {
    let key = (target.namespace.clone().unwrap_or_default(), name.to_owned());
    let mut store = shared.store();
    store.count(target.resource, |served| served.gets += 1);
    let object = store
        .get(target.resource, key)
        .ok_or_else(|| Status::no_such_object(target, name))?;
    Ok(Json(&**object).into_response())
}

/// A parameter that was given and is not empty: an empty one counts as not given.
fn text<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a str> {
    parameters
        .get(name)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}

fn number<T: FromStr>(parameters: &Parameters, name: &str) -> Result<Option<T>, Status> {
    let parse = |value: &str| {
        value
            .parse()
            .map_err(|_| Status::bad_request(format!("{name}: Invalid value: {value:?}")))
    };
    text(parameters, name).map(parse).transpose()
}

fn flag(parameters: &Parameters, name: &str) -> Result<bool, Status> {
    match text(parameters, name) {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(value) => Err(Status::bad_request(format!("{name}: Invalid value: {value:?}"))),
    }
}
