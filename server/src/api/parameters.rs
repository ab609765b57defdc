//! Query parameters, path parameters and `If-Match`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use axum::extract::{FromRequestParts, Path, Query as AxumQuery};
use axum::http::header::IF_MATCH;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use nftfleet_domain::ids::{ClusterName, Generation, RolloutId};
use nftfleet_web_api_spec::endpoint::Query;
use nftfleet_web_api_spec::problem::FieldFault;
use serde::de::DeserializeOwned;

use super::problem::Refusal;
use crate::app::App;

/// A parameter that is not as it must be.
#[derive(Debug, thiserror::Error)]
#[error("the parameter {} {}", .0.path, .0.message)]
pub struct ParameterError(pub FieldFault);

impl ParameterError {
    pub(super) fn new(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self(FieldFault {
            path: name.into(),
            message: message.into(),
        })
    }
}

/// The query parameters of a request: only known ones, each once.
#[derive(Clone, Debug)]
pub(super) struct Parameters(BTreeMap<String, String>);

impl Parameters {
    pub(super) fn read(uri: &Uri, known: &[Query]) -> Result<Self, ParameterError> {
        let pairs = AxumQuery::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| ParameterError::new("?", format!("can't be read: {}", error.body_text())))?;
        let mut parameters = BTreeMap::new();
        for (name, value) in pairs.0 {
            if !known.iter().any(|query| query.name == name) {
                let names: Vec<&str> = known.iter().map(|query| query.name).collect();
                let known = if names.is_empty() {
                    "none".to_owned()
                } else {
                    names.join(", ")
                };
                return Err(ParameterError::new(name, format!("is not known here; known: {known}")));
            }
            if parameters.insert(name.clone(), value).is_some() {
                return Err(ParameterError::new(name, "is given twice"));
            }
        }
        Ok(Self(parameters))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A whole number in `range`.
    pub(super) fn number(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ParameterError> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let (from, to) = range.into_inner();
                Err(ParameterError::new(
                    name,
                    format!("is {text:?}, not a number of {from}-{to}"),
                ))
            }
        }
    }

    /// Only of this cluster.
    pub(super) fn cluster(&self) -> Result<Option<ClusterName>, ParameterError> {
        let name = self.text("cluster").map(str::parse).transpose();
        name.map_err(|bad: nftfleet_domain::ids::BadName| ParameterError::new("cluster", bad.to_string()))
    }
}

impl FromRequestParts<App> for Parameters {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Refusal> {
        match parts.extensions.get::<Self>() {
            Some(parameters) => Ok(parameters.clone()),
            None => Ok(Self::read(&parts.uri, &[])?),
        }
    }
}

/// The path's parameters, in order.
#[derive(Debug)]
pub(super) struct Segments<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Segments<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        match Path::<T>::from_request_parts(parts, app).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(rejection) => Err(ParameterError::new("path", rejection.body_text()).into()),
        }
    }
}

/// A rollout's identity in a path.
pub(super) fn rollout_id(text: &str) -> Result<RolloutId, ParameterError> {
    let id = text.parse().map(RolloutId);
    id.map_err(|_| ParameterError::new("rollout", format!("{text:?} is not a UUID")))
}

/// Whether `If-Match` allows a resource of this generation; it does if it is not there.
pub(super) fn if_match_allows(headers: &HeaderMap, generation: Generation) -> bool {
    let mut tags = headers.get_all(IF_MATCH).iter().peekable();
    let etag = etag(generation);
    tags.peek().is_none()
        || tags.any(|line| {
            let tags = line.to_str().unwrap_or_default().split(',').map(str::trim);
            tags.into_iter().any(|tag| tag == "*" || tag == etag)
        })
}

/// A generation as an `ETag`.
pub(super) fn etag(generation: Generation) -> String {
    format!("\"{generation}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Query] = &[Query {
        name: "limit",
        description: "",
        is_number: true,
    }];

    fn read(uri: &'static str) -> Result<Parameters, ParameterError> {
        Parameters::read(&Uri::from_static(uri), KNOWN)
    }

    #[test]
    fn unknown_and_doubled_parameters_are_refused() {
        assert_eq!(read("/x?colour=1").unwrap_err().0.path, "colour");
        assert_eq!(read("/x?limit=1&limit=2").unwrap_err().0.message, "is given twice");
        assert_eq!(read("/x").unwrap().number("limit", 1..=9).unwrap(), None);
        assert_eq!(read("/x?limit=9").unwrap().number("limit", 1..=9).unwrap(), Some(9));
        for bad in ["/x?limit=0", "/x?limit=10", "/x?limit=", "/x?limit=1.5"] {
            assert!(read(bad).unwrap().number("limit", 1..=9).is_err(), "{bad}");
        }
    }

    #[test]
    fn if_match_names_the_generation() {
        let allows = |value: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(IF_MATCH, value.parse().unwrap());
            }
            if_match_allows(&headers, Generation(7))
        };
        assert!(allows(None) && allows(Some("\"7\"")) && allows(Some("*")) && allows(Some("\"6\", \"7\"")));
        assert!(!allows(Some("\"6\"")) && !allows(Some("W/\"7\"")) && !allows(Some("7")) && !allows(Some("")));
    }
}
