//! A running service, a client, and agents that do what a test says.

use std::sync::Arc;
use std::time::Duration;

use nftfleet_domain::inventory::Report;
use nftfleet_web_api_spec::types;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::config::{Config, Database};
use crate::embedded::testing;
use crate::secret::SecretHash;
use crate::service::Service;
use crate::store::Ready;
use crate::tasks::rollout_tick;
use crate::testing::{TestClock, TestIds, ready_report};

/// The operators' token.
pub(super) const TOKEN: &str = "the operators' token";

pub(super) struct World {
    pub(super) service: Service,
    pub(super) clock: Arc<TestClock>,
    http: reqwest::Client,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) etag: Option<String>,
    pub(super) kind: String,
    pub(super) body: Value,
}

impl Answer {
    async fn of(response: Response) -> Self {
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let (status, etag, kind) = (response.status().as_u16(), header("etag"), header("content-type"));
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Self {
            status,
            etag,
            kind: kind.unwrap_or_default(),
            body,
        }
    }

    /// The body of a success.
    pub(super) fn ok<T: serde::de::DeserializeOwned>(self) -> T {
        assert!((200..300).contains(&self.status), "{self:?}");
        serde_json::from_value(self.body).unwrap()
    }

    /// The status and code of a problem, and the paths of its faults.
    pub(super) fn problem(&self) -> (u16, &str, Vec<&str>) {
        assert_eq!(self.kind, "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], self.status, "{self:?}");
        let faults = self.body["faults"].as_array();
        let paths = faults
            .into_iter()
            .flatten()
            .map(|fault| fault["path"].as_str().unwrap());
        (self.status, self.body["code"].as_str().unwrap(), paths.collect())
    }
}

impl World {
    pub(super) async fn new() -> Self {
        let database = testing::database().await;
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            database: Database::Url(database.url()),
            operator_token: Some(SecretHash::of(TOKEN)),
            // Only nudges count, so that a test sees what it caused.
            tick_every: Duration::from_hours(1),
        };
        let clock = Arc::new(TestClock::new());
        let service = Service::start(config, Arc::clone(&clock) as _, Arc::new(TestIds::default()))
            .await
            .unwrap();
        service
            .app
            .ready
            .clone()
            .wait_for(|ready| *ready == Ready::Yes)
            .await
            .unwrap();
        // The workspace's other crates make reqwest ask for one; alone it does not matter.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            service,
            clock,
            http: reqwest::Client::new(),
        }
    }

    /// A request without a token.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("http://{}{path}", self.service.address()))
    }

    pub(super) async fn send(&self, request: RequestBuilder) -> Answer {
        Answer::of(request.send().await.unwrap()).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path).bearer_auth(TOKEN)).await
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(self.request(Method::POST, path).bearer_auth(TOKEN).json(&body))
            .await
    }

    /// A cluster `demo` with a token.
    pub(super) async fn cluster(&self) -> String {
        self.post("/v1/clusters", json!({"name": "demo"}))
            .await
            .ok::<types::Cluster>();
        let token = self.post("/v1/clusters/demo/enrolment-tokens", json!({})).await;
        token.ok::<types::EnrolmentToken>().token
    }

    /// A cluster `demo` with agents `node-0`, `node-1`, … that have reported that they are ready.
    pub(super) async fn agents(&self, count: usize) -> Vec<Agent<'_>> {
        let token = self.cluster().await;
        let mut agents = Vec::new();
        for n in 0..count {
            let agent = self.enrol(&token, &format!("node-{n}")).await;
            agent.report(1, ready_report()).await;
            agents.push(agent);
        }
        agents
    }

    pub(super) async fn enrol(&self, token: &str, node: &str) -> Agent<'_> {
        let body = json!({"token": token, "node": node, "agentVersion": "0.1.0"});
        let answer = self
            .send(self.request(Method::POST, "/agent/v1/enrol").json(&body))
            .await;
        assert_eq!(answer.status, 201);
        Agent {
            world: self,
            enrolled: answer.ok(),
        }
    }

    /// A draft of all nodes in stages of these sizes, and the path to it.
    pub(super) async fn draft(&self, sizes: &[Value], settings: Value) -> types::Rollout {
        let answer = self.post("/v1/rollouts", wish(sizes, settings)).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.ok()
    }

    /// The same, started.
    pub(super) async fn rollout(&self, sizes: &[Value], settings: Value) -> types::Rollout {
        let draft = self.draft(sizes, settings).await;
        let hash = json!({"planHash": draft.plan_hash});
        self.post(&format!("/v1/rollouts/{}/start", draft.id), hash).await.ok()
    }

    pub(super) async fn read(&self, rollout: &types::Rollout) -> types::Rollout {
        self.get(&format!("/v1/rollouts/{}", rollout.id)).await.ok()
    }

    /// Lets time pass, and the rollout see it.
    pub(super) async fn pass(&self, seconds: i64, rollout: &types::Rollout) -> types::Rollout {
        self.clock.advance(seconds);
        let id = nftfleet_domain::ids::RolloutId(rollout.id);
        rollout_tick::run_once(&self.service.app, id).await.unwrap();
        self.read(rollout).await
    }

    /// The tasks' states, by node.
    pub(super) async fn states(&self, rollout: &types::Rollout) -> Vec<String> {
        let page: types::TaskPage = self.get(&format!("/v1/rollouts/{}/tasks", rollout.id)).await.ok();
        page.items.into_iter().map(|task| task.state).collect()
    }
}

/// A wish for all nodes of `demo` in stages of these sizes.
#[expect(clippy::needless_pass_by_value, reason = "what json! makes is written in place")]
pub(super) fn wish(sizes: &[Value], settings: Value) -> Value {
    let stages = sizes.iter().enumerate();
    let stages: Vec<Value> = stages
        .map(|(n, size)| json!({"name": format!("s{n}"), "size": size}))
        .collect();
    json!({
        "name": "move", "action": "MOVE_TO_NFTFLEET", "clusters": ["demo"], "stages": stages, "settings": settings,
    })
}

/// An agent that does what the test says.
pub(super) struct Agent<'a> {
    world: &'a World,
    pub(super) enrolled: types::Enrolled,
}

impl Agent<'_> {
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.world.request(method, path).bearer_auth(&self.enrolled.credential)
    }

    pub(super) async fn report(&self, sequence: i64, report: Report) -> types::ReportAccepted {
        let submission = types::ReportSubmission {
            sequence,
            report: report.into(),
        };
        self.world
            .send(self.request(Method::PUT, "/agent/v1/report").json(&submission))
            .await
            .ok()
    }

    pub(super) async fn assignment(&self) -> types::Assignment {
        self.world
            .send(self.request(Method::GET, "/agent/v1/assignment"))
            .await
            .ok()
    }

    /// The work that is wanted, if any.
    pub(super) async fn wanted(&self) -> Option<types::Wanted> {
        self.assignment().await.work.map(|work| work.wanted)
    }

    pub(super) async fn says(&self, work: &types::Work, progress: &str, reasons: &[&str]) -> Answer {
        let body = json!({
            "taskId": work.task_id, "attempt": work.attempt, "progress": progress, "reasons": reasons,
        });
        self.world
            .send(self.request(Method::POST, "/agent/v1/progress").json(&body))
            .await
    }

    /// Says how far it came with the work that it has.
    pub(super) async fn goes(&self, progress: &[&str]) -> types::Assignment {
        let work = self.assignment().await.work.expect("there is work");
        let mut last = None;
        for progress in progress {
            last = Some(self.says(&work, progress, &[]).await.ok());
        }
        last.expect("there is progress")
    }

    /// Gives its work up.
    pub(super) async fn reverts(&self) -> types::Assignment {
        let work = self.assignment().await.work.expect("there is work");
        self.says(&work, "REVERTED", &["the probe failed"]).await.ok()
    }
}
