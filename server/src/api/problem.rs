//! Where errors become answers, and nowhere else.
//!
//! An answer of 5xx never shows what is behind it; that goes to the log, once, here.

use std::any::Any;

use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use nftfleet_web_api_spec::problem::{FieldFault, MEDIA_TYPE, Problem, ProblemCode};

use super::agent::post_progress::PostProgressError;
use super::auth::AuthError;
use super::body::BodyError;
use super::parameters::ParameterError;
use super::rollouts::{ActError, NoSuchRollout, PlanError};
use crate::store::{CreateClusterError, EnrolError, StoreError};
use crate::telemetry::chain;

/// What is answered instead of success.
#[derive(Debug)]
pub struct Refusal {
    // Boxed, since it is large and every handler's result holds one.
    problem: Box<Problem>,
    /// What is behind it, for the log.
    cause: Option<String>,
}

impl Refusal {
    fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            problem: Box::new(Problem::new(code, detail)),
            cause: None,
        }
    }

    fn with_faults(self, faults: Vec<FieldFault>) -> Self {
        Self {
            problem: Box::new(self.problem.with_faults(faults)),
            ..self
        }
    }

    /// The database can't be used yet.
    pub(super) fn not_ready(why: String) -> Self {
        Self::new(ProblemCode::StoreUnavailable, why)
    }

    /// There is no such cluster.
    pub(super) fn no_such_cluster(name: &str) -> Self {
        Self::new(ProblemCode::ClusterNotFound, format!("there is no cluster {name:?}"))
    }

    /// There is no such node.
    pub(super) fn no_such_node(cluster: &str, node: &str) -> Self {
        let detail = format!("there is no node {node:?} in a cluster {cluster:?}");
        Self::new(ProblemCode::NodeNotFound, detail)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = self.problem.code.as_str();
        if let Some(cause) = &self.cause {
            tracing::error!(code, "{cause}");
        } else {
            tracing::debug!(code, detail = %self.problem.detail, "refused");
        }
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.problem).expect("a problem has text keys only");
        let mut response = (status, [(CONTENT_TYPE, MEDIA_TYPE)], body).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let (code, detail) = match &error {
            StoreError::Unreachable(_) => (
                ProblemCode::StoreUnavailable,
                "the database can't be reached; try again",
            ),
            StoreError::Query(_) | StoreError::Inconsistent { .. } => (ProblemCode::Internal, "the log has more"),
        };
        Self {
            cause: Some(chain(&error)),
            ..Self::new(code, detail)
        }
    }
}

impl From<AuthError> for Refusal {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Missing | AuthError::Unknown => Self::new(ProblemCode::Unauthenticated, error.to_string()),
            AuthError::Store(error) => error.into(),
        }
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        let detail = error.to_string();
        match error {
            BodyError::NotJson => Self::new(ProblemCode::UnsupportedMediaType, detail),
            BodyError::TooLarge => Self::new(ProblemCode::PayloadTooLarge, detail),
            BodyError::Broken => Self::new(ProblemCode::InvalidBody, detail),
            BodyError::Form(fault) => Self::new(ProblemCode::InvalidBody, detail).with_faults(vec![fault]),
        }
    }
}

impl From<ParameterError> for Refusal {
    fn from(error: ParameterError) -> Self {
        Self::new(ProblemCode::InvalidParameter, error.to_string()).with_faults(vec![error.0])
    }
}

impl From<CreateClusterError> for Refusal {
    fn from(error: CreateClusterError) -> Self {
        match error {
            CreateClusterError::Exists(_) => Self::new(ProblemCode::ClusterExists, error.to_string()),
            CreateClusterError::Store(error) => error.into(),
        }
    }
}

impl From<EnrolError> for Refusal {
    fn from(error: EnrolError) -> Self {
        match error {
            EnrolError::Refused => Self::new(ProblemCode::EnrolmentRefused, error.to_string()),
            EnrolError::Store(error) => error.into(),
        }
    }
}

impl From<NoSuchRollout> for Refusal {
    fn from(error: NoSuchRollout) -> Self {
        Self::new(ProblemCode::RolloutNotFound, error.to_string())
    }
}

impl From<PlanError> for Refusal {
    fn from(error: PlanError) -> Self {
        let detail = error.to_string();
        match error {
            PlanError::Faults(faults) => Self::new(ProblemCode::InvalidPlan, detail).with_faults(faults),
            PlanError::Store(error) => error.into(),
        }
    }
}

impl From<ActError> for Refusal {
    fn from(error: ActError) -> Self {
        let detail = error.to_string();
        match error {
            ActError::NoSuchRollout(error) => error.into(),
            ActError::Stale { .. } => Self::new(ProblemCode::StaleGeneration, detail),
            ActError::OtherPlan { .. } => Self::new(ProblemCode::PlanHashMismatch, detail),
            ActError::IllegalState { .. } => Self::new(ProblemCode::IllegalState, detail),
            ActError::Busy => Self {
                cause: Some(detail),
                ..Self::new(ProblemCode::StoreUnavailable, "the rollout changes too fast; try again")
            },
            ActError::Store(error) => error.into(),
        }
    }
}

impl From<PostProgressError> for Refusal {
    fn from(error: PostProgressError) -> Self {
        let detail = error.to_string();
        match error {
            PostProgressError::NoSuchTask(_) => Self::new(ProblemCode::TaskNotFound, detail),
            PostProgressError::OtherAttempt(_) => Self::new(ProblemCode::StaleAttempt, detail),
            PostProgressError::Illegal(_) => Self::new(ProblemCode::IllegalProgress, detail),
            PostProgressError::Busy => Self {
                cause: Some(detail),
                ..Self::new(ProblemCode::StoreUnavailable, "the task changes too fast; try again")
            },
            PostProgressError::Store(error) => error.into(),
        }
    }
}

/// Answers a request for a path that nothing is at.
pub(super) async fn no_such_path(request: Request) -> Refusal {
    let detail = format!(
        "there is nothing at {}; /openapi.json lists what there is",
        request.uri().path()
    );
    Refusal::new(ProblemCode::NoSuchPath, detail)
}

/// Answers a method that the path does not know.
pub(super) async fn method_not_allowed(request: Request) -> Refusal {
    let detail = format!("{} does not know {}", request.uri().path(), request.method());
    Refusal::new(ProblemCode::MethodNotAllowed, detail)
}

/// Answers a request whose handler panicked.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands the panic over")]
pub(super) fn of_panic(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let refusal = Refusal {
        cause: Some(format!("a handler panicked: {}", text.unwrap_or("it said nothing"))),
        ..Refusal::new(ProblemCode::Internal, "the log has more")
    };
    refusal.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_5xx_body_never_shows_its_source() {
        let secret = "password=hunter2";
        let errors = [
            StoreError::Query(sqlx::Error::Protocol(secret.to_owned())),
            StoreError::Unreachable(sqlx::Error::Io(std::io::Error::other(secret))),
            StoreError::Inconsistent {
                table: "nodes",
                column: "report",
                why: secret.to_owned(),
            },
        ];
        let mut responses: Vec<Response> = errors.into_iter().map(|e| Refusal::from(e).into_response()).collect();
        responses.push(of_panic(Box::new(secret)));
        for response in responses {
            assert!(response.status().is_server_error());
            assert_eq!(response.headers()[CONTENT_TYPE], MEDIA_TYPE);
            let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
            assert!(!String::from_utf8_lossy(&body).contains("hunter2"));
        }
    }
}
