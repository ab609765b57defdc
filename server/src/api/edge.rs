//! What is done for every request before its handler: who calls, and are the parameters known.

use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use nftfleet_web_api_spec::endpoint::{Caller, Endpoint};

use super::auth;
use super::parameters::Parameters;
use super::problem::Refusal;
use crate::app::App;
use crate::store::Ready;

/// Lets a request in, and counts it with its answer.
pub(super) async fn enter(
    State((app, endpoint)): State<(App, &'static Endpoint)>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let response = match admit(&app, endpoint, request).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    app.metrics
        .request(endpoint.id, response.status().as_u16(), begun.elapsed());
    response
}

async fn admit(app: &App, endpoint: &Endpoint, mut request: Request) -> Result<Request, Refusal> {
    let ready = app.ready.borrow().clone();
    if let Ready::No(why) = ready {
        return Err(Refusal::not_ready(why));
    }
    match endpoint.caller {
        Caller::Anyone => {}
        Caller::Operator => auth::operator(app, request.headers())?,
        Caller::Agent => {
            let speaker = auth::agent(app, request.headers()).await?;
            request.extensions_mut().insert(speaker);
        }
    }
    let parameters = Parameters::read(request.uri(), endpoint.query)?;
    request.extensions_mut().insert(parameters);
    Ok(request)
}
