//! Replace the node's report, if this one is newer.

use axum::Json;
use axum::extract::State;
use nftfleet_domain::inventory::Report;
use nftfleet_web_api_spec::types;

use crate::api::auth::Speaker;
use crate::api::body::{Body, BodyError};
use crate::api::problem::Refusal;
use crate::app::App;
use crate::store::Recorded;
use crate::telemetry::ReportLabel;

/// A quarter of the silence that makes a node unknown.
const NEXT_REPORT_SECONDS: u32 = 30;

pub(in crate::api) async fn put_report(
    State(app): State<App>,
    Speaker(node): Speaker,
    Body(submission): Body<types::ReportSubmission>,
) -> Result<Json<types::ReportAccepted>, Refusal> {
    if submission.sequence < 1 {
        let message = format!("{} is not at least 1", submission.sequence);
        return Err(BodyError::field("sequence", message).into());
    }
    let report = Report::from(submission.report);
    let sequence = submission.sequence;
    let recorded = app
        .store
        .record_report(node, sequence, &report, app.clock.now())
        .await?;
    let (outcome, newest) = match recorded {
        Recorded::New => ("new", sequence),
        Recorded::Duplicate => ("duplicate", sequence),
        Recorded::Stale(newest) => ("stale", newest),
    };
    app.metrics.reports.get_or_create(&ReportLabel { outcome }).inc();
    Ok(Json(types::ReportAccepted {
        sequence: newest,
        next_report_seconds: NEXT_REPORT_SECONDS,
    }))
}
