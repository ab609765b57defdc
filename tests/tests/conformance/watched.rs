//! The whole way from the Kubernetes API: what the agent selects, and an API server that is away for a while.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nftfleet_agent::dataplane::Update;
use nftfleet_agent::kube::watch::{Asked, Hearers, run};
use nftfleet_agent::kube::{Index, IndexSettings, LocalTraffic, NodePortAddresses, Services};
use nftfleet_agent::telemetry::Telemetry;
use nftfleet_tests::kube_sim::KubeSim;
use nftfleet_tests::lab::{CLUSTER_CIDR4, CLUSTER_CIDR6, CONTROL4, SERVICE_CIDR4, SERVICE_CIDR6};
use nftfleet_tests::manifests::service_cidr;
use nftfleet_tests::traffic::NewConnections;
use nftfleet_tests::wait;
use serde_json::json;
use tokio::sync::{oneshot, watch};

use crate::ask::{answered_by, asks, refused, unanswered, vips};
use crate::case::cases;
use crate::health::Stopped;
use crate::objects::{NAMESPACE, WEB, named, slices, web, web_on_nodes};
use crate::rig::{Rig, node_object};

cases! {
    Hidden: a_service_of_another_proxy_is_left_alone, ["S:2294", "util TestShouldSkipService"];
    Hidden: a_slice_of_a_headless_service_is_left_alone, ["S:2345"];
    Restart: an_api_server_that_is_away_costs_no_connection, ["S:1240"];
}

/// How long the agent may take to hear of something.
const HEARD_WITHIN: Duration = Duration::from_secs(20);

/// A Kubernetes API, and the agent's watch of it. It ends on drop.
struct Feed {
    api: KubeSim,
    updates: Receiver<Update>,
    _stop: oneshot::Sender<()>,
    _folder: tempfile::TempDir,
}

impl Feed {
    /// A watch that has heard of everything there is: `node-1` and the network of Services.
    fn start(rig: &mut Rig) -> Self {
        let control = &rig.lab.control;
        let api = KubeSim::start_in(control, SocketAddr::new(CONTROL4.into(), 6443));
        api.load([
            node_object(rig.node()),
            service_cidr("kubernetes", &[SERVICE_CIDR4, SERVICE_CIDR6]),
        ]);
        let folder = tempfile::tempdir().expect("a folder");
        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig()).expect("a kubeconfig can be written");
        // Another case may have done it.
        let _ = rustls::crypto::ring::default_provider().install_default();

        let network = |text: &str| text.parse().expect("a network");
        let services = Services::new(Index::new(IndexSettings {
            node: rig.node().name.parse().expect("the name of a node"),
            nodeport_addresses: NodePortAddresses::Primary,
            local_traffic: LocalTraffic::ClusterCidr(vec![network(CLUSTER_CIDR4), network(CLUSTER_CIDR6)]),
        }));
        let (tell, updates) = channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let node = rig.node().name.clone();
        control.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let (_addresses, addresses) = watch::channel(std::collections::BTreeSet::new());
                let (asked, _asked) = watch::channel(Asked::default());
                let hearers = Hearers {
                    updates: move |update| {
                        // Whoever hears has gone, and this thread is about to.
                        let _ = tell.send(update);
                    },
                    asked,
                    telemetry: Arc::new(Telemetry::default()),
                    clock: Arc::new(Stopped),
                };
                tokio::select! {
                    () = run(Some(kubeconfig), node, services, addresses, hearers) => {}
                    _ = stopped => {}
                }
            });
        });
        let feed = Self {
            api,
            updates,
            _stop: stop,
            _folder: folder,
        };
        let first = feed.updates.recv_timeout(HEARD_WITHIN).expect("every first list");
        rig.proxy().program(first);
        feed
    }

    /// Programs what is heard until the table says so.
    fn until(&self, rig: &mut Rig, what: &str, fact: impl Fn(&str) -> bool) {
        let proxy = rig.proxy();
        wait::until_blocking(what, HEARD_WITHIN, || {
            for update in self.updates.try_iter() {
                proxy.program(update);
            }
            fact(&proxy.table()).then_some(())
        });
    }
}

/// What the table says of shop/web's address.
const ADDRESS: &str = "10.96.20.1 ";

/// What the table says of backend-1.
const ENDPOINT: &str = "10.128.200.1 . 8080";

/// The same of its other address, which comes in a slice of its own.
const ENDPOINT6: &str = "fd00:128:200::1 . 8080";

/// Whether the table knows both addresses of backend-1.
fn has_endpoint(table: &str) -> bool {
    table.contains(ENDPOINT) && table.contains(ENDPOINT6)
}

fn a_service_of_another_proxy_is_left_alone() {
    let mut rig = Rig::new();
    let feed = Feed::start(&mut rig);
    let members = rig.members(["backend-1"]);
    let label = "service.kubernetes.io/service-proxy-name";
    let db = named("db", ["10.96.20.2", "fd00:10:96::2002"]);
    let second = vips(["10.96.20.2:80", "[fd00:10:96::2002]:80"]);
    feed.api.load(slices("web", &members));
    feed.api.load(slices("db", &members));
    feed.api.apply(web_on_nodes().label(label, "other").object());
    feed.api.apply(db.object());
    for _ in 0..2 {
        feed.until(&mut rig, "shop/db alone", |table| {
            table.contains("10.96.20.2 ") && has_endpoint(table) && !table.contains(ADDRESS)
        });
        answered_by(&asks(rig.everybody(), &second), ["backend-1"]);
        unanswered(&asks(rig.everybody(), &vips(WEB)));
        // Nothing of it on the node either: the port is closed.
        refused(&asks([&rig.node().client], &rig.on_node(30080)));

        feed.api.apply(web_on_nodes().object());
        feed.until(&mut rig, "shop/web", |table| table.contains(ADDRESS));
        answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
        answered_by(&asks(rig.everybody(), &rig.on_node(30080)), ["backend-1"]);
        // The label decides, whatever it says.
        feed.api.apply(web_on_nodes().label(label, "").object());
    }
    feed.until(&mut rig, "shop/db alone", |table| !table.contains(ADDRESS));
}

fn a_slice_of_a_headless_service_is_left_alone() {
    let mut rig = Rig::new();
    let feed = Feed::start(&mut rig);
    let members = rig.members(["backend-1"]);
    feed.api.apply(web().object());
    for _ in 0..2 {
        for mut slice in slices("web", &members) {
            slice["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
            feed.api.apply(slice);
        }
        feed.until(&mut rig, "shop/web without endpoints", |table| {
            table.contains(ADDRESS) && !table.contains(ENDPOINT) && !table.contains(ENDPOINT6)
        });
        refused(&asks(rig.everybody(), &vips(WEB)));
        feed.api.load(slices("web", &members));
        feed.until(&mut rig, "shop/web with its endpoint", has_endpoint);
        answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
    }
}

fn an_api_server_that_is_away_costs_no_connection() {
    let mut rig = Rig::new();
    let feed = Feed::start(&mut rig);
    let members = rig.members(["backend-1"]);
    feed.api.load(slices("web", &members));
    feed.api.apply(web().object());
    feed.until(&mut rig, "shop/web", |table| {
        table.contains(ADDRESS) && has_endpoint(table)
    });
    let targets = WEB.map(|at| at.parse().expect("an address"));
    let stream = NewConnections::start(&rig.node().client, targets.into(), 300);
    let mut transcript = rig.transcript();
    feed.api.refuse(true);
    feed.api.cut_watches();
    // What happens meanwhile, nobody will be told: the history has expired.
    feed.api.apply(named("db", ["10.96.20.2", "fd00:10:96::2002"]).object());
    feed.api.delete("EndpointSlice", NAMESPACE, "web-6");
    feed.api.expire_history();
    wait::until_blocking("a hundred connections more", HEARD_WITHIN, || {
        (stream.counts().made >= 100).then_some(())
    });
    stream.stop().assert_no_loss();
    feed.api.refuse(false);
    feed.until(&mut rig, "what happened meanwhile", |table| {
        table.contains("10.96.20.2 ") && !table.contains(ENDPOINT6)
    });
    // Nothing else: shop/web's IPv4 half was not touched.
    let changes = transcript.changes();
    assert!(!changes.iter().any(|line| line.contains(ADDRESS)), "{changes:#?}");
    answered_by(&asks(rig.everybody(), &vips([WEB[0]])), ["backend-1"]);
    refused(&asks([&rig.node().client], &vips([WEB[1]])));
}
