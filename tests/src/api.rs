//! The operator's side of the REST API, over real HTTP.

use std::time::Duration;

use nftfleet_web_api_spec::endpoint::{self, Endpoint};
use nftfleet_web_api_spec::problem::Problem;
use nftfleet_web_api_spec::types::{
    Cluster, EnrolmentToken, NewCluster, NewEnrolmentToken, NewRollout, Node, NodePage, Rollout, StartRequest, Task,
    TaskPage,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// A client of one server. Its sockets are made in the namespace of the calling thread.
#[derive(Clone, Debug)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    token: String,
}

/// What went wrong with a call.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The server can't be reached.
    #[error("the server can't be reached: {0}")]
    Unreachable(#[from] reqwest::Error),
    /// It refused.
    #[error("the server refused: {0:?}")]
    Refused(Box<Problem>),
    /// The answer is not of the declared form.
    #[error("the answer is not of the declared form: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl Api {
    /// A client of the server at `base`, with the operator's token.
    pub fn new(base: &str, token: &str) -> Self {
        // An answer of "already installed" is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(10))
            .build()
            .expect("a client can be built");
        Self {
            http,
            base: base.to_owned(),
            token: token.to_owned(),
        }
    }

    /// Calls an endpoint as it is declared.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn call<T: DeserializeOwned>(
        &self,
        endpoint: &Endpoint,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&impl Serialize>,
    ) -> Result<T, ApiError> {
        let url = format!("{}{}", self.base, endpoint.path_with(path));
        let mut request = self
            .http
            .request(endpoint.method.clone(), url)
            .bearer_auth(&self.token)
            .query(query);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let is_success = response.status().is_success();
        let bytes = response.bytes().await?;
        if is_success {
            Ok(serde_json::from_slice(&bytes)?)
        } else {
            Err(ApiError::Refused(Box::new(serde_json::from_slice(&bytes)?)))
        }
    }

    /// Whether the server says that it is ready.
    pub async fn is_ready(&self) -> bool {
        let answer = self.http.get(format!("{}/readyz", self.base)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Registers a cluster.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn create_cluster(&self, name: &str) -> Result<Cluster, ApiError> {
        self.call(
            &endpoint::CREATE_CLUSTER,
            &[],
            &[],
            Some(&NewCluster { name: name.to_owned() }),
        )
        .await
    }

    /// Makes an enrolment token.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn create_enrolment_token(&self, cluster: &str) -> Result<EnrolmentToken, ApiError> {
        let body = NewEnrolmentToken {
            expires_in_seconds: None,
        };
        self.call(&endpoint::CREATE_ENROLMENT_TOKEN, &[cluster], &[], Some(&body))
            .await
    }

    /// All nodes of a cluster.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn nodes(&self, cluster: &str) -> Result<Vec<Node>, ApiError> {
        let query = [("cluster", cluster), ("limit", "1000")];
        let page: NodePage = self.call(&endpoint::LIST_NODES, &[], &query, None::<&()>).await?;
        Ok(page.items)
    }

    /// Plans a rollout and keeps it as a draft.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn create_rollout(&self, wish: &NewRollout) -> Result<Rollout, ApiError> {
        self.call(&endpoint::CREATE_ROLLOUT, &[], &[], Some(wish)).await
    }

    /// Starts a draft.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn start_rollout(&self, draft: &Rollout) -> Result<Rollout, ApiError> {
        let body = StartRequest {
            plan_hash: draft.plan_hash.clone(),
        };
        self.call(&endpoint::START_ROLLOUT, &[&draft.id.to_string()], &[], Some(&body))
            .await
    }

    /// Reads a rollout.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn rollout(&self, id: Uuid) -> Result<Rollout, ApiError> {
        self.call(&endpoint::GET_ROLLOUT, &[&id.to_string()], &[], None::<&()>)
            .await
    }

    /// All tasks of a rollout, by stage, cluster and node.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn tasks(&self, id: Uuid) -> Result<Vec<Task>, ApiError> {
        let query = [("limit", "1000")];
        let page: TaskPage = self
            .call(&endpoint::LIST_TASKS, &[&id.to_string()], &query, None::<&()>)
            .await?;
        Ok(page.items)
    }
}
