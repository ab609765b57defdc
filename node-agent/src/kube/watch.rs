//! Lists and watches the objects that matter, and tells what they mean.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, stream};
use kube::config::{KubeConfigOptions, Kubeconfig};
use nftfleet_domain::rollout::ProbeTarget;
use nftfleet_domain::service::ObjectName;
use tokio::sync::watch;

use super::index::{Index, Kind};
use super::known::Event;
use super::meaning::{HealthCheck, NoLocal};
use super::objects::objects;
use crate::clock::Clock;
use crate::dataplane::Update;
use crate::dataplane::desired::Heard;
use crate::pause::Pause;
use crate::telemetry::Telemetry;

/// How many events at the most go into one update.
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

/// What the Services mean, shared between who learns it and who asks.
#[derive(Clone, Debug)]
pub struct Services {
    index: Arc<Mutex<Index>>,
    complete: watch::Receiver<bool>,
    tell_complete: watch::Sender<bool>,
}

impl Services {
    /// Of an index that knows nothing yet.
    pub fn new(index: Index) -> Self {
        let (tell_complete, complete) = watch::channel(false);
        Self {
            index: Arc::new(Mutex::new(index)),
            complete,
            tell_complete,
        }
    }

    /// The index, for a moment.
    pub fn index(&self) -> MutexGuard<'_, Index> {
        // A panic in the middle of an event ends the watch, and with it the process; the index is not used after it.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every first list is in, for so long; gives whether it is.
    pub async fn listed_within(&self, limit: Duration) -> bool {
        let mut complete = self.complete.clone();
        let listed = tokio::time::timeout(limit, complete.wait_for(|complete| *complete)).await;
        matches!(listed, Ok(Ok(_)))
    }

    /// Where a probe's target answers, empty if there is no such Service or TCP port.
    pub fn addresses(&self, target: &ProbeTarget) -> Vec<SocketAddr> {
        self.index().addresses(target)
    }
}

/// What others than the data plane want to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Where load balancers ask for Services' endpoints on this node.
    pub health_checks: BTreeMap<ObjectName, HealthCheck>,
    /// The addresses on which node ports listen.
    pub nodeport_ips: BTreeSet<IpAddr>,
    /// Whether load balancers may send new connections to this node.
    pub eligible: bool,
}

/// Who is told what.
pub struct Hearers<F> {
    /// Hears every change of what is desired.
    pub updates: F,
    /// Holds what others want to know.
    pub asked: watch::Sender<Asked>,
    /// Counts.
    pub telemetry: Arc<Telemetry>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// What is seen.
enum Seen {
    Object(Kind, Box<Event>),
    Addresses(BTreeSet<IpAddr>),
}

/// Watches until the process ends, and tells every change of what is desired. Errors are logged and tried again, a kubeconfig
/// that can't be read among them: what was seen stays.
pub async fn run(
    kubeconfig: Option<PathBuf>,
    node: String,
    services: Services,
    addresses: watch::Receiver<BTreeSet<IpAddr>>,
    mut hearers: Hearers<impl FnMut(Update)>,
) {
    let mut pause = Pause::default();
    let client = loop {
        match client(kubeconfig.as_deref()).await {
            Ok(client) => break client,
            Err(error) => tracing::error!(%error, "the Kubernetes API can't be watched; trying again"),
        }
        pause.wait().await;
    };
    let objects = stream::select_all(Kind::ALL.map(|kind| {
        let events = objects(&client, kind, &node);
        events.map(move |event| Seen::Object(kind, Box::new(event))).boxed()
    }));
    let addresses = stream::unfold(addresses, async |mut addresses| {
        addresses.changed().await.ok()?;
        let seen = Seen::Addresses(addresses.borrow_and_update().clone());
        Some((seen, addresses))
    });
    let mut events = pin!(stream::select(objects, addresses.boxed()).ready_chunks(MOST_EVENTS));
    let mut told_conflicts = BTreeSet::new();
    while let Some(chunk) = events.next().await {
        let mut heard = Heard::default();
        let update = {
            let mut index = services.index();
            for seen in chunk {
                if let Seen::Object(kind, event) = &seen {
                    note(&mut heard, *kind, event);
                }
                match seen {
                    Seen::Object(kind, event) => take(&mut index, kind, *event, &hearers.telemetry),
                    Seen::Addresses(addresses) => index.set_addresses(addresses),
                }
            }
            index.update()
        };
        let now = hearers.clock.now();
        hearers.telemetry.heard(now, &heard);
        let Some(mut update) = update else {
            heard.triggers.clear();
            hearers.telemetry.nothing_to_do(now, &heard);
            continue;
        };
        let first = !*services.complete.borrow();
        if first || !update.is_empty() {
            update.heard = heard;
            (hearers.updates)(update);
        } else {
            hearers.telemetry.nothing_to_do(now, &heard);
        }
        // Only now: whoever waits for this may ask the data plane next.
        if first {
            services.tell_complete.send_replace(true);
        }
        let conflicts = {
            let index = services.index();
            hearers.asked.send_if_modified(|asked| tell_asked(asked, &index));
            let NoLocal { internal, external } = index.no_local();
            hearers.telemetry.no_local_endpoints(internal, external);
            index.conflicts()
        };
        hearers.telemetry.conflicts(conflicts.len());
        for conflict in conflicts.difference(&told_conflicts) {
            super::conflicts::report(&client, &node, conflict);
        }
        told_conflicts = conflicts;
    }
}

/// Counts an event of those that are counted. What a list brings at a start happened before it.
fn note(heard: &mut Heard, kind: Kind, event: &Event) {
    let (Event::Listed(object) | Event::Applied(object) | Event::Deleted(object)) = event else {
        return;
    };
    match kind {
        Kind::Service => heard.services += 1,
        Kind::Slice => {
            heard.slices += 1;
            let trigger = object.trigger().filter(|_| !matches!(event, Event::Listed(_)));
            heard.triggers.extend(trigger);
        }
        Kind::Node | Kind::ServiceCidr => {}
    }
}

/// Brings up to date what others want to know, and says whether anything changed.
fn tell_asked(asked: &mut Asked, index: &Index) -> bool {
    let same = asked.health_checks == *index.health_checks()
        && asked.nodeport_ips == *index.nodeport_ips()
        && asked.eligible == index.is_eligible();
    if !same {
        *asked = Asked {
            health_checks: index.health_checks().clone(),
            nodeport_ips: index.nodeport_ips().clone(),
            eligible: index.is_eligible(),
        };
    }
    !same
}

fn take(index: &mut Index, kind: Kind, event: Event, telemetry: &Telemetry) {
    let name = match &event {
        Event::Listed(object) | Event::Applied(object) => Some(object.name()),
        _ => None,
    };
    for bad in index.take(kind, event) {
        let object = name.as_ref().map(ToString::to_string);
        tracing::warn!(kind = kind.name(), object, error = %bad, "an object, or a part of it, makes no sense and is left out");
        telemetry.left_out(kind.name());
    }
}
