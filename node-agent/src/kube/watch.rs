//! Lists and watches Services and EndpointSlices, and tells what they mean.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use kube::api::{Api, ApiResource, GroupVersionKind};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DynamicObject;
use kube::runtime::watcher::{self, Event};
use nftfleet_domain::service::ObjectName;
use tokio::sync::watch;

use super::index::{Index, View};
use super::object::{self, BadObject};
use crate::pause::Pause;
use crate::telemetry::Telemetry;

/// Objects that other proxies or nobody should serve, as kube-proxy selects them.
const OURS: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

/// How many objects the API gives in one page, as kube-proxy asks.
const PAGE: u32 = 500;

/// How many events at the most go into one view.
const MOST_EVENTS: usize = 4096;

/// The Kubernetes API can't be reached as configured.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig is not usable.
    #[error("the kubeconfig {path} is not usable: {source}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// Not in a cluster, and no kubeconfig given.
    #[error("no kubeconfig is given, and this is no pod of a cluster: {0}")]
    NotInCluster(#[source] kube::config::InferConfigError),
    /// The client can't be built.
    #[error("the client of the Kubernetes API can't be built: {0}")]
    Client(#[source] kube::Error),
}

/// A client by the kubeconfig if one is given, else as a pod of the cluster.
///
/// # Errors
/// See [`ConnectError`].
pub async fn client(kubeconfig: Option<&Path>) -> Result<kube::Client, ConnectError> {
    let config = match kubeconfig {
        Some(path) => {
            let wrong = |source| ConnectError::Kubeconfig {
                path: path.display().to_string(),
                source,
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(wrong)?
        }
        None => kube::Config::infer().await.map_err(ConnectError::NotInCluster)?,
    };
    kube::Client::try_from(config).map_err(ConnectError::Client)
}

/// An event of either kind.
enum Seen {
    Service(Event<DynamicObject>),
    Slice(Event<DynamicObject>),
}

/// Watches until the process ends, and publishes a view whenever it changes. Errors are logged and tried again, a kubeconfig
/// that can't be read among them: the last view stays.
pub async fn run(
    kubeconfig: Option<PathBuf>,
    mut index: Index,
    views: watch::Sender<Option<View>>,
    telemetry: Arc<Telemetry>,
) {
    let mut pause = Pause::default();
    let client = loop {
        match client(kubeconfig.as_deref()).await {
            Ok(client) => break client,
            Err(error) => tracing::error!(%error, "the Kubernetes API can't be watched; trying again"),
        }
        pause.wait().await;
    };
    let services = watched(&client, &GroupVersionKind::gvk("", "v1", "Service"), "services");
    let slices = watched(
        &client,
        &GroupVersionKind::gvk("discovery.k8s.io", "v1", "EndpointSlice"),
        "endpointslices",
    );
    let events = stream::select(services.map(Seen::Service), slices.map(Seen::Slice)).ready_chunks(MOST_EVENTS);
    let mut events = pin!(events);
    let mut listed_services = Listing::new("Service");
    let mut listed_slices = Listing::new("EndpointSlice");
    while let Some(chunk) = events.next().await {
        for event in chunk {
            match event {
                Seen::Service(event) => listed_services.take(
                    event,
                    &telemetry,
                    |object| object::service(object).map(Some),
                    |change| match change {
                        Change::All(all) => index.reset_services(all),
                        Change::One(name, service) => index.apply_service(name, service),
                    },
                ),
                Seen::Slice(event) => listed_slices.take(event, &telemetry, object::slice, |change| match change {
                    Change::All(all) => index.reset_slices(all),
                    Change::One(name, slice) => index.apply_slice(name, slice),
                }),
            }
        }
        let view = index.view();
        views.send_if_modified(|known| {
            let changed = *known != view;
            if changed {
                *known = view;
            }
            changed
        });
    }
}

/// Every object of a kind, for ever. What breaks is begun again after a pause; what was seen stays until the new list is in.
fn watched(
    client: &kube::Client,
    kind: &GroupVersionKind,
    plural: &'static str,
) -> impl Stream<Item = Event<DynamicObject>> + use<> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(kind, plural));
    let config = watcher::Config::default().labels(OURS).page_size(PAGE);
    let begin = move || watcher::watcher(api.clone(), config.clone()).boxed();
    stream::unfold(
        (begin(), begin, Pause::default()),
        move |(mut objects, begin, mut pause)| async move {
            loop {
                match objects.next().await {
                    Some(Ok(event)) => return Some((event, (objects, begin, Pause::default()))),
                    Some(Err(error)) => {
                        tracing::warn!(%error, "the watch of {plural} broke; beginning again");
                        // The library would ask for the same forgotten version for ever.
                        if is_expired(&error) {
                            objects = begin();
                        }
                        pause.wait().await;
                    }
                    None => {
                        objects = begin();
                        pause.wait().await;
                    }
                }
            }
        },
    )
}

/// Whether the API refused to begin a watch because it has forgotten the version to begin from (410 Gone).
fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

/// What an event means.
enum Change<T> {
    All(BTreeMap<ObjectName, T>),
    One(ObjectName, Option<T>),
}

/// A list under way, and the objects that were skipped.
struct Listing<T> {
    kind: &'static str,
    listed: BTreeMap<ObjectName, T>,
}

impl<T> Listing<T> {
    fn new(kind: &'static str) -> Self {
        Self {
            kind,
            listed: BTreeMap::new(),
        }
    }

    fn take(
        &mut self,
        event: Event<DynamicObject>,
        telemetry: &Telemetry,
        read: impl Fn(&DynamicObject) -> Result<Option<T>, BadObject>,
        mut tell: impl FnMut(Change<T>),
    ) {
        let kind = self.kind;
        let understood = |object: &DynamicObject| {
            read(object)
                .inspect_err(|error| {
                    let name = object::name_of(object);
                    tracing::warn!(kind, object = %name, %error, "an object makes no sense and is skipped");
                    telemetry.skipped(kind);
                })
                .ok()
        };
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                if let Some(Some(known)) = understood(&object) {
                    self.listed.insert(object::name_of(&object), known);
                }
            }
            Event::InitDone => tell(Change::All(std::mem::take(&mut self.listed))),
            Event::Apply(object) => {
                // What was understood before stays: a bad update must not take a Service away.
                if let Some(known) = understood(&object) {
                    tell(Change::One(object::name_of(&object), known));
                }
            }
            Event::Delete(object) => tell(Change::One(object::name_of(&object), None)),
        }
    }
}
