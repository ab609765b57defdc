//! The router serves exactly what is listed.

use std::collections::{BTreeMap, BTreeSet};

use nftfleet_web_api_spec::endpoint::ALL;
use reqwest::Method;
use serde_json::json;

use super::world::{TOKEN, World};
use crate::api::{handler, router, service};

/// The paths that axum's router knows, taken from its debug output: it has no other way to list them.
fn mounted(router: &axum::Router) -> BTreeSet<String> {
    let text = format!("{router:?}");
    let paths = text.split_once("paths: {").expect("the router shows its paths").1;
    let paths = paths.split_once("} }").map_or(paths, |(paths, _)| paths);
    let quoted = paths.split('"').skip(1).step_by(2);
    quoted
        .filter(|path| path.starts_with('/'))
        .map(ToOwned::to_owned)
        .collect()
}

#[tokio::test]
async fn the_router_serves_exactly_the_list() {
    let world = World::new().await;
    for endpoint in ALL {
        assert!(handler(endpoint).is_some(), "{} has no handler", endpoint.id);
    }
    let mut listed: BTreeMap<String, BTreeSet<Method>> = BTreeMap::new();
    for endpoint in ALL {
        listed
            .entry(endpoint.path.to_owned())
            .or_default()
            .insert(endpoint.method.clone());
    }
    for path in service::PATHS {
        listed.insert((*path).to_owned(), BTreeSet::from([Method::GET]));
    }
    let mounted = mounted(&router(world.service.app.clone()));
    let expected: BTreeSet<String> = listed.keys().cloned().collect();
    assert_eq!(mounted, expected, "mounted and listed");
    for (path, methods) in &listed {
        let id = uuid::Uuid::nil().to_string();
        let concrete = path
            .replace("{rollout}", &id)
            .replace("{cluster}", "c")
            .replace("{node}", "n");
        let concrete = concrete.replace("{*file}", "index.html");
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            let answer = world.send(world.request(method.clone(), &concrete)).await;
            if methods.contains(&method) {
                assert_ne!(answer.status, 405, "{method} {path} is listed");
                assert_ne!(answer.body["code"], "no-such-path", "{method} {path} is listed");
            } else {
                assert_eq!(
                    answer.problem(),
                    (405, "method-not-allowed", vec![]),
                    "{method} {path} is not listed"
                );
            }
        }
    }
}

#[tokio::test]
async fn the_service_says_how_it_is() {
    let world = World::new().await;
    let get = |path: &'static str| world.send(world.request(Method::GET, path));
    assert_eq!(get("/healthz").await.status, 200);
    assert_eq!(get("/readyz").await.status, 200);
    let document = get("/openapi.json").await;
    assert_eq!(document.body["info"]["title"], "nftfleet");
    let page = get("/docs").await;
    assert!(page.body.as_str().unwrap().contains("swagger-ui"), "{page:?}");
    let script = get("/docs/swagger-initializer.js").await;
    assert!(script.body.as_str().unwrap().contains("/openapi.json"), "{script:?}");
    assert_eq!(get("/docs/nothing.js").await.problem().1, "no-such-path");
    world.post("/v1/clusters", json!({"name": "demo"})).await;
    let metrics = get("/metrics").await;
    let text = metrics.body.as_str().unwrap();
    for line in [
        "nftfleet_http_requests_total{endpoint=\"create_cluster\",status=\"201\"} 1",
        "nftfleet_agents_waiting 0",
        "# TYPE nftfleet_rollout_tick_duration_seconds histogram",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[tokio::test]
async fn a_service_without_its_database_says_so() {
    let world = World::new().await;
    world.service.app.store.close().await;
    assert_eq!(world.send(world.request(Method::GET, "/healthz")).await.status, 200);
    let ready = world.send(world.request(Method::GET, "/readyz")).await;
    assert_eq!(ready.problem(), (503, "store-unavailable", vec![]));
    let list = world
        .send(world.request(Method::GET, "/v1/clusters").bearer_auth(TOKEN))
        .await;
    assert_eq!(list.problem(), (503, "store-unavailable", vec![]));
    assert_eq!(list.body["detail"], "the database can't be reached; try again");
}
