//! Watches: a stream of events, one JSON object a line.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse as _, Response};
use futures::{Stream, stream};
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, sleep_until};

use super::resource::Resource;
use super::selector::Selector;
use super::status::Status;
use super::store::Write;
use super::{Shared, ToWatches};

/// How often a bookmark comes unasked, as from a real server.
const BOOKMARK_PERIOD: Duration = Duration::from_mins(1);
/// How long before its end a watch gets its last bookmark, so that the next one can go on from there.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// How long a watch lives when the client does not say; real servers draw 30 to 60 minutes.
const LIFE: Duration = Duration::from_mins(30);

/// The options of a watch request, as they came.
#[derive(Clone, Debug, Default)]
pub(super) struct WatchOptions {
    /// `None` and 0 begin with the present state as ADDED events.
    pub(super) resource_version: Option<u64>,
    pub(super) bookmarks: bool,
    pub(super) timeout: Option<Duration>,
}

/// One open watch.
struct Watch {
    shared: Arc<Shared>,
    messages: broadcast::Receiver<ToWatches>,
    resource: Resource,
    selector: Selector,
    bookmarks: bool,
    /// The version up to which the client has been told everything.
    cursor: u64,
    pending: VecDeque<Line>,
    next_bookmark: Instant,
    end: Instant,
    /// Nothing more comes after what is pending.
    ended: bool,
}

/// Begins a watch: a streaming answer, or an error.
pub(super) fn watch(
    shared: &Arc<Shared>,
    resource: Resource,
    options: &WatchOptions,
    selector: Selector,
) -> Result<Response, Status> {
    // Subscribed before the store is read: a write in between is looked at twice, never missed.
    let messages = shared.to_watches.subscribe();
    let mut store = shared.store();
    store.count(resource, |served| served.watches += 1);

    let mut pending = VecDeque::new();
    let mut ended = false;
    let cursor = match options.resource_version {
        None | Some(0) => {
            let now = store.version();
            let state = store.at(resource, now, None).into_iter().flatten();
            let wanted = state.filter(|(_, object)| selector.wants(object));
            pending.extend(wanted.map(|(_, object)| Line::plain("ADDED", &object)));
            now
        }
        Some(version) if version < store.oldest() => {
            let status = Status::watch_expired(version, store.oldest());
            if !shared.gone_in_stream.load(Ordering::SeqCst) {
                return Err(status);
            }
            pending.push_back(Line::plain("ERROR", &status.object()));
            ended = true;
            version
        }
        Some(version) => version,
    };
    drop(store);

    let now = Instant::now();
    let mut watch = Watch {
        shared: Arc::clone(shared),
        messages,
        resource,
        selector,
        bookmarks: options.bookmarks,
        cursor,
        pending,
        next_bookmark: now + BOOKMARK_PERIOD,
        end: now + options.timeout.unwrap_or(LIFE),
        ended,
    };
    watch.plan_bookmark(now);
    if !watch.ended {
        watch.look();
    }
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(watch.stream())).into_response())
}

impl Watch {
    fn stream(self) -> impl Stream<Item = io::Result<Bytes>> {
        stream::unfold(Some(self), async |watch| {
            let mut watch = watch?;
            match watch.next().await {
                Some(Ok(line)) => Some((Ok(line), Some(watch))),
                Some(Err(cut)) => Some((Err(cut), None)),
                None => None,
            }
        })
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if let Some(line) = self.pending.pop_front() {
                if let Some(version) = line.version {
                    self.shared.note_told(version);
                }
                return Some(Ok(line.text));
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                message = self.messages.recv() => match message {
                    Ok(ToWatches::Changed) | Err(RecvError::Lagged(_)) => self.look(),
                    Ok(ToWatches::Bookmark) => {
                        self.look();
                        self.bookmark();
                    }
                    Ok(ToWatches::Expire) => self.expire(),
                    Ok(ToWatches::Cut) => return Some(Err(io::Error::other("cut by the test"))),
                    Err(RecvError::Closed) => return None,
                },
                () = sleep_until(self.next_bookmark) => {
                    self.look();
                    self.bookmark();
                    self.plan_bookmark(Instant::now());
                }
                () = sleep_until(self.end) => return None,
            }
        }
    }

    /// Every period and once before the end; after that there is no time for another.
    fn plan_bookmark(&mut self, now: Instant) {
        let last = self.end.checked_sub(LAST_BOOKMARK).filter(|last| *last > now);
        self.next_bookmark = (now + BOOKMARK_PERIOD).min(last.unwrap_or(self.end + BOOKMARK_PERIOD));
    }

    /// Queues what was written since the last look.
    fn look(&mut self) {
        let (writes, newest) = {
            let store = self.shared.store();
            (store.since(self.resource, self.cursor), store.version())
        };
        let Some(writes) = writes else {
            return self.expire();
        };
        let events = writes.iter().filter_map(|write| told(write, &self.selector));
        self.pending.extend(events);
        self.cursor = self.cursor.max(newest);
    }

    fn bookmark(&mut self) {
        if !self.bookmarks {
            return;
        }
        let mut object = json!({
            "kind": self.resource.kind(),
            "apiVersion": self.resource.api_version(),
            "metadata": {"resourceVersion": self.cursor.to_string(), "creationTimestamp": null},
        });
        // The empty object of its Go type, as a real server prints it.
        match self.resource {
            Resource::Services => {
                object["spec"] = json!({});
                object["status"] = json!({"loadBalancer": {}});
            }
            Resource::EndpointSlices => {
                object["addressType"] = json!("");
                object["endpoints"] = Value::Null;
                object["ports"] = Value::Null;
            }
            _ => {}
        }
        self.pending.push_back(Line::plain("BOOKMARK", &object));
    }

    fn expire(&mut self) {
        let oldest = self.shared.store().oldest();
        self.pending.push_back(Line::plain(
            "ERROR",
            &Status::watch_expired(self.cursor, oldest).object(),
        ));
        self.ended = true;
    }
}

/// What a watch with this selector is told of a write: an object that no longer matches is gone for it.
fn told(write: &Write, selector: &Selector) -> Option<Line> {
    let before = write.before.as_ref().filter(|object| selector.wants(object));
    let after = write.after.as_ref().filter(|object| selector.wants(object));
    let line = match (before, after) {
        (None, None) => return None,
        (None, Some(after)) => Line::plain("ADDED", after),
        (Some(_), Some(after)) => Line::plain("MODIFIED", after),
        (Some(before), None) => {
            // The last state, at the version of the deletion: clients go on from that version.
            let mut last = Value::clone(before);
            last["metadata"]["resourceVersion"] = json!(write.version.to_string());
            Line::plain("DELETED", &last)
        }
    };
    Some(Line {
        version: Some(write.version),
        ..line
    })
}

/// A line of the stream.
struct Line {
    text: Bytes,
    /// Of the write that it tells.
    version: Option<u64>,
}

impl Line {
    /// An event that tells no write. The type comes first, as real servers print it.
    fn plain(kind: &str, object: &Value) -> Self {
        Self {
            text: format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into(),
            version: None,
        }
    }
}
