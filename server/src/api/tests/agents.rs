//! What agents say and hear.

use std::time::Duration;

use nftfleet_web_api_spec::types;
use reqwest::Method;
use serde_json::json;

use super::world::World;
use crate::testing::ready_report;

#[tokio::test]
async fn an_agent_enrols_and_enrolling_again_replaces_its_credential() {
    let world = World::new().await;
    let token = world.cluster().await;
    let first = world.enrol(&token, "n").await;
    assert_eq!(first.assignment().await.work, None);
    let second = world.enrol(&token, "n").await;
    assert_eq!(second.enrolled.node_id, first.enrolled.node_id);
    assert_eq!(second.enrolled.credential.len(), 64);
    let old = world.send(first.request(Method::GET, "/agent/v1/assignment")).await;
    assert_eq!(old.problem(), (401, "unauthenticated", vec![]));
    // The operators' token is not an agent's credential.
    let operator = world
        .request(Method::GET, "/agent/v1/assignment")
        .bearer_auth(super::world::TOKEN);
    assert_eq!(world.send(operator).await.status, 401);
    for (token, wait) in [("rubbish", 0), (token.as_str(), 3600)] {
        world.clock.advance(wait);
        let body = json!({"token": token, "node": "m", "agentVersion": "0.1.0"});
        let answer = world
            .send(world.request(Method::POST, "/agent/v1/enrol").json(&body))
            .await;
        assert_eq!(answer.problem(), (401, "enrolment-refused", vec![]));
    }
}

#[tokio::test]
async fn a_report_is_answered_with_the_newest_sequence() {
    let world = World::new().await;
    let agents = world.agents(1).await;
    for (sequence, newest) in [(3, 3), (3, 3), (2, 3), (4, 4)] {
        let accepted = agents[0].report(sequence, ready_report()).await;
        assert_eq!((accepted.sequence, accepted.next_report_seconds), (newest, 30));
    }
}

#[tokio::test]
async fn a_heartbeat_is_enough_to_stay_known() {
    let world = World::new().await;
    let agents = world.agents(1).await;
    world.clock.advance(119);
    agents[0].assignment().await;
    world.clock.advance(119);
    let node: types::Node = world.get("/v1/clusters/demo/nodes/node-0").await.ok();
    assert_eq!(node.readiness.verdict, types::Verdict::Ready);
}

#[tokio::test]
async fn a_long_poll_is_woken_by_a_grant_and_by_the_end_of_the_service() {
    let world = World::new().await;
    let agents = world.agents(1).await;
    let known = agents[0].assignment().await.generation;
    let poll = |generation: i64| {
        let path = format!("/agent/v1/assignment?waitSeconds=60&generation={generation}");
        let request = agents[0].request(Method::GET, &path);
        tokio::spawn(async move { request.send().await.unwrap().json::<types::Assignment>().await.unwrap() })
    };
    // A generation that the agent does not have is answered at once.
    let now = poll(known + 1).await.unwrap();
    assert_eq!(now.generation, known);
    let waiting = poll(known);
    let is_waiting = async || {
        while world.service.app.metrics.agents_waiting.get() == 0 {
            tokio::task::yield_now().await;
        }
    };
    is_waiting().await;
    world.rollout(&[json!("rest")], json!({})).await;
    let granted = tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(granted.work.unwrap().wanted, types::Wanted::Move);
    let waiting = poll(granted.generation);
    is_waiting().await;
    drop(agents);
    let begun = std::time::Instant::now();
    world.service.stop().await;
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "a long-poll does not hold the service up"
    );
    let answered = waiting.await.unwrap();
    assert_eq!(answered.generation, granted.generation);
}

#[tokio::test]
async fn the_same_end_said_twice_is_fine_and_a_late_attempt_is_not() {
    let world = World::new().await;
    let agents = world.agents(1).await;
    let rollout = world
        .rollout(&[json!("rest")], json!({"nodeSoakSeconds": 0, "maxFailures": 5}))
        .await;
    let work = agents[0].assignment().await.work.unwrap();
    let late = types::Work {
        attempt: 2,
        ..work.clone()
    };
    assert_eq!(
        agents[0].says(&late, "PREFLIGHT", &[]).await.problem(),
        (409, "stale-attempt", vec![])
    );
    assert_eq!(
        agents[0].says(&work, "CONFIRMED", &[]).await.problem(),
        (409, "illegal-progress", vec![])
    );
    agents[0].goes(&["PREFLIGHT", "PREFLIGHT", "SOAKING", "APPLYING"]).await;
    let rollout = world.pass(0, &rollout).await;
    assert_eq!(world.states(&rollout).await, ["CONFIRMING"]);
    assert_eq!(agents[0].wanted().await, Some(types::Wanted::Confirm));
    for _ in 0..2 {
        let answer = agents[0].says(&work, "CONFIRMED", &[]).await;
        assert_eq!(answer.ok::<types::Assignment>().work, None);
    }
    let after = agents[0].says(&work, "REVERTED", &["x"]).await;
    assert_eq!(after.problem(), (409, "stale-attempt", vec![]));
    let other = types::Work {
        task_id: rollout.id,
        ..work
    };
    assert_eq!(
        agents[0].says(&other, "PREFLIGHT", &[]).await.problem(),
        (404, "task-not-found", vec![])
    );
}

#[tokio::test]
async fn an_agent_cannot_speak_of_another_nodes_task() {
    let world = World::new().await;
    let agents = world.agents(2).await;
    world.rollout(&[json!("rest")], json!({})).await;
    let work = agents[0].assignment().await.work.unwrap();
    assert_eq!(
        agents[1].says(&work, "PREFLIGHT", &[]).await.problem(),
        (404, "task-not-found", vec![])
    );
}
