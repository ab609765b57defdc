//! The HTTP client of the server, one function per endpoint of agents.

use std::time::Duration;

use nftfleet_web_api_spec::endpoint::{ENROL_AGENT, Endpoint, GET_ASSIGNMENT, POST_PROGRESS, PUT_REPORT};
use nftfleet_web_api_spec::problem::{Problem, ProblemCode};
use nftfleet_web_api_spec::types::{Assignment, Enrolled, Enrolment, ProgressReport, ReportAccepted, ReportSubmission};
use reqwest::{RequestBuilder, Url};
use serde::de::DeserializeOwned;

/// How long the server may take to answer, beyond what it was asked to wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It can't be reached, or the connection broke.
    #[error("the server can't be reached: {0}")]
    Unreachable(#[source] reqwest::Error),
    /// It refused, and said why.
    #[error("the server refused: {} ({})", .0.detail, .0.code.as_str())]
    Refused(Box<Problem>),
    /// It answered something else than agreed.
    #[error("the server answered {status} with a body that is not of the agreed form")]
    Malformed {
        /// The HTTP status.
        status: u16,
    },
}

impl ClientError {
    /// The kind of refusal, if it was one.
    pub fn code(&self) -> Option<ProblemCode> {
        match self {
            Self::Refused(problem) => Some(problem.code),
            _ => None,
        }
    }

    /// Whether the server has refused for good to hear this progress. Everything else may be the word of something between
    /// us and the server, and is tried again.
    pub fn is_final(&self) -> bool {
        use ProblemCode::{IllegalProgress, InvalidBody, StaleAttempt, TaskNotFound};
        matches!(
            self.code(),
            Some(TaskNotFound | StaleAttempt | IllegalProgress | InvalidBody)
        )
    }
}

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
}

impl Client {
    /// A client of the server at `base`.
    ///
    /// # Errors
    /// The TLS library can't be set up.
    pub fn new(base: Url) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .build()?;
        Ok(Self { http, base })
    }

    fn request(&self, endpoint: &Endpoint) -> RequestBuilder {
        let mut url = self.base.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}{}", endpoint.path));
        self.http.request(endpoint.method.clone(), url).timeout(ANSWER_WITHIN)
    }

    /// Exchanges the enrolment token for a credential.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn enrol(&self, enrolment: &Enrolment) -> Result<Enrolled, ClientError> {
        send(self.request(&ENROL_AGENT).json(enrolment)).await
    }

    /// Sends a report.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn report(&self, credential: &str, report: &ReportSubmission) -> Result<ReportAccepted, ClientError> {
        send(self.request(&PUT_REPORT).bearer_auth(credential).json(report)).await
    }

    /// Asks what is wanted, and waits up to `wait` for something else than `generation`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn assignment(
        &self,
        credential: &str,
        generation: Option<i64>,
        wait: Duration,
    ) -> Result<Assignment, ClientError> {
        let mut query = vec![("waitSeconds", wait.as_secs().to_string())];
        query.extend(generation.map(|generation| ("generation", generation.to_string())));
        let request = self.request(&GET_ASSIGNMENT).timeout(wait + ANSWER_WITHIN);
        send(request.bearer_auth(credential).query(&query)).await
    }

    /// Tells how far the work came.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn progress(&self, credential: &str, progress: &ProgressReport) -> Result<Assignment, ClientError> {
        send(self.request(&POST_PROGRESS).bearer_auth(credential).json(progress)).await
    }
}

async fn send<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, ClientError> {
    let response = request.send().await.map_err(ClientError::Unreachable)?;
    let status = response.status();
    let body = response.bytes().await.map_err(ClientError::Unreachable)?;
    let malformed = || ClientError::Malformed {
        status: status.as_u16(),
    };
    if status.is_success() {
        serde_json::from_slice(&body).map_err(|_| malformed())
    } else {
        let problem: Problem = serde_json::from_slice(&body).map_err(|_| malformed())?;
        Err(ClientError::Refused(Box::new(problem)))
    }
}
