//! Everything that can be asked for wrongly, and what is answered.

use nftfleet_web_api_spec::types;
use reqwest::Method;
use serde_json::{Value, json};

use super::world::{TOKEN, World, wish};
use crate::testing::ready_report;

#[tokio::test]
async fn bodies_of_the_wrong_form_name_the_field() {
    let world = World::new().await;
    let agents = world.agents(2).await;
    let rest = [json!("rest")];
    let with = |pointer: &str, value: Value| {
        let mut body = wish(&rest, json!({}));
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    let mut unknown = wish(&rest, json!({}));
    unknown["stages"][0]["colour"] = json!("red");
    let cases = [
        (unknown, (400, "invalid-body", vec!["stages[0].colour"])),
        (
            with("/stages/0/size", json!({"count": "x"})),
            (400, "invalid-body", vec!["stages[0].size.count"]),
        ),
        (with("/action", json!("DANCE")), (400, "invalid-body", vec!["action"])),
        (with("/name", json!("x\u{0}")), (400, "invalid-body", vec!["."])),
        (
            with("/settings", json!({"maxConcurrent": -1})),
            (400, "invalid-body", vec!["settings.maxConcurrent"]),
        ),
        (with("/name", json!("No")), (422, "invalid-plan", vec!["name"])),
        (
            with("/clusters", json!(["nowhere"])),
            (422, "invalid-plan", vec!["clusters[0]"]),
        ),
        (
            with("/stages/0/size", json!({"count": 3})),
            (422, "invalid-plan", vec!["stages[0].size.count"]),
        ),
        (
            with("/stages/0/size", json!({"percent": 101})),
            (422, "invalid-plan", vec!["stages[0].size.percent"]),
        ),
        (
            with("/stages/0/size", json!({"nodes": ["x"]})),
            (422, "invalid-plan", vec!["stages[0].size.nodes[0]", "stages[0].size"]),
        ),
        (
            with("/stages/0/size", json!({"count": 1})),
            (422, "invalid-plan", vec!["stages"]),
        ),
        (
            with("/settings", json!({"maxConcurrent": 0})),
            (422, "invalid-plan", vec!["settings.maxConcurrent"]),
        ),
    ];
    for (body, expected) in cases {
        for path in ["/v1/rollouts", "/v1/rollouts/plan"] {
            assert_eq!(
                world.post(path, body.clone()).await.problem(),
                expected,
                "{path} {body}"
            );
        }
    }
    let cluster = world.post("/v1/clusters", json!({"name": "A"})).await;
    assert_eq!(cluster.problem(), (400, "invalid-body", vec!["name"]));
    let token = world
        .post("/v1/clusters/demo/enrolment-tokens", json!({"expiresInSeconds": 59}))
        .await;
    assert_eq!(token.problem(), (400, "invalid-body", vec!["expiresInSeconds"]));
    let report = json!({"sequence": 0, "report": types::Report::from(ready_report())});
    let report = world
        .send(agents[0].request(Method::PUT, "/agent/v1/report").json(&report))
        .await;
    assert_eq!(report.problem(), (400, "invalid-body", vec!["sequence"]));
    for (node, version, path) in [("-", "1", "node"), ("n", "", "agentVersion")] {
        let body = json!({"token": "t", "node": node, "agentVersion": version});
        let answer = world
            .send(world.request(Method::POST, "/agent/v1/enrol").json(&body))
            .await;
        assert_eq!(answer.problem(), (400, "invalid-body", vec![path]));
    }
    world.rollout(&rest, json!({})).await;
    let work = agents[0].assignment().await.work.unwrap();
    for (progress, reasons) in [("REVERTED", &[][..]), ("PREFLIGHT", &["x"][..])] {
        let answer = agents[0].says(&work, progress, reasons).await;
        assert_eq!(answer.problem(), (400, "invalid-body", vec!["reasons"]));
    }
    assert_eq!(agents[0].says(&work, "DANCING", &[]).await.problem().2, ["progress"]);
}

#[tokio::test]
async fn parameters_are_checked_by_name_and_range() {
    let world = World::new().await;
    let agents = world.agents(1).await;
    for (path, name) in [
        ("/v1/clusters?limit=0", "limit"),
        ("/v1/clusters?limit=1001", "limit"),
        ("/v1/clusters?limit=many", "limit"),
        ("/v1/clusters?pageToken=rubbish", "pageToken"),
        ("/v1/clusters?cluster=demo", "cluster"),
        ("/v1/clusters/demo?x=1", "x"),
        ("/v1/nodes?cluster=A", "cluster"),
        ("/v1/nodes?limit=1&limit=2", "limit"),
        ("/v1/rollouts/not-a-uuid", "rollout"),
        ("/v1/rollouts/not-a-uuid/tasks", "rollout"),
    ] {
        assert_eq!(
            world.get(path).await.problem(),
            (400, "invalid-parameter", vec![name]),
            "{path}"
        );
    }
    for (query, name) in [
        ("waitSeconds=61", "waitSeconds"),
        ("generation=x", "generation"),
        ("wait=1", "wait"),
    ] {
        let request = agents[0].request(Method::GET, &format!("/agent/v1/assignment?{query}"));
        assert_eq!(
            world.send(request).await.problem(),
            (400, "invalid-parameter", vec![name])
        );
    }
    let segment = world.get("/v1/clusters/%ff").await;
    assert_eq!(segment.problem().1, "invalid-parameter");
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let world = World::new().await;
    world.cluster().await;
    let nobody = uuid::Uuid::nil();
    for (path, code) in [
        ("/v1/clusters/other".to_owned(), "cluster-not-found"),
        ("/v1/clusters/Not%20a%20name".to_owned(), "cluster-not-found"),
        ("/v1/clusters/demo/nodes/n".to_owned(), "node-not-found"),
        ("/v1/clusters/other/nodes/n".to_owned(), "node-not-found"),
        (format!("/v1/rollouts/{nobody}"), "rollout-not-found"),
        (format!("/v1/rollouts/{nobody}/tasks"), "rollout-not-found"),
        ("/v1/nothing".to_owned(), "no-such-path"),
        ("/".to_owned(), "no-such-path"),
    ] {
        assert_eq!(world.get(&path).await.problem(), (404, code, vec![]), "{path}");
    }
    let token = world.post("/v1/clusters/other/enrolment-tokens", json!({})).await;
    assert_eq!(token.problem(), (404, "cluster-not-found", vec![]));
    let start = world
        .post(&format!("/v1/rollouts/{nobody}/start"), json!({"planHash": ""}))
        .await;
    assert_eq!(start.problem(), (404, "rollout-not-found", vec![]));
    let again = world.post("/v1/clusters", json!({"name": "demo"})).await;
    assert_eq!(again.problem(), (409, "cluster-exists", vec![]));
}

#[tokio::test]
async fn wrong_methods_media_types_and_sizes_are_problems_too() {
    let world = World::new().await;
    let send = |request: reqwest::RequestBuilder| world.send(request.bearer_auth(TOKEN));
    let method = send(world.request(Method::DELETE, "/v1/clusters")).await;
    assert_eq!(method.problem(), (405, "method-not-allowed", vec![]));
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let request = world.request(Method::POST, "/v1/clusters").header("content-type", kind);
        assert_eq!(
            send(request.body("{}")).await.problem(),
            (415, "unsupported-media-type", vec![])
        );
    }
    let request = world
        .request(Method::POST, "/v1/clusters")
        .header("content-type", "application/json");
    let cut = send(request.body("{\"name\":")).await;
    assert_eq!(cut.problem(), (400, "invalid-body", vec!["name"]));
    let large = json!({"name": "x".repeat(1024 * 1024)});
    let large = world.post("/v1/clusters", large).await;
    assert_eq!(large.problem(), (413, "payload-too-large", vec![]));
}

#[tokio::test]
async fn actions_are_refused_when_stale_illegal_or_of_another_plan() {
    let world = World::new().await;
    world.agents(1).await;
    let draft = world.draft(&[json!("rest")], json!({})).await;
    let act = async |action: &str, if_match: Option<&str>, body: Value| {
        let path = format!("/v1/rollouts/{}/{action}", draft.id);
        let mut request = world.request(Method::POST, &path).bearer_auth(TOKEN).json(&body);
        if let Some(etag) = if_match {
            request = request.header("If-Match", etag);
        }
        world.send(request).await
    };
    let good = json!({"planHash": draft.plan_hash});
    let reason = json!({"reason": "x"});
    let wrong = act("start", None, json!({"planHash": "0"})).await;
    assert_eq!(wrong.problem(), (409, "plan-hash-mismatch", vec![]));
    let stale = act("start", Some("\"0\""), good.clone()).await;
    assert_eq!(stale.problem(), (412, "stale-generation", vec![]));
    for action in ["pause", "resume"] {
        let early = act(action, None, reason.clone()).await;
        assert_eq!(early.problem(), (409, "illegal-state", vec![]));
    }
    let started = act("start", Some("\"1\""), good.clone()).await;
    assert_eq!((started.status, started.etag.as_deref()), (200, Some("\"2\"")));
    assert_eq!(act("start", None, good).await.problem(), (409, "illegal-state", vec![]));
    for action in ["pause", "resume"] {
        assert_eq!(act(action, Some("\"1\""), reason.clone()).await.problem().0, 412);
    }
    let abort = json!({"reason": "x", "underway": "FINISH"});
    assert_eq!(act("abort", Some("\"1\""), abort).await.problem().0, 412);
    for blank in ["", "  ", &"x".repeat(1001)] {
        let answer = act("pause", None, json!({"reason": blank})).await;
        assert_eq!(answer.problem(), (400, "invalid-body", vec!["reason"]));
    }
    let nothing = act("abort", None, json!({"reason": "x", "underway": "NOTHING"})).await;
    assert_eq!(nothing.problem(), (400, "invalid-body", vec!["underway"]));
}
