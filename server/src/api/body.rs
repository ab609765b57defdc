//! JSON bodies: what is wrong is said with the field's path.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use nftfleet_web_api_spec::problem::FieldFault;
use serde::de::DeserializeOwned;

use super::problem::Refusal;
use crate::app::App;

/// A body of the form `T`.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

/// Why a body was not taken.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It says that it is something else, or nothing.
    #[error("send the body as Content-Type: application/json")]
    NotJson,
    /// It is too large.
    #[error("the body is larger than 1 MiB")]
    TooLarge,
    /// It did not come in whole.
    #[error("the body could not be read to its end")]
    Broken,
    /// It is not of the expected form.
    #[error("the body is not of the expected form: {}: {}", .0.path, .0.message)]
    Form(FieldFault),
}

impl BodyError {
    /// The field at `path` is not as it must be.
    pub fn field(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Form(FieldFault {
            path: path.into(),
            message: message.into(),
        })
    }
}

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<Self, Refusal> {
        if !is_json(request.headers()) {
            return Err(BodyError::NotJson.into());
        }
        let bytes = Bytes::from_request(request, app).await.map_err(|rejection| {
            if rejection.status().as_u16() == 413 {
                BodyError::TooLarge
            } else {
                BodyError::Broken
            }
        })?;
        Ok(Self(read(&bytes)?))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next());
    kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BodyError> {
    if has_zero_character(bytes) {
        return Err(BodyError::field(".", "holds the character U+0000, which can't be kept"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        // What is not JSON at all has no path.
        let path = if path == "?" { ".".to_owned() } else { path };
        BodyError::field(path, error.inner().to_string())
    })?;
    json.end().map_err(|error| BodyError::field(".", error.to_string()))?;
    Ok(value)
}

/// Whether a text in the JSON holds U+0000, written `\u0000`: Postgres can't keep it.
fn has_zero_character(json: &[u8]) -> bool {
    let mut rest = json;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        rest = &rest[at + 1..];
        if rest.starts_with(b"u0000") {
            return true;
        }
        // The character after a backslash may be one itself.
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use nftfleet_web_api_spec::types::NewRollout;

    fn fault(body: &str) -> (String, String) {
        match read::<NewRollout>(body.as_bytes()) {
            Err(BodyError::Form(fault)) => (fault.path, fault.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_fault_names_the_field() {
        let (path, message) = fault(
            r#"{"name":"r","action":"MOVE_TO_NFTFLEET","clusters":["a"],"stages":[{"name":"s","size":"rest"},{"name":"t","size":{"count":"x"}}]}"#,
        );
        assert_eq!(path, "stages[1].size.count");
        assert!(
            message.contains("invalid type: string \"x\", expected u32"),
            "{message}"
        );
        let (path, message) = fault(r#"{"name":"r","colour":1}"#);
        assert_eq!(path, "colour");
        assert!(message.contains("unknown field"), "{message}");
        assert_eq!(fault("{").0, ".");
        assert_eq!(fault(r#"{"name":1}"#).0, "name");
    }

    #[test]
    fn what_postgres_cannot_keep_is_refused() {
        assert!(has_zero_character(br#"{"a":"x\u0000"}"#));
        assert!(has_zero_character(br#"{"a":"\\\u0000"}"#));
        assert!(!has_zero_character(br#"{"a":"\\u0000"}"#));
        assert!(!has_zero_character(b"\\"));
    }
}
