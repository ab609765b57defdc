//! A Kubernetes API server as far as a client can tell that lists, watches and patches: real HTTP, real JSON, real errors.
//!
//! The shipped binaries run against it unchanged. It has no admission, no defaults and no validation: tests put in
//! whole objects. What it takes seriously is what clients trip over: one global resourceVersion, consistent chunked
//! lists, events in order, bookmarks, and 410 Gone.

mod http;
mod list;
mod object;
mod objects;
mod patch;
mod resource;
mod selector;
mod status;
mod store;
mod verb;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::{broadcast, watch as newest};

pub use objects::Objects;
pub use store::Served;
pub use verb::Verb;

use crate::netns::{Netns, RuntimeThread};
use resource::Resource;
use store::Store;

/// What a client must show; the kubeconfig carries it.
const TOKEN: &str = "kube-sim-token";

/// A running API server. It stops, and its connections are cut, on drop.
#[derive(Debug)]
pub struct KubeSim {
    shared: Arc<Shared>,
    address: SocketAddr,
    _thread: RuntimeThread,
}

/// What the test's side and the server's thread both hold.
#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    /// The Events that clients have written.
    events: Mutex<Vec<Value>>,
    /// Resources that nobody is shown.
    withheld: Mutex<BTreeMap<Resource, Withheld>>,
    /// What nobody may do: 403.
    forbidden: Mutex<BTreeSet<(Verb, Resource)>>,
    /// Answer 503 to everything.
    refusing: AtomicBool,
    /// Say that a watch's version is too old by an ERROR event instead of by the HTTP status.
    gone_in_stream: AtomicBool,
    /// What befalls the open watches.
    to_watches: broadcast::Sender<ToWatches>,
    /// The newest version that was told, for the parts of the harness that follow the store without HTTP.
    newest: newest::Sender<u64>,
    /// When the event of each write was first given to a connection, if that is to be noted.
    told: Mutex<Option<BTreeMap<u64, Instant>>>,
}

/// Why a resource is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// The server does not have it: 404.
    Unknown,
    /// The client may not see it: 403.
    Forbidden,
}

/// A message to every open watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToWatches {
    /// Something changed in the store: look.
    Changed,
    /// Send a bookmark now, if the client asked for bookmarks.
    Bookmark,
    /// Break the connection in the middle of the stream.
    Cut,
    /// Say that the client's version has expired, and end.
    Expire,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn events(&self) -> MutexGuard<'_, Vec<Value>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn withheld(&self) -> MutexGuard<'_, BTreeMap<Resource, Withheld>> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forbidden(&self) -> MutexGuard<'_, BTreeSet<(Verb, Resource)>> {
        self.forbidden.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, Option<BTreeMap<u64, Instant>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The event of a write goes to a connection now.
    fn note_told(&self, version: u64) {
        if let Some(told) = &mut *self.told() {
            told.entry(version).or_insert_with(Instant::now);
        }
    }

    /// Something was written: this is its version.
    fn changed(&self, version: u64) {
        self.tell(ToWatches::Changed);
        // Of two writers, the one with the older version may come second.
        self.newest.send_if_modified(|newest| {
            let is_newer = version > *newest;
            *newest = version.max(*newest);
            is_newer
        });
    }

    fn tell(&self, message: ToWatches) {
        // Nobody watching is fine.
        let _ = self.to_watches.send(message);
    }
}

impl KubeSim {
    /// Starts a server in the namespace of the calling thread. Port 0 takes a free one; see [`KubeSim::url`].
    pub fn start(bind: SocketAddr) -> Self {
        Self::start_on(None, bind)
    }

    /// Starts a server inside `netns`.
    pub fn start_in(netns: &Netns, bind: SocketAddr) -> Self {
        Self::start_on(Some(netns), bind)
    }

    fn start_on(netns: Option<&Netns>, bind: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            events: Mutex::default(),
            withheld: Mutex::default(),
            forbidden: Mutex::default(),
            refusing: AtomicBool::new(false),
            gone_in_stream: AtomicBool::new(false),
            // A watch that falls behind further than this looks at the store once for all it missed.
            to_watches: broadcast::channel(1024).0,
            newest: newest::Sender::default(),
            told: Mutex::new(None),
        });
        let (ready, listening) = mpsc::channel();
        let served = Arc::clone(&shared);
        let thread = RuntimeThread::start(netns, move |stopped| http::serve(bind, served, ready, stopped));
        let address = listening
            .recv()
            .unwrap_or_else(|_| panic!("no API server on {bind}, see above"));
        Self {
            shared,
            address,
            _thread: thread,
        }
    }

    /// The Events (`events.k8s.io/v1`) that clients have written, oldest first.
    pub fn events(&self) -> Vec<Value> {
        self.shared.events().clone()
    }

    /// Where it listens: `http://192.168.50.250:6443`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bearer token that it wants to see; without it every answer is 401.
    pub fn token(&self) -> &'static str {
        TOKEN
    }

    /// A kubeconfig in YAML with the address and the token.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: sim\n  cluster:\n    server: {}\nusers:\n- name: sim\n  \
             user:\n    token: {TOKEN}\ncontexts:\n- name: sim\n  context:\n    cluster: sim\n    user: sim\n\
             current-context: sim\n",
            self.url()
        )
    }

    /// Creates the object or replaces the one of its name; watches see ADDED or MODIFIED. Returns the new
    /// resourceVersion. The object needs `apiVersion`, `kind` and `metadata.name`; uid and creationTimestamp are kept or
    /// made up. Panics for a kind that is not simulated.
    pub fn apply(&self, object: Value) -> u64 {
        self.objects().apply(object)
    }

    /// The objects themselves, for those who live on a thread of their own.
    pub fn objects(&self) -> Objects {
        Objects::new(&self.shared)
    }

    /// Sets a label of a Node, or takes it away, as `kubectl label` does. Panics when there is no such Node.
    pub fn label_node(&self, node: &str, key: &str, value: Option<&str>) -> u64 {
        let patch = json!({"metadata": {"labels": {key: value}}});
        self.objects()
            .patch("Node", "", node, &patch)
            .unwrap_or_else(|| panic!("there is no Node {node} to label"))
    }

    /// Applies all of them in order.
    pub fn load(&self, objects: impl IntoIterator<Item = Value>) {
        for object in objects {
            self.apply(object);
        }
    }

    /// Deletes an object by its kind (`"Service"`), its namespace (`""` for kinds without one) and name; watches see DELETED. Returns
    /// the resourceVersion of the deletion. Panics when there is no such object.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> u64 {
        self.objects()
            .remove(kind, namespace, name)
            .unwrap_or_else(|| panic!("there is no {kind} {namespace}/{name} to delete"))
    }

    /// The newest resourceVersion.
    pub fn version(&self) -> u64 {
        self.shared.store().version()
    }

    /// Notes from now on when the event of each write is given to a watch's connection; gives what was noted so far, by
    /// resourceVersion.
    pub fn take_told(&self) -> BTreeMap<u64, Instant> {
        self.shared.told().replace(BTreeMap::new()).unwrap_or_default()
    }

    /// Forgets the history, as a compaction of etcd does: continue tokens and new watches from before now are 410 Gone.
    /// Watches that are open go on, since they are up to date.
    pub fn expire_history(&self) {
        self.shared.store().expire_history();
    }

    /// Remembers at most this many writes (10,000 unless told), older ones are 410 Gone.
    pub fn limit_history(&self, writes: usize) {
        self.shared.store().limit_history(writes);
    }

    /// Forgets the history, and ends every open watch with an ERROR event that says 410 Gone.
    pub fn expire_watches(&self) {
        self.expire_history();
        self.shared.tell(ToWatches::Expire);
    }

    /// Says to watches that start from a forgotten version that they are too late by an ERROR event in a 200 answer, as the watch
    /// cache of a real server does, or by HTTP status 410, as etcd behind it does (the default).
    pub fn gone_in_stream(&self, yes: bool) {
        self.shared.gone_in_stream.store(yes, Ordering::SeqCst);
    }

    /// Breaks the connection of every open watch without a proper end.
    pub fn cut_watches(&self) {
        self.shared.tell(ToWatches::Cut);
    }

    /// Sends a bookmark to every open watch that wants bookmarks; unasked they come once a minute and before a timeout.
    pub fn send_bookmarks(&self) {
        self.shared.tell(ToWatches::Bookmark);
    }

    /// Answers 503 to every new request from now on, or no more. Open watches are left alone: see [`KubeSim::cut_watches`].
    pub fn refuse(&self, yes: bool) {
        self.shared.refusing.store(yes, Ordering::SeqCst);
    }

    /// Shows one resource, by its plural name, to nobody from now on.
    pub fn withhold(&self, plural: &str, how: Withheld) {
        self.shared.withheld().insert(Resource::of_plural_known(plural), how);
    }

    /// Answers 403 to this verb on a resource, by its plural name, from now on, as to a client whose role lacks it. Other verbs
    /// and open watches are left alone.
    pub fn forbid(&self, verb: Verb, plural: &str) {
        let resource = Resource::of_plural_known(plural);
        self.shared.forbidden().insert((verb, resource));
    }

    /// Allows again what was forbidden.
    pub fn permit(&self, verb: Verb, plural: &str) {
        let resource = Resource::of_plural_known(plural);
        self.shared.forbidden().remove(&(verb, resource));
    }

    /// What has been asked for of one resource by its plural name (`"services"`), over all namespaces.
    pub fn served(&self, plural: &str) -> Served {
        self.shared.store().served(Resource::of_plural_known(plural))
    }

    /// How many watches are open right now, over all resources.
    pub fn open_watches(&self) -> usize {
        self.shared.to_watches.receiver_count()
    }
}
