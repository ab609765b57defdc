//! The node's data plane, put together as in the agent: an index of objects, the thread that writes the table, the one that
//! cuts off flows and the one that hears of foreign changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nftfleet_agent::clock::Clock;
use nftfleet_agent::dataplane::actor::Surroundings;
use nftfleet_agent::dataplane::netlink::conntrack::Conntrack;
use nftfleet_agent::dataplane::netlink::wait_for_packets;
use nftfleet_agent::dataplane::{Actor, Dataplane, LayoutSettings, Listener, Netlink, Status, flows};
use nftfleet_agent::kube::{Event, Index, IndexSettings, Kind, LocalTraffic, NodePortAddresses};
use nftfleet_domain::ids::NodeName;
use nftfleet_domain::service::Family;
use nftfleet_tests::lab::{CLUSTER_CIDR4, CLUSTER_CIDR6};
use nftfleet_tests::manifests;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::world::World;

/// Far above what any change takes.
const LIMIT: Duration = Duration::from_secs(20);

/// Time since the start, which never goes back.
struct Elapsed(Instant);

impl Clock for Elapsed {
    fn now(&self) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.0.elapsed()).expect("a short time");
        Timestamp::UNIX_EPOCH + elapsed
    }
}

/// The data plane of the node, told by objects.
pub struct Node {
    runtime: tokio::runtime::Runtime,
    clock: Arc<dyn Clock>,
    index: Index,
    actor: Actor,
    status: watch::Receiver<Status>,
    foreign_edits: Arc<AtomicU64>,
}

impl Node {
    /// Starts it and makes the table active. The first lists are in and there is no Service.
    pub fn start(world: &World) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let clock: Arc<dyn Clock> = Arc::new(Elapsed(Instant::now()));
        let foreign_edits = Arc::new(AtomicU64::new(0));
        let actor = start_dataplane(world, &clock, &foreign_edits);
        let cidrs = [CLUSTER_CIDR4, CLUSTER_CIDR6].map(|cidr| cidr.parse().expect("a network"));
        let index = Index::new(IndexSettings {
            node: world.node().name.parse::<NodeName>().expect("the name of a node"),
            nodeport_addresses: NodePortAddresses::Primary,
            local_traffic: LocalTraffic::ClusterCidr(cidrs.into()),
        });
        let status = actor.watch();
        let mut node = Self {
            runtime: runtime.expect("a runtime"),
            clock,
            index,
            actor,
            status,
            foreign_edits,
        };
        let [v4, v6] = Family::BOTH.map(|family| world.node_address(family).to_string());
        let mut object = manifests::node(&world.node().name, &v4);
        let addresses = object["status"]["addresses"]
            .as_array_mut()
            .expect("a list of addresses");
        addresses.push(json!({"address": v6, "type": "InternalIP"}));
        for kind in Kind::ALL {
            let objects = if kind == Kind::Node {
                vec![object.clone()]
            } else {
                vec![]
            };
            node.list(kind, objects);
        }
        node.tell();
        node.runtime
            .block_on(node.actor.load_active())
            .expect("the table is made");
        node
    }

    /// An object is new or has changed.
    pub fn applied(&mut self, kind: Kind, object: Value) {
        self.take(kind, Event::Applied(read(object)));
    }

    /// An object is gone.
    pub fn deleted(&mut self, kind: Kind, object: Value) {
        self.take(kind, Event::Deleted(read(object)));
    }

    /// All objects of a kind, as after a watch that broke.
    pub fn list(&mut self, kind: Kind, objects: Vec<Value>) {
        self.take(kind, Event::Begin);
        for object in objects {
            self.take(kind, Event::Listed(read(object)));
        }
        self.take(kind, Event::End);
    }

    fn take(&mut self, kind: Kind, event: Event) {
        let bad = self.index.take(kind, event);
        assert!(bad.is_empty(), "{bad:?}");
    }

    /// What the objects have changed, worked out and thrown away: an update that got lost.
    pub fn lose(&mut self) {
        self.index.update().expect("every first list is in");
    }

    /// Tells the thread what the objects have changed.
    pub fn tell(&mut self) {
        let update = self.index.update().expect("every first list is in");
        if !update.is_empty() {
            self.actor.update(update).expect("the thread of the data plane");
        }
    }

    /// Waits until all that was told is in the table.
    pub fn wait(&mut self) {
        let (clock, actor, status) = (&self.clock, &self.actor, &mut self.status);
        let done = self.runtime.block_on(async {
            // Answered in turn: what was told before has arrived, though it need not be in the table yet.
            actor.state().await.expect("the state of the table");
            let arrived = clock.now();
            let is_in = |status: &Status| {
                status.failures > 0 || status.pending.is_none() || status.synced.is_some_and(|at| at >= arrived)
            };
            let waiting = tokio::time::timeout(LIMIT, status.wait_for(is_in)).await;
            let status = waiting
                .expect("a change does not take so long")
                .expect("the thread of the data plane");
            status.clone()
        });
        assert_eq!(done.failures, 0, "a commit failed");
    }

    /// Reads the table back: it must hold what the objects say.
    pub fn compare(&self) {
        let compared = self.runtime.block_on(self.actor.compare());
        compared.expect("the table holds what is desired");
    }

    /// Commits since the start.
    pub fn commits(&self) -> u64 {
        self.status.borrow().commits
    }

    /// How often a foreign edit was heard of. There is no stranger in this lab.
    pub fn foreign_edits(&self) -> u64 {
        self.foreign_edits.load(Ordering::Relaxed)
    }
}

fn start_dataplane(world: &World, clock: &Arc<dyn Clock>, foreign_edits: &Arc<AtomicU64>) -> Actor {
    let open = || {
        let mut kernel = Netlink::open().expect("a netlink socket");
        let listener = Listener::open(&mut kernel).expect("a subscription");
        (kernel, listener, Conntrack::open().expect("connection tracking"))
    };
    let (kernel, mut listener, conntrack) = world.node().netns.run(open);
    let cut = flows::start(conntrack, |_, _| {}).expect("a thread");
    let surroundings = Surroundings {
        clock: Arc::clone(clock),
        flows: Box::new(move |changed| cut.send(changed).expect("the thread that cuts off flows")),
        wait_for_packets: Box::new(wait_for_packets),
        rounds: Box::new(drop),
    };
    // kube-proxy's default bit.
    let settings = LayoutSettings {
        masquerade_bit: 14,
        masquerade_all: false,
    };
    let actor = Actor::start(Dataplane::new(kernel, settings), surroundings).expect("a thread");
    let (told, foreign_edits) = (actor.clone(), Arc::clone(foreign_edits));
    std::thread::spawn(move || {
        while listener.foreign_edit().is_ok() && told.foreign_edit().is_ok() {
            foreign_edits.fetch_add(1, Ordering::Relaxed);
        }
    });
    actor
}

/// An object as a watch hands it on.
fn read<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("an object of Kubernetes")
}
