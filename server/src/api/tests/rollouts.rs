//! Whole rollouts, driven by simulated agents.

use nftfleet_web_api_spec::types::{self, RolloutState, StageState, Wanted};
use reqwest::Method;
use serde_json::json;

use super::world::{Agent, TOKEN, World};
use crate::testing::blocked_report;

/// Moves a node to its confirmation.
async fn moves(world: &World, rollout: &types::Rollout, agent: &Agent<'_>) {
    agent.goes(&["PREFLIGHT", "APPLYING", "VERIFYING", "SOAKING"]).await;
    world.pass(29, rollout).await;
    assert_eq!(agent.wanted().await, Some(Wanted::Move), "the soak has not ended");
    world.pass(1, rollout).await;
    assert_eq!(agent.wanted().await, Some(Wanted::Confirm));
    let after = agent.goes(&["CONFIRMED"]).await;
    assert_eq!(after.work, None);
    world.pass(0, rollout).await;
}

#[tokio::test]
async fn a_rollout_goes_through_its_stages_to_success() {
    let world = World::new().await;
    let agents = world.agents(3).await;
    let settings = json!({"maxConcurrent": 2, "stageSoakSeconds": 130});
    let rollout = world.rollout(&[json!({"count": 1}), json!("rest")], settings).await;
    assert_eq!(rollout.state, RolloutState::Running);
    assert!(rollout.started_at.is_some());
    assert_eq!(world.states(&rollout).await, ["OFFERED", "PENDING", "PENDING"]);
    assert_eq!(agents[1].wanted().await, None);
    moves(&world, &rollout, &agents[0]).await;
    let soaking = world.read(&rollout).await;
    assert_eq!(soaking.stages[0].state, StageState::Soaking);
    assert_eq!(soaking.waiting_on[0].kind, "STAGE_SOAK");
    assert_eq!(agents[1].wanted().await, None);
    let second = world.pass(130, &rollout).await;
    assert_eq!(second.stages[0].state, StageState::Passed);
    // All of them were silent for two minutes meanwhile: unknown is never ready.
    assert_eq!(second.waiting_on[0].kind, "NODE_UNKNOWN");
    for agent in &agents[1..] {
        agent.assignment().await;
    }
    world.pass(0, &rollout).await;
    assert_eq!(world.states(&rollout).await, ["CONFIRMED", "OFFERED", "OFFERED"]);
    let (one, two) = (&agents[1], &agents[2]);
    one.goes(&["SOAKING"]).await;
    two.goes(&["SOAKING"]).await;
    world.pass(30, &rollout).await;
    one.goes(&["CONFIRMED"]).await;
    two.goes(&["CONFIRMED"]).await;
    world.pass(0, &rollout).await;
    let ended = world.pass(130, &rollout).await;
    assert_eq!(ended.state, RolloutState::Succeeded);
    assert!(ended.ended_at.is_some() && ended.waiting_on.is_empty());
    let tasks: types::TaskPage = world.get(&format!("/v1/rollouts/{}/tasks", rollout.id)).await.ok();
    let timeline: Vec<_> = tasks.items[0]
        .timeline
        .iter()
        .map(|event| event.state.as_str())
        .collect();
    let expected = [
        "PENDING",
        "OFFERED",
        "PREFLIGHT",
        "APPLYING",
        "VERIFYING",
        "SOAKING",
        "CONFIRMING",
        "CONFIRMED",
    ];
    assert_eq!(timeline, expected);
}

#[tokio::test]
async fn a_canary_that_fails_ends_the_rollout_and_spares_the_rest() {
    let world = World::new().await;
    let agents = world.agents(3).await;
    let rollout = world.rollout(&[json!({"count": 1}), json!("rest")], json!({})).await;
    agents[0].goes(&["VERIFYING"]).await;
    agents[0].reverts().await;
    let ended = world.pass(0, &rollout).await;
    assert_eq!(ended.state, RolloutState::Failed);
    assert_eq!(world.states(&rollout).await, ["REVERTED", "SKIPPED", "SKIPPED"]);
    let tasks: types::TaskPage = world.get(&format!("/v1/rollouts/{}/tasks", rollout.id)).await.ok();
    assert_eq!(tasks.items[0].reasons, ["the probe failed"]);
    assert_eq!(agents[1].wanted().await, None);
}

#[tokio::test]
async fn a_progress_nudges_the_rollout_by_itself() {
    let world = World::new().await;
    let agents = world.agents(2).await;
    let rollout = world.rollout(&[json!("rest")], json!({"maxFailures": 2})).await;
    let known = agents[1].assignment().await.generation;
    agents[0].reverts().await;
    // No tick is run here: the long-poll ends when the nudge has granted the next node.
    let path = format!("/agent/v1/assignment?waitSeconds=20&generation={known}");
    let next: types::Assignment = world.send(agents[1].request(Method::GET, &path)).await.ok();
    assert_eq!(next.work.unwrap().wanted, Wanted::Move);
    agents[1].goes(&["PREFLIGHT"]).await;
    assert_eq!(world.read(&rollout).await.state, RolloutState::Running);
}

#[tokio::test]
async fn a_blocked_node_is_rejected_and_says_why() {
    let world = World::new().await;
    let agents = world.agents(2).await;
    agents[0].report(2, blocked_report()).await;
    let rollout = world.rollout(&[json!("rest")], json!({"maxFailures": 1})).await;
    let tasks: types::TaskPage = world.get(&format!("/v1/rollouts/{}/tasks", rollout.id)).await.ok();
    assert_eq!(tasks.items[0].state, "REJECTED");
    assert!(
        tasks.items[0].reasons[0].starts_with("kernel-too-old: "),
        "{:?}",
        tasks.items[0].reasons
    );
    assert_eq!(agents[0].wanted().await, None);
    moves(&world, &rollout, &agents[1]).await;
    assert_eq!(world.read(&rollout).await.state, RolloutState::SucceededWithFailures);
}

#[tokio::test]
async fn a_paused_rollout_confirms_and_grants_none_until_it_is_resumed() {
    let world = World::new().await;
    let agents = world.agents(2).await;
    let rollout = world.rollout(&[json!("rest")], json!({})).await;
    let path = format!("/v1/rollouts/{}", rollout.id);
    let paused = world.post(&format!("{path}/pause"), json!({"reason": "lunch"})).await;
    assert_eq!(paused.ok::<types::Rollout>().state, RolloutState::Paused);
    moves(&world, &rollout, &agents[0]).await;
    assert_eq!(world.states(&rollout).await, ["CONFIRMED", "PENDING"]);
    agents[1].assignment().await;
    let current = world.read(&rollout).await;
    let resume = world
        .request(Method::POST, &format!("{path}/resume"))
        .bearer_auth(TOKEN);
    let resume = resume.header("If-Match", format!("\"{}\"", current.generation));
    let answer = world.send(resume.json(&json!({"reason": "back"}))).await;
    assert_ne!(answer.etag, Some(format!("\"{}\"", current.generation)));
    assert_eq!(answer.ok::<types::Rollout>().state, RolloutState::Running);
    assert_eq!(world.states(&rollout).await, ["CONFIRMED", "OFFERED"]);
}

#[tokio::test]
async fn an_abort_takes_nodes_back_or_lets_them_end() {
    for (underway, wanted) in [("REVERT", Wanted::Revert), ("FINISH", Wanted::Move)] {
        let world = World::new().await;
        let agents = world.agents(2).await;
        let rollout = world.rollout(&[json!("rest")], json!({})).await;
        agents[0].goes(&["VERIFYING"]).await;
        let body = json!({"reason": "no", "underway": underway});
        let aborting = world.post(&format!("/v1/rollouts/{}/abort", rollout.id), body).await;
        assert_eq!(aborting.ok::<types::Rollout>().state, RolloutState::Aborting);
        assert_eq!(agents[0].wanted().await, Some(wanted));
        if underway == "REVERT" {
            agents[0].reverts().await;
        } else {
            agents[0].goes(&["SOAKING"]).await;
            world.pass(30, &rollout).await;
            agents[0].goes(&["CONFIRMED"]).await;
        }
        assert_eq!(world.pass(0, &rollout).await.state, RolloutState::Aborted);
        assert_eq!(world.states(&rollout).await[1], "SKIPPED");
    }
}
