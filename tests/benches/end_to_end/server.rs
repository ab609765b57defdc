//! A server that wants nothing of its node, so that the agent is as idle as in a fleet at rest.

use std::time::Duration;

use axum::extract::Query;
use axum::routing::get;
use axum::{Json, Router};
use nftfleet_tests::lab::CONTROL4;
use nftfleet_tests::netns::Netns;
use nftfleet_web_api_spec::endpoint::{GET_ASSIGNMENT, PUT_REPORT};
use nftfleet_web_api_spec::types::{Assignment, ReportAccepted};
use serde::Deserialize;

/// Where it listens, in the control namespace.
pub const PORT: u16 = 8640;

/// How often agents report, in seconds, as the real one asks.
const REPORT: u32 = 30;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wait {
    #[serde(default)]
    wait_seconds: u64,
}

/// Serves on a thread of its own until the process ends.
pub fn start(netns: &Netns) {
    netns.spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let router = Router::new()
                .route(GET_ASSIGNMENT.path, get(assignment))
                .route(PUT_REPORT.path, axum::routing::put(report));
            let listener = tokio::net::TcpListener::bind((CONTROL4, PORT)).await.expect("a port");
            axum::serve(listener, router).await.expect("the server serves");
        });
    });
}

async fn assignment(Query(wait): Query<Wait>) -> Json<Assignment> {
    tokio::time::sleep(Duration::from_secs(wait.wait_seconds)).await;
    Json(Assignment {
        generation: 1,
        work: None,
    })
}

async fn report() -> Json<ReportAccepted> {
    Json(ReportAccepted {
        sequence: 0,
        next_report_seconds: REPORT,
    })
}
