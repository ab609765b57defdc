//! A node's kube-proxy as something that lives: it runs while the cluster wants it there, follows Services, and leaves its
//! rules behind when it is told to go.
//!
//! One thread plays three roles. The `DaemonSet` controller: the Pod of kube-proxy exists while its Node exists without the
//! label [`SERVICE_PROXY`]. kubelet: the Pod's process runs, and is ended before the Pod goes. kube-proxy itself: it writes
//! all rules when it starts and whenever Services or endpoints change, and answers on its ports.

use std::convert::Infallible;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;

use super::answers::Answers;
use super::{Backend, Family, has_ipvs_link, install, install_ipvs, install_nftables};
use crate::kube_sim::{KubeSim, Objects};
use crate::lab::LabNode;
use crate::manifests::{KUBE_PROXY, SERVICE_PROXY, kube_proxy_pod};
use crate::netns::{Netns, RuntimeThread};
use crate::wait;

/// How long the `DaemonSet` controller and kubelet take for their part; in a real cluster it is rather a second.
const REACTION: Duration = Duration::from_millis(100);

/// How long a start, a stop or a sync may take: 30 s for iptables' lock, which all namespaces share, and the rest.
const LIMIT: Duration = Duration::from_secs(40);

/// A moment for what is marked as terminating.
const DELETED: &str = "2026-01-05T09:00:00Z";

/// How kube-proxy programs the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// iptables, by `iptables-legacy`.
    IptablesLegacy,
    /// iptables, by `iptables-nft`.
    IptablesNft,
    /// iptables in both backends at once, as on a node whose image changed its iptables: each holds all rules.
    IptablesBoth,
    /// nftables, in tables of its own.
    Nftables,
    /// IPVS, with chains by `iptables-nft`. Only on kernels that have it. What stands is not brought up to date.
    Ipvs,
}

impl Mode {
    /// Every mode that needs nothing of the kernel but `nf_tables` and iptables.
    pub const ALL: [Self; 4] = [
        Self::IptablesLegacy,
        Self::IptablesNft,
        Self::IptablesBoth,
        Self::Nftables,
    ];

    /// What `/proxyMode` says.
    pub fn name(self) -> &'static str {
        match self {
            Self::IptablesLegacy | Self::IptablesNft | Self::IptablesBoth => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
        }
    }

    /// The iptables backends in which the node's other tenants have rules. Where there is no iptables of kube-proxy's, they use
    /// the one that new distributions have.
    pub fn neighbours(self) -> &'static [Backend] {
        match self.backends() {
            [] => &[Backend::Nft],
            backends => backends,
        }
    }

    /// The iptables backends in which it has rules.
    pub fn backends(self) -> &'static [Backend] {
        match self {
            Self::IptablesLegacy => &[Backend::Legacy],
            Self::IptablesNft | Self::Ipvs => &[Backend::Nft],
            Self::IptablesBoth => &[Backend::Legacy, Backend::Nft],
            Self::Nftables => &[],
        }
    }
}

/// The kube-proxy of one node. It ends, and its Pod goes, when this is dropped; its rules stay.
#[derive(Debug)]
pub struct KubeProxy {
    // The first to go: it watches the others.
    thread: RuntimeThread,
    node: String,
    wishes: watch::Sender<Wishes>,
    state: watch::Receiver<State>,
    newest: watch::Receiver<u64>,
}

/// What a test wants to go wrong.
#[derive(Clone, Copy, Debug, Default)]
struct Wishes {
    stuck: bool,
    pending: bool,
    holding: bool,
    resyncs: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    running: bool,
    starts: u64,
    /// How often all rules were written, over all starts.
    syncs: u64,
    /// The API's version that it has looked at, and acted on as far as it may; none before the first look of this start.
    seen: Option<u64>,
    /// The API's version up to which the rules are what they should be; none before the first sync of this start.
    synced: Option<u64>,
}

impl KubeProxy {
    /// Starts it on a node for these families, and waits for its first sync. The Node must be in the API. Without the label,
    /// that is: on a node that has it, use [`KubeProxy::start_unwanted`].
    pub fn start(node: &LabNode, mode: Mode, api: &KubeSim, families: &[Family]) -> Self {
        let started = Self::start_unwanted(node, mode, api, families);
        started.wait_until_in_sync();
        started
    }

    /// The same, without waiting for anything.
    pub fn start_unwanted(node: &LabNode, mode: Mode, api: &KubeSim, families: &[Family]) -> Self {
        let (wishes, heard) = watch::channel(Wishes::default());
        let (told, state) = watch::channel(State::default());
        let api = api.objects();
        let newest = api.newest();
        let mut daemon = Daemon {
            node: node.name.clone(),
            netns: node.netns.clone(),
            mode,
            families: families.to_vec(),
            newest: newest.clone(),
            api,
            wishes: heard,
            state: told,
        };
        let thread = RuntimeThread::start(Some(&node.netns), move |stopped| async move {
            tokio::select! {
                biased;
                _ = stopped => {}
                never = daemon.live() => match never {},
            }
            daemon.end();
        });
        Self {
            thread,
            node: node.name.clone(),
            wishes,
            state,
            newest,
        }
    }

    /// Whether its process runs.
    pub fn is_running(&self) -> bool {
        self.state.borrow().running
    }

    /// How often its process has started.
    pub fn starts(&self) -> u64 {
        self.state.borrow().starts
    }

    /// Waits until the process has ended and its Pod is gone.
    pub fn wait_until_stopped(&self) {
        self.wait("stop", || !self.is_running());
    }

    /// Waits until the process runs, its Pod too, and its ports are open. Its rules may not be there yet.
    pub fn wait_until_running(&self) {
        self.wait("run", || self.is_running());
    }

    /// Waits until its rules say what the API says now.
    pub fn wait_until_in_sync(&self) {
        self.wait_until_in_sync_within(LIMIT);
    }

    /// The same for rules that take long to write: hundreds of thousands.
    pub fn wait_until_in_sync_within(&self, limit: Duration) {
        let now = *self.newest.borrow();
        wait::until_blocking(&format!("kube-proxy of {} to be in sync", self.node), limit, || {
            let synced = self.state.borrow().synced;
            synced.is_some_and(|synced| synced >= now).then_some(())
        });
    }

    /// Waits until it has looked at what the API says now, and has done as much as it may: nothing, if its syncs are held.
    pub fn wait_until_seen(&self) {
        let now = *self.newest.borrow();
        self.wait("have looked", || {
            self.state.borrow().seen.is_some_and(|seen| seen >= now)
        });
    }

    /// Runs on whatever the label says, as one that was installed by hand; or heeds it again.
    pub fn stuck(&self, yes: bool) {
        self.wishes.send_modify(|wishes| wishes.stuck = yes);
    }

    /// Leaves the Pod of the next start pending, as when its image can't be pulled; or lets it run.
    pub fn hold_start(&self, yes: bool) {
        self.wishes.send_modify(|wishes| wishes.pending = yes);
    }

    /// Runs, but writes no rules, as in the minutes that a first sync takes in a large cluster; or writes what has piled up.
    pub fn hold_sync(&self, yes: bool) {
        self.wishes.send_modify(|wishes| wishes.holding = yes);
    }

    /// Writes all rules anew although nothing changed, as kube-proxy does on a period, and waits for it if it runs and nothing
    /// is held.
    pub fn resync(&self) {
        let before = *self.state.borrow();
        self.wishes.send_modify(|wishes| wishes.resyncs += 1);
        if before.running && !self.wishes.borrow().holding {
            self.wait("write all rules anew", || self.state.borrow().syncs > before.syncs);
            self.wait_until_in_sync();
        }
    }

    /// Ends the process and the Pod for good, as when somebody deletes the `DaemonSet`. The rules stay.
    pub fn stop(&mut self) {
        self.thread.stop();
    }

    fn wait(&self, what: &str, is_so: impl Fn() -> bool) {
        wait::until_blocking(&format!("kube-proxy of {} to {what}", self.node), LIMIT, || {
            is_so().then_some(())
        });
    }
}

/// The thread's side.
struct Daemon {
    node: String,
    netns: Netns,
    mode: Mode,
    families: Vec<Family>,
    api: Objects,
    newest: watch::Receiver<u64>,
    wishes: watch::Receiver<Wishes>,
    state: watch::Sender<State>,
}

impl Daemon {
    async fn live(&mut self) -> Infallible {
        loop {
            self.until(Self::is_wanted).await;
            wait::taking(REACTION).await;
            if !self.is_wanted() {
                continue;
            }
            self.api.apply(kube_proxy_pod(&self.node).object());
            self.until(|this| !this.wishes.borrow().pending || !this.may_run())
                .await;
            if self.may_run() {
                let answers = Answers::start(&self.netns, self.mode.name(), &self.families);
                self.api.apply(kube_proxy_pod(&self.node).running().object());
                self.state.send_modify(|state| {
                    state.running = true;
                    state.starts += 1;
                });
                self.follow(&answers).await;
                self.mark_as_terminating();
                wait::taking(REACTION).await;
            }
            self.end();
        }
    }

    /// Writes the rules at the start and after every change, for as long as the process may run.
    async fn follow(&mut self, answers: &Answers) {
        let mut written = None;
        loop {
            // Noted as seen before it is looked at: what is written meanwhile is looked at again.
            let version = *self.newest.borrow_and_update();
            let wishes = *self.wishes.borrow_and_update();
            if !self.may_run() {
                return;
            }
            let wanted = (
                self.api.last_write("Service"),
                self.api.last_write("EndpointSlice"),
                wishes.resyncs,
            );
            if written != Some(wanted) {
                answers.queued();
                if !wishes.holding {
                    self.write();
                    answers.synced();
                    written = Some(wanted);
                    self.state.send_modify(|state| state.syncs += 1);
                }
            }
            self.state.send_modify(|state| {
                state.seen = Some(version);
                if written == Some(wanted) {
                    state.synced = Some(version);
                }
            });
            self.news().await;
        }
    }

    /// All rules, from what the API holds now.
    fn write(&self) {
        let mut objects = self.api.all("Service");
        objects.extend(self.api.all("EndpointSlice"));
        match self.mode {
            Mode::IptablesLegacy | Mode::IptablesNft | Mode::IptablesBoth => {
                for backend in self.mode.backends() {
                    install(&self.netns, *backend, &objects, &self.families);
                }
            }
            Mode::Nftables => install_nftables(&self.netns, &objects, &self.families),
            Mode::Ipvs if has_ipvs_link(&self.netns) => {}
            Mode::Ipvs => install_ipvs(&self.netns, Backend::Nft, &objects, &self.families),
        }
    }

    /// Whether the `DaemonSet` wants a Pod on this node.
    fn is_wanted(&self) -> bool {
        let (label, elsewhere) = SERVICE_PROXY;
        let node = self.api.get("Node", "", &self.node);
        node.is_some_and(|node| self.wishes.borrow().stuck || node["metadata"]["labels"][label] != elsewhere)
    }

    /// Whether the Pod is wanted, and there: one that somebody deletes is made anew.
    fn may_run(&self) -> bool {
        let (namespace, _) = KUBE_PROXY;
        let pod = self.api.get("Pod", namespace, &self.pod());
        self.is_wanted() && pod.is_some_and(|pod| pod["metadata"]["deletionTimestamp"].is_null())
    }

    fn pod(&self) -> String {
        format!("{}-{}", KUBE_PROXY.1, self.node)
    }

    fn mark_as_terminating(&self) {
        let patch = json!({"metadata": {"deletionTimestamp": DELETED, "deletionGracePeriodSeconds": 30}});
        // It may be gone by somebody else's hand.
        let _ = self.api.patch("Pod", KUBE_PROXY.0, &self.pod(), &patch);
    }

    /// The process has ended: so does its Pod.
    fn end(&self) {
        self.api.remove("Pod", KUBE_PROXY.0, &self.pod());
        self.state.send_modify(|state| {
            state.running = false;
            (state.seen, state.synced) = (None, None);
        });
    }

    async fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        loop {
            self.newest.mark_unchanged();
            self.wishes.mark_unchanged();
            if is_so(self) {
                return;
            }
            self.news().await;
        }
    }

    /// Something was written in the API, or the test has another wish.
    async fn news(&mut self) {
        let news = tokio::select! {
            news = self.newest.changed() => news,
            news = self.wishes.changed() => news,
        };
        if news.is_err() {
            // Nobody is left who could say anything; the thread is about to be stopped.
            std::future::pending::<()>().await;
        }
    }
}
