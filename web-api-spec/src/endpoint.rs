//! Each endpoint, declared once.

use http::Method;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::problem::ProblemCode::{
    self, ClusterExists, ClusterNotFound, EnrolmentRefused, IllegalProgress, IllegalState, Internal, InvalidBody,
    InvalidParameter, InvalidPlan, NodeNotFound, PayloadTooLarge, PlanHashMismatch, RolloutNotFound, StaleAttempt,
    StaleGeneration, StoreUnavailable, TaskNotFound, Unauthenticated, UnsupportedMediaType,
};
use crate::types;

/// Who may call an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Anyone who reaches the service.
    Anyone,
    /// An operator, by bearer token.
    Operator,
    /// An agent, by its credential.
    Agent,
}

/// A schema by its name, with all that it refers to.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    /// The schema's name in the document.
    pub name: fn() -> String,
    /// Adds the schema and those that it refers to.
    pub collect: fn(&mut Vec<(String, RefOr<Schema>)>),
}

const fn body<T: ToSchema + PartialSchema>() -> Body {
    Body {
        name: || T::name().into_owned(),
        collect: |all| {
            all.push((T::name().into_owned(), T::schema()));
            T::schemas(all);
        },
    }
}

/// A query parameter.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Its name.
    pub name: &'static str,
    /// What it does, with its range.
    pub description: &'static str,
    /// Whether it is a number.
    pub is_number: bool,
}

/// One endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Verb and noun, unique: the operation id.
    pub id: &'static str,
    /// The method.
    pub method: Method,
    /// The path with its parameters in braces.
    pub path: &'static str,
    /// Who may call it.
    pub caller: Caller,
    /// One line on what it does.
    pub summary: &'static str,
    /// Query parameters.
    pub query: &'static [Query],
    /// Whether it takes `If-Match` with the resource's `ETag`.
    pub if_match: bool,
    /// The request's body.
    pub request: Option<Body>,
    /// The status of success.
    pub status: u16,
    /// The body of success.
    pub response: Option<Body>,
    /// What it can answer instead, besides what every endpoint can (see [`Endpoint::problems`]).
    pub errors: &'static [ProblemCode],
}

impl Endpoint {
    /// Everything that it can answer instead of success.
    pub fn problems(&self) -> Vec<ProblemCode> {
        let mut all = self.errors.to_vec();
        if self.caller != Caller::Anyone {
            all.push(Unauthenticated);
        }
        if self.request.is_some() {
            all.extend([InvalidBody, PayloadTooLarge, UnsupportedMediaType]);
        }
        // Every endpoint refuses parameters that it does not know.
        all.push(InvalidParameter);
        if self.if_match {
            all.push(StaleGeneration);
        }
        all.extend([StoreUnavailable, Internal]);
        all
    }

    /// The path with `values` in place of its parameters, in order. Values are percent-encoded as path segments.
    pub fn path_with(&self, values: &[&str]) -> String {
        let mut values = values.iter();
        self.path
            .split('/')
            .map(|segment| {
                if segment.starts_with('{') {
                    encode_segment(values.next().copied().unwrap_or_default())
                } else {
                    segment.to_owned()
                }
            })
            .collect::<Vec<_>>()
            .join("/")
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn encode_segment(value: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

const LIMIT: Query = Query {
    name: "limit",
    description: "How many items a page has at most, 1-1000; 100 if absent.",
    is_number: true,
};
const PAGE_TOKEN: Query = Query {
    name: "pageToken",
    description: "The `nextPageToken` of the page before; absent for the first page.",
    is_number: false,
};
const CLUSTER: Query = Query {
    name: "cluster",
    description: "Only of the cluster of this name.",
    is_number: false,
};

/// Endpoints differ from this in what they name.
const BASE: Endpoint = Endpoint {
    id: "",
    method: Method::GET,
    path: "",
    caller: Caller::Operator,
    summary: "",
    query: &[],
    if_match: false,
    request: None,
    status: 200,
    response: None,
    errors: &[],
};

macro_rules! endpoints {
    ($($name:ident { $($field:ident: $value:expr),* $(,)? })*) => {
        $(
            #[doc = concat!("See its entry in the OpenAPI document, operation `", stringify!($name), "`.")]
            pub const $name: Endpoint = Endpoint { $($field: $value,)* ..BASE };
        )*

        /// Every endpoint with a JSON body, in the order of the document.
        pub const ALL: &[Endpoint] = &[$($name),*];
    };
}

endpoints! {
    CREATE_CLUSTER {
        id: "create_cluster", method: Method::POST, path: "/v1/clusters",
        summary: "Register a cluster.",
        request: Some(body::<types::NewCluster>()), status: 201, response: Some(body::<types::Cluster>()),
        errors: &[ClusterExists],
    }
    LIST_CLUSTERS {
        id: "list_clusters", path: "/v1/clusters",
        summary: "List clusters, by name.",
        query: &[LIMIT, PAGE_TOKEN], response: Some(body::<types::ClusterPage>()),
    }
    GET_CLUSTER {
        id: "get_cluster", path: "/v1/clusters/{cluster}",
        summary: "Read a cluster.",
        response: Some(body::<types::Cluster>()), errors: &[ClusterNotFound],
    }
    CREATE_ENROLMENT_TOKEN {
        id: "create_enrolment_token", method: Method::POST, path: "/v1/clusters/{cluster}/enrolment-tokens",
        summary: "Make a token with which the cluster's agents enrol.",
        request: Some(body::<types::NewEnrolmentToken>()), status: 201, response: Some(body::<types::EnrolmentToken>()),
        errors: &[ClusterNotFound],
    }
    LIST_NODES {
        id: "list_nodes", path: "/v1/nodes",
        summary: "List nodes with their mode and readiness, by cluster and name.",
        query: &[CLUSTER, LIMIT, PAGE_TOKEN], response: Some(body::<types::NodePage>()),
    }
    GET_NODE {
        id: "get_node", path: "/v1/clusters/{cluster}/nodes/{node}",
        summary: "Read a node with its newest report.",
        response: Some(body::<types::Node>()), errors: &[NodeNotFound],
    }
    LIST_AGENTS {
        id: "list_agents", path: "/v1/agents",
        summary: "List enrolled agents, by cluster and node.",
        query: &[CLUSTER, LIMIT, PAGE_TOKEN], response: Some(body::<types::AgentPage>()),
    }
    PLAN_ROLLOUT {
        id: "plan_rollout", method: Method::POST, path: "/v1/rollouts/plan",
        summary: "Say what a rollout would do, and do nothing.",
        request: Some(body::<types::NewRollout>()), response: Some(body::<types::RolloutPlan>()),
        errors: &[InvalidPlan],
    }
    CREATE_ROLLOUT {
        id: "create_rollout", method: Method::POST, path: "/v1/rollouts",
        summary: "Plan a rollout and keep it as a draft.",
        request: Some(body::<types::NewRollout>()), status: 201, response: Some(body::<types::Rollout>()),
        errors: &[InvalidPlan],
    }
    LIST_ROLLOUTS {
        id: "list_rollouts", path: "/v1/rollouts",
        summary: "List rollouts, newest first.",
        query: &[LIMIT, PAGE_TOKEN], response: Some(body::<types::RolloutPage>()),
    }
    GET_ROLLOUT {
        id: "get_rollout", path: "/v1/rollouts/{rollout}",
        summary: "Read a rollout and what it waits for.",
        response: Some(body::<types::Rollout>()), errors: &[RolloutNotFound],
    }
    LIST_TASKS {
        id: "list_tasks", path: "/v1/rollouts/{rollout}/tasks",
        summary: "List a rollout's nodes with their state and timeline, by stage, cluster and node.",
        query: &[LIMIT, PAGE_TOKEN], response: Some(body::<types::TaskPage>()), errors: &[RolloutNotFound],
    }
    START_ROLLOUT {
        id: "start_rollout", method: Method::POST, path: "/v1/rollouts/{rollout}/start",
        summary: "Start a draft, quoting the hash of its plan.",
        if_match: true, request: Some(body::<types::StartRequest>()), response: Some(body::<types::Rollout>()),
        errors: &[RolloutNotFound, IllegalState, PlanHashMismatch],
    }
    PAUSE_ROLLOUT {
        id: "pause_rollout", method: Method::POST, path: "/v1/rollouts/{rollout}/pause",
        summary: "Begin no further node; those under way go on to their end.",
        if_match: true, request: Some(body::<types::PauseRequest>()), response: Some(body::<types::Rollout>()),
        errors: &[RolloutNotFound, IllegalState],
    }
    RESUME_ROLLOUT {
        id: "resume_rollout", method: Method::POST, path: "/v1/rollouts/{rollout}/resume",
        summary: "Go on with a paused rollout.",
        if_match: true, request: Some(body::<types::ResumeRequest>()), response: Some(body::<types::Rollout>()),
        errors: &[RolloutNotFound, IllegalState],
    }
    ABORT_ROLLOUT {
        id: "abort_rollout", method: Method::POST, path: "/v1/rollouts/{rollout}/abort",
        summary: "End a rollout early, and say what happens to the nodes under way.",
        if_match: true, request: Some(body::<types::AbortRequest>()), response: Some(body::<types::Rollout>()),
        errors: &[RolloutNotFound, IllegalState],
    }
    ENROL_AGENT {
        id: "enrol_agent", method: Method::POST, path: "/agent/v1/enrol", caller: Caller::Anyone,
        summary: "Exchange a cluster's enrolment token for an agent's credential.",
        request: Some(body::<types::Enrolment>()), status: 201, response: Some(body::<types::Enrolled>()),
        errors: &[EnrolmentRefused],
    }
    PUT_REPORT {
        id: "put_report", method: Method::PUT, path: "/agent/v1/report", caller: Caller::Agent,
        summary: "Replace the node's report, if this one is newer.",
        request: Some(body::<types::ReportSubmission>()), response: Some(body::<types::ReportAccepted>()),
    }
    GET_ASSIGNMENT {
        id: "get_assignment", path: "/agent/v1/assignment", caller: Caller::Agent,
        summary: "What the server wants of the node; waits for a change if asked to. Also the agent's heartbeat.",
        query: &[
            Query { name: "generation", description: "The generation that the agent has; with `waitSeconds` the answer waits until it differs.", is_number: true },
            Query { name: "waitSeconds", description: "How long to wait for a change, 0-60; 0 if absent.", is_number: true },
        ],
        response: Some(body::<types::Assignment>()),
    }
    POST_PROGRESS {
        id: "post_progress", method: Method::POST, path: "/agent/v1/progress", caller: Caller::Agent,
        summary: "Say how far the node came; answers with the assignment as it then is.",
        request: Some(body::<types::ProgressReport>()), response: Some(body::<types::Assignment>()),
        errors: &[TaskNotFound, StaleAttempt, IllegalProgress],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_method_path_pairs_are_unique() {
        let mut ids = std::collections::BTreeSet::new();
        let mut routes = std::collections::BTreeSet::new();
        for endpoint in ALL {
            assert!(ids.insert(endpoint.id), "{}", endpoint.id);
            assert!(
                routes.insert((endpoint.method.as_str().to_owned(), endpoint.path)),
                "{}",
                endpoint.path
            );
        }
    }

    #[test]
    fn path_parameters_are_encoded() {
        assert_eq!(GET_NODE.path_with(&["eu", "a/b c"]), "/v1/clusters/eu/nodes/a%2Fb%20c");
    }
}
