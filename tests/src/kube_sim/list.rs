//! Lists, in consistent chunks.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::resource::Target;
use super::selector::Selector;
use super::status::Status;
use super::store::{Key, Store};

/// The options of a list request, as they came.
#[derive(Clone, Debug, Default)]
pub(super) struct ListOptions {
    /// The most objects in the answer; 0 for all.
    pub(super) limit: usize,
    pub(super) continue_token: Option<String>,
    /// `None` when it was not given or empty.
    pub(super) resource_version: Option<u64>,
    pub(super) version_match: Option<String>,
}

/// Where a chunked list goes on. Opaque for clients.
struct Continue {
    /// The version of the snapshot; `None` goes on at the newest one, giving up consistency.
    version: Option<u64>,
    after: Key,
}

impl Continue {
    fn encode(&self) -> String {
        let (namespace, name) = &self.after;
        let token = json!({"v": "meta.k8s.io/v1", "rv": self.version, "start": [namespace, name]});
        BASE64URL_NOPAD.encode(token.to_string().as_bytes())
    }

    fn decode(token: &str) -> Result<Self, Status> {
        let unreadable = || Status::bad_request("continue key is not valid: the token was not made by this server");
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).map_err(|_| unreadable())?;
        let token: Value = serde_json::from_slice(&bytes).map_err(|_| unreadable())?;
        let part = |index: usize| token["start"][index].as_str().map(str::to_owned).ok_or_else(unreadable);
        Ok(Self {
            version: token["rv"].as_u64(),
            after: (part(0)?, part(1)?),
        })
    }
}

/// The answer to a list request as JSON: a `ServiceList` and so on.
pub(super) fn list(
    store: &mut Store,
    target: &Target,
    options: &ListOptions,
    selector: &Selector,
) -> Result<String, Status> {
    let resource = target.resource;
    if options.continue_token.is_none() {
        store.count(resource, |served| served.lists += 1);
    }
    let newest = store.version();
    let (version, after) = begin(options, newest)?;
    if version >= store.oldest() {
        store.count(resource, |served| served.pages += 1);
    }
    let Some(objects) = store.at(resource, version, after.clone()) else {
        return Err(match after {
            Some(after) => Status::continue_expired(Continue { version: None, after }.encode()),
            None => Status::list_expired(),
        });
    };
    let mut wanted = objects.filter(|(_, object)| selector.wants(object)).peekable();
    // The watch cache of a real server answers version 0 in one piece, whatever the limit.
    let limit = if options.limit == 0 || options.resource_version == Some(0) {
        usize::MAX
    } else {
        options.limit
    };
    let (mut items, mut count) = (String::new(), 0);
    let mut last = None;
    while count < limit
        && let Some((key, object)) = wanted.next()
    {
        if count > 0 {
            items.push(',');
        }
        items += object.item();
        count += 1;
        last = Some(key);
    }

    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some(last) = last.filter(|_| wanted.peek().is_some()) {
        metadata["continue"] = json!(
            Continue {
                version: Some(version),
                after: last
            }
            .encode()
        );
        if !selector.narrows() {
            metadata["remainingItemCount"] = json!(wanted.count());
        }
    }
    let (kind, api_version) = (resource.kind(), resource.api_version());
    Ok(format!(
        r#"{{"kind":"{kind}List","apiVersion":"{api_version}","metadata":{metadata},"items":[{items}]}}"#
    ))
}

/// The version to list at and the key after which to begin.
fn begin(options: &ListOptions, newest: u64) -> Result<(u64, Option<Key>), Status> {
    if let Some(token) = &options.continue_token {
        if options.resource_version.is_some_and(|version| version != 0) {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let token = Continue::decode(token)?;
        return Ok((token.version.unwrap_or(newest), Some(token.after)));
    }
    let version_match = options.version_match.as_deref();
    let Some(asked) = options.resource_version else {
        return match version_match {
            None => Ok((newest, None)),
            Some(_) => Err(Status::invalid_list_options(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            )),
        };
    };
    if asked > newest {
        return Err(Status::too_large_version(asked, newest));
    }
    match version_match {
        Some("Exact") if asked > 0 => Ok((asked, None)),
        Some("Exact") => Err(Status::invalid_list_options(
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
        )),
        // "At least as new as" is answered with the newest.
        None | Some("NotOlderThan") => Ok((newest, None)),
        Some(other) => Err(Status::invalid_list_options(&format!(
            "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""
        ))),
    }
}
