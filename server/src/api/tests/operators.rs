//! What operators read.

use nftfleet_domain::inventory::Fact;
use nftfleet_web_api_spec::types;
use reqwest::Method;
use serde_json::json;

use super::world::{World, wish};
use crate::testing::{blocked_report, ready_report};

#[tokio::test]
async fn clusters_are_registered_read_and_listed_in_pages() {
    let world = World::new().await;
    for name in ["b", "a", "c"] {
        let answer = world.post("/v1/clusters", json!({"name": name})).await;
        assert_eq!(answer.status, 201);
    }
    let one: types::Cluster = world.get("/v1/clusters/a").await.ok();
    assert_eq!((one.name.as_str(), one.nodes), ("a", 0));
    let first: types::ClusterPage = world.get("/v1/clusters?limit=2").await.ok();
    let names: Vec<_> = first.items.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let token = first.next_page_token.unwrap();
    let last: types::ClusterPage = world.get(&format!("/v1/clusters?limit=2&pageToken={token}")).await.ok();
    assert_eq!(last.items[0].name, "c");
    assert_eq!(last.next_page_token, None);
}

#[tokio::test]
async fn left_overs_are_shown_as_warnings_and_block_nobody() {
    let world = World::new().await;
    let token = world.cluster().await;
    let agent = world.enrol(&token, "a").await;
    let mut report = ready_report();
    report.proxy.ipvs_link = Fact::Known(true);
    agent.report(1, report).await;
    let node: types::Node = world.get("/v1/clusters/demo/nodes/a").await.ok();
    assert_eq!(node.readiness.verdict, types::Verdict::Ready);
    assert!(node.readiness.reasons.is_empty());
    assert_eq!(node.readiness.warnings[0].code, "proxy-left-overs");
    let planned: types::RolloutPlan = world
        .post("/v1/rollouts/plan", wish(&[json!("rest")], json!({})))
        .await
        .ok();
    assert_eq!(planned.stages[0].nodes[0].readiness.warnings.len(), 1);
}

#[tokio::test]
async fn nodes_and_agents_show_what_was_reported() {
    let world = World::new().await;
    let token = world.cluster().await;
    let (ready, blocked) = (world.enrol(&token, "a").await, world.enrol(&token, "b").await);
    world.enrol(&token, "c").await;
    ready.report(1, ready_report()).await;
    blocked.report(1, blocked_report()).await;
    let node: types::Node = world.get("/v1/clusters/demo/nodes/a").await.ok();
    assert_eq!(node.id, ready.enrolled.node_id);
    assert_eq!(node.proxy_mode.unwrap().mode, "IPTABLES_NFT");
    assert_eq!(node.report, Some(ready_report().into()));
    let page: types::NodePage = world.get("/v1/nodes?cluster=demo").await.ok();
    let verdicts: Vec<_> = page.items.iter().map(|n| n.readiness.verdict).collect();
    let expected = [types::Verdict::Ready, types::Verdict::Blocked, types::Verdict::Unknown];
    assert_eq!(verdicts, expected);
    assert!(page.items.iter().all(|node| node.report.is_none()));
    assert_eq!(page.items[1].readiness.reasons[0].code, "kernel-too-old");
    // Silence makes a node unknown.
    world.clock.advance(121);
    let node: types::Node = world.get("/v1/clusters/demo/nodes/a").await.ok();
    assert_eq!(node.readiness.reasons[0].code, "silent");
    let first: types::AgentPage = world.get("/v1/agents?limit=1").await.ok();
    let next = first.next_page_token.unwrap();
    let rest: types::AgentPage = world
        .get(&format!("/v1/agents?cluster=demo&pageToken={next}"))
        .await
        .ok();
    let names: Vec<_> = first.items.iter().chain(&rest.items).map(|a| a.node.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let empty: types::NodePage = world.get("/v1/nodes?cluster=other").await.ok();
    assert!(empty.items.is_empty());
}

#[tokio::test]
async fn a_plan_says_what_would_happen_and_a_draft_has_its_hash() {
    let world = World::new().await;
    let agents = world.agents(3).await;
    agents[2].report(2, blocked_report()).await;
    let wish = wish(&[json!({"count": 1}), json!("rest")], json!({"maxConcurrent": 2}));
    let plan: types::RolloutPlan = world.post("/v1/rollouts/plan", wish.clone()).await.ok();
    let nodes: Vec<Vec<_>> = plan
        .stages
        .iter()
        .map(|s| s.nodes.iter().map(|n| n.node.as_str()).collect())
        .collect();
    assert_eq!(nodes, [vec!["node-0"], vec!["node-1", "node-2"]]);
    assert_eq!(plan.stages[1].nodes[1].readiness.verdict, types::Verdict::Blocked);
    let none: types::RolloutPage = world.get("/v1/rollouts").await.ok();
    assert!(none.items.is_empty(), "a plan is not kept");
    let answer = world.post("/v1/rollouts", wish).await;
    assert_eq!((answer.status, answer.etag.as_deref()), (201, Some("\"1\"")));
    let draft: types::Rollout = answer.ok();
    assert_eq!(draft.plan_hash, plan.plan_hash);
    assert_eq!(draft.state, types::RolloutState::Draft);
    assert_eq!(draft.waiting_on[0].kind, "NOT_STARTED");
    assert_eq!(draft.settings.max_concurrent, Some(2));
    let later = world.draft(&[json!("rest")], json!({})).await;
    let page: types::RolloutPage = world.get("/v1/rollouts?limit=1").await.ok();
    assert_eq!(page.items[0].id, later.id, "newest first");
    let next = page.next_page_token.unwrap();
    let page: types::RolloutPage = world.get(&format!("/v1/rollouts?pageToken={next}")).await.ok();
    assert_eq!(page.items[0].id, draft.id);
    assert_eq!(page.items[0].stages.len(), 2);
    let path = format!("/v1/rollouts/{}/tasks", draft.id);
    let first: types::TaskPage = world.get(&format!("{path}?limit=2")).await.ok();
    let next = first.next_page_token.unwrap();
    let last: types::TaskPage = world.get(&format!("{path}?limit=2&pageToken={next}")).await.ok();
    assert_eq!(
        (last.items[0].node.as_str(), last.items[0].stage.as_str()),
        ("node-2", "s1")
    );
    assert_eq!(last.items[0].timeline[0].state, "PENDING");
}

#[tokio::test]
async fn operators_need_the_token() {
    let world = World::new().await;
    for request in [
        world.request(Method::GET, "/v1/clusters"),
        world.request(Method::GET, "/v1/clusters").bearer_auth("another token"),
        world
            .request(Method::GET, "/v1/clusters")
            .basic_auth("operator", Some("x")),
    ] {
        let answer = world.send(request).await;
        assert_eq!(answer.problem(), (401, "unauthenticated", vec![]));
    }
}
