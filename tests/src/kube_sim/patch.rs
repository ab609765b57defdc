//! Patches of one object: JSON merge patches (RFC 7386), where null takes a field away.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;

use super::Shared;
use super::resource::Target;
use super::status::Status;

/// The one kind of patch that is simulated. A real server knows three more.
const MERGE_PATCH: &str = "application/merge-patch+json";

/// A request as it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct PatchRequest<'a> {
    pub(super) content_type: &'a str,
    /// `All` answers as if, and writes nothing.
    pub(super) dry_run: Option<&'a str>,
    pub(super) body: &'a [u8],
}

/// Changes an object and answers with what it has become. A patch that changes nothing is no write.
pub(super) fn patch(
    shared: &Shared,
    target: &Target,
    name: &str,
    request: &PatchRequest<'_>,
) -> Result<Response, Status> {
    let media_type = request.content_type.split(';').next().unwrap_or_default().trim();
    if media_type != MERGE_PATCH {
        return Err(Status::unsupported_media_type(MERGE_PATCH));
    }
    let writes = match request.dry_run {
        None => true,
        Some("All") => false,
        Some(other) => return Err(Status::bad_request(format!("dryRun: Unsupported value: {other:?}"))),
    };
    let patch: Value = serde_json::from_slice(request.body)
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    if !patch.is_object() {
        return Err(Status::bad_request("error decoding patch: not an object"));
    }

    let key = (target.namespace.clone().unwrap_or_default(), name.to_owned());
    let mut store = shared.store();
    let before = store
        .get(target.resource, key.clone())
        .ok_or_else(|| Status::no_such_object(target, name))?;
    store.count(target.resource, |served| served.patches += 1);
    let after = merged(&before, &patch);
    for field in ["name", "namespace"] {
        if after["metadata"][field] != before["metadata"][field] {
            return Err(Status::bad_request(format!(
                "the {field} of the object does not match the {field} on the URL"
            )));
        }
    }
    if after["kind"] != before["kind"] || after["apiVersion"] != before["apiVersion"] {
        return Err(Status::bad_request("the type of an object can't be changed"));
    }
    if after["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"] {
        return Err(Status::conflict(target, name));
    }
    if !writes || after == **before {
        return Ok(Json(after).into_response());
    }
    let version = store.apply(after);
    let written = store.get(target.resource, key).expect("what was written just now");
    drop(store);
    shared.changed(version);
    Ok(Json(&**written).into_response())
}

/// The object with the patch in it.
pub(super) fn merged(object: &Value, patch: &Value) -> Value {
    let mut object = object.clone();
    json_patch::merge(&mut object, patch);
    object
}
