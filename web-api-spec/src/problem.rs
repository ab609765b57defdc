//! The error body (RFC 9457) and the closed list of problem codes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Media type of every error body.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// An error body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// URI reference of the problem's kind: `/problems/<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The kind as a code for tooling.
    pub code: ProblemCode,
    /// This occurrence in words.
    pub detail: String,
    /// What is wrong, field by field; empty if no field is to blame.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub faults: Vec<FieldFault>,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FieldFault {
    /// The field's path in the body, or the parameter's name.
    #[schema(example = "stages[1].size.count")]
    pub path: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $text:literal, $status:literal, $title:literal;)*) => {
        /// Every kind of problem that the service answers with.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        pub enum ProblemCode {
            $($(#[$doc])* #[serde(rename = $text)] $code,)*
        }

        impl ProblemCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$code),*];

            /// The code as it goes over the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$code => $text,)* }
            }

            /// The HTTP status that goes with it.
            pub const fn status(self) -> u16 {
                match self { $(Self::$code => $status,)* }
            }

            /// The kind in words.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$code => $title,)* }
            }
        }
    };
}

codes! {
    /// The body is not JSON of the expected form; `faults` names the field.
    InvalidBody = "invalid-body", 400, "The body is not of the expected form";
    /// A path or query parameter is malformed; `faults` names it.
    InvalidParameter = "invalid-parameter", 400, "A parameter is not of the expected form";
    /// The bearer token or credential is missing or not known.
    Unauthenticated = "unauthenticated", 401, "The credential is missing or not known";
    /// The enrolment token is not known or has expired.
    EnrolmentRefused = "enrolment-refused", 401, "The enrolment token is not known or has expired";
    /// There is nothing at this path.
    NoSuchPath = "no-such-path", 404, "There is nothing at this path";
    /// There is no such cluster.
    ClusterNotFound = "cluster-not-found", 404, "There is no such cluster";
    /// There is no such node.
    NodeNotFound = "node-not-found", 404, "There is no such node";
    /// There is no such rollout.
    RolloutNotFound = "rollout-not-found", 404, "There is no such rollout";
    /// There is no such task for this agent.
    TaskNotFound = "task-not-found", 404, "There is no such task for this agent";
    /// The path does not know this method.
    MethodNotAllowed = "method-not-allowed", 405, "The path does not know this method";
    /// A cluster of this name is registered already.
    ClusterExists = "cluster-exists", 409, "A cluster of this name is registered already";
    /// The hash is not that of the rollout's plan.
    PlanHashMismatch = "plan-hash-mismatch", 409, "The hash is not that of the rollout's plan";
    /// The rollout's state does not allow this action.
    IllegalState = "illegal-state", 409, "The rollout's state does not allow this";
    /// The attempt is not the granted one.
    StaleAttempt = "stale-attempt", 409, "The attempt is not the granted one";
    /// The task can't make this step from its state.
    IllegalProgress = "illegal-progress", 409, "The task can't make this step from its state";
    /// The resource has changed since the generation in `If-Match`.
    StaleGeneration = "stale-generation", 412, "The resource has changed since it was read";
    /// The body is larger than 1 MiB.
    PayloadTooLarge = "payload-too-large", 413, "The body is too large";
    /// The body is not `application/json`.
    UnsupportedMediaType = "unsupported-media-type", 415, "The body is not application/json";
    /// The rollout can't be planned; `faults` names every fault.
    InvalidPlan = "invalid-plan", 422, "The rollout can't be planned like this";
    /// Something broke in the service; the log has it.
    Internal = "internal", 500, "Something broke in the service";
    /// The database can't be reached; try again.
    StoreUnavailable = "store-unavailable", 503, "The database can't be reached";
}

impl Problem {
    /// A problem of this kind with its words and no field to blame.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("/problems/{}", code.as_str()),
            title: code.title().to_owned(),
            status: code.status(),
            code,
            detail: detail.into(),
            faults: vec![],
        }
    }

    /// The same with the fields that are to blame.
    #[must_use]
    pub fn with_faults(mut self, faults: Vec<FieldFault>) -> Self {
        self.faults = faults;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_written_as_they_are_named() {
        let mut seen = std::collections::BTreeSet::new();
        for code in ProblemCode::ALL {
            assert!(seen.insert(code.as_str()), "{code:?}");
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
