//! All objects of a kind, for ever: a first list, then every change.

use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use kube::api::{Api, ApiResource, GroupVersionKind};
use kube::runtime::watcher;

use super::index::Kind;
use super::known::Event;
use super::object::Object;
use crate::pause::Pause;

/// Objects that other proxies or nobody should serve, as kube-proxy selects them.
const OURS: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

/// How many objects the API gives in one page, as kube-proxy asks.
const PAGE: u32 = 500;

/// How long after the API said that it has no such kind, or not for us, it is asked again: after an upgrade it may.
const KIND_AGAIN: Duration = Duration::from_secs(30);

/// A watch of the library.
type Watch = BoxStream<'static, watcher::Result<watcher::Event<Object>>>;

/// Every object of a kind. What breaks is begun again after a pause; what was seen stays until the new list is in.
pub(super) fn objects(client: &kube::Client, kind: Kind, node: &str) -> impl Stream<Item = Event> + use<> {
    let (group, plural) = match kind {
        Kind::Service => ("", "services"),
        Kind::Slice => ("discovery.k8s.io", "endpointslices"),
        Kind::Node => ("", "nodes"),
        Kind::ServiceCidr => ("networking.k8s.io", "servicecidrs"),
    };
    let named = GroupVersionKind::gvk(group, "v1", kind.name());
    let api: Api<Object> = Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&named, plural));
    let config = watcher::Config::default().page_size(PAGE);
    let config = match kind {
        Kind::Service | Kind::Slice => config.labels(OURS),
        Kind::Node => config.fields(&format!("metadata.name={node}")),
        Kind::ServiceCidr => config,
    };
    let begin = move || watcher::watcher(api.clone(), config.clone()).boxed();
    let objects = Objects {
        kind,
        watch: begin(),
        begin,
        pause: Pause::default(),
        listed: false,
    };
    stream::unfold(objects, async |mut objects| Some((objects.next().await, objects))).flat_map(stream::iter)
}

/// A watch under way.
struct Objects<B> {
    kind: Kind,
    watch: Watch,
    begin: B,
    pause: Pause,
    /// Whether a list was ever complete.
    listed: bool,
}

impl<B: Fn() -> Watch> Objects<B> {
    /// What happens next.
    async fn next(&mut self) -> Vec<Event> {
        let kind = self.kind.name();
        loop {
            match self.watch.next().await {
                Some(Ok(event)) => {
                    self.pause = Pause::default();
                    self.listed |= matches!(event, watcher::Event::InitDone);
                    return vec![of_watcher(event)];
                }
                Some(Err(error)) if self.may_be_missing(&error) => {
                    tracing::warn!(%error, "the {kind} objects can't be had; going on without them");
                    self.listed = true;
                    return vec![Event::Begin, Event::End];
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "the watch of {kind} objects broke; beginning again");
                    // The library would ask for the same forgotten version for ever.
                    if is_expired(&error) {
                        self.watch = (self.begin)();
                    }
                    if is_refused(&error) {
                        tokio::time::sleep(KIND_AGAIN).await;
                    } else {
                        self.pause.wait().await;
                    }
                }
                None => {
                    self.watch = (self.begin)();
                    self.pause.wait().await;
                }
            }
        }
    }

    /// Services are served without these: clusters before 1.33 have no `ServiceCIDR`s, and an agent that was upgraded before
    /// its permissions must not leave a rebooted node without Services. What was had once is not given up.
    fn may_be_missing(&self, error: &watcher::Error) -> bool {
        matches!(self.kind, Kind::Node | Kind::ServiceCidr) && !self.listed && is_refused(error)
    }
}

fn of_watcher(event: watcher::Event<Object>) -> Event {
    match event {
        watcher::Event::Init => Event::Begin,
        watcher::Event::InitApply(object) => Event::Listed(object),
        watcher::Event::InitDone => Event::End,
        watcher::Event::Apply(object) => Event::Applied(object),
        watcher::Event::Delete(object) => Event::Deleted(object),
    }
}

/// Whether the API refused to begin a watch because it has forgotten the version to begin from (410 Gone).
fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

/// Whether the API has no such kind of object (404 Not Found), or none for us (403 Forbidden).
fn is_refused(error: &watcher::Error) -> bool {
    let code = |status: &kube::core::Status| status.code == 404 || status.code == 403;
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if code(status))
}
