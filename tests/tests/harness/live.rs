//! kube-proxy as something that lives: it is stopped by a label, leaves its rules, and returns.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nftfleet_tests::cluster::{Cluster, register_nodes};
use nftfleet_tests::kube_proxy::{Family, KubeProxy, Mode};
use nftfleet_tests::lab::LabNode;
use nftfleet_tests::load::LoadFromEverywhere;
use nftfleet_tests::manifests::{AddressType, Readiness, SERVICE_PROXY, endpoint_slice, node_with};
use nftfleet_tests::rulesets::rulesets;
use nftfleet_tests::traffic::tcp_identity;
use nftfleet_tests::wait;

const LIMIT: Duration = Duration::from_secs(3);
const PROXY_MODE: &str = "127.0.0.1:10249";
const HEALTHZ: &str = "127.0.0.1:10256";

fn cluster() -> Cluster {
    let cluster = Cluster::new(&[true]);
    register_nodes(&cluster.kubernetes, &cluster.lab);
    cluster
}

fn start(cluster: &Cluster, mode: Mode) -> KubeProxy {
    KubeProxy::start(cluster.lab.node(1), mode, &cluster.kubernetes, &Family::BOTH)
}

/// The label that keeps kube-proxy off the node, or its absence.
fn exclude(cluster: &Cluster, yes: bool) {
    let (key, value) = SERVICE_PROXY;
    cluster.kubernetes.label_node("node-1", key, yes.then_some(value));
}

/// The body of an HTTP answer to somebody on the node.
fn ask(node: &LabNode, address: &str, path: &str) -> io::Result<String> {
    let address: SocketAddr = address.parse().expect("an address with a port");
    node.netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.0 200"), "{head}");
        Ok(body.to_owned())
    })
}

fn pod_phase(cluster: &Cluster) -> Option<String> {
    let pod = cluster
        .kubernetes
        .objects()
        .get("Pod", "kube-system", "kube-proxy-node-1")?;
    Some(pod["status"]["phase"].as_str()?.to_owned())
}

/// Moves shop/db to another endpoint.
fn move_db(cluster: &Cluster, number: usize) {
    let is_db = |slice: &serde_json::Value| {
        slice["metadata"]["labels"]["kubernetes.io/service-name"] == "db" && slice["addressType"] == "IPv4"
    };
    let slices = cluster.kubernetes.objects().all("EndpointSlice");
    let old = slices.iter().find(|slice| is_db(slice)).expect("a slice of shop/db");
    let name = old["metadata"]["name"].as_str().expect("a name");
    let mut slice = endpoint_slice("shop", "db", "moved", AddressType::IPv4)
        .port("postgres", "TCP", 9090)
        .endpoint(&format!("10.128.200.{number}"), "", Readiness::READY)
        .object();
    slice["metadata"]["name"] = serde_json::json!(name);
    cluster.kubernetes.apply(slice);
}

fn db(from: &LabNode) -> io::Result<String> {
    let target = "10.96.10.3:5432".parse().expect("an address with a port");
    tcp_identity(&from.client, target, Duration::from_millis(500))
}

fn traffic_flows_from_everywhere(mode: Mode) {
    let cluster = cluster();
    let node = cluster.lab.node(1);
    let kube_proxy = start(&cluster, mode);
    let told = ask(node, PROXY_MODE, "/proxyMode").expect("kube-proxy answers");
    assert_eq!(told, mode.name());
    let load = LoadFromEverywhere::start(node, 50);
    load.wait_for_more(40);
    kube_proxy.resync();
    exclude(&cluster, true);
    kube_proxy.wait_until_stopped();
    load.wait_for_more(40);
    exclude(&cluster, false);
    kube_proxy.wait_until_in_sync();
    load.wait_for_more(40);
    let (attempts, held) = load.stop_without_loss(&format!("{mode:?}"));
    assert!(
        attempts >= 360 && held == 6,
        "{attempts} attempts, {held} held connections"
    );
}

#[test]
fn traffic_flows_through_legacy_iptables() {
    traffic_flows_from_everywhere(Mode::IptablesLegacy);
}

#[test]
fn traffic_flows_through_nft_iptables() {
    traffic_flows_from_everywhere(Mode::IptablesNft);
}

#[test]
fn traffic_flows_through_both_iptables() {
    traffic_flows_from_everywhere(Mode::IptablesBoth);
}

#[test]
fn traffic_flows_through_nftables() {
    traffic_flows_from_everywhere(Mode::Nftables);
}

#[test]
fn it_stops_by_the_label_leaves_its_rules_and_returns() {
    for mode in Mode::ALL {
        let cluster = cluster();
        let node = cluster.lab.node(1);
        let kube_proxy = start(&cluster, mode);
        assert_eq!(pod_phase(&cluster).as_deref(), Some("Running"), "{mode:?}");
        move_db(&cluster, 1);
        kube_proxy.wait_until_in_sync();
        assert_eq!(db(node).unwrap(), "backend-1", "{mode:?} follows");

        let before = rulesets(&node.netns);
        exclude(&cluster, true);
        kube_proxy.wait_until_stopped();
        assert_eq!(pod_phase(&cluster), None);
        assert_eq!(rulesets(&node.netns), before, "{mode:?} leaves its rules");
        for port in [PROXY_MODE, HEALTHZ] {
            let refused = ask(node, port, "/healthz").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{mode:?} {port}");
        }
        // Nobody follows any more.
        move_db(&cluster, 3);
        assert_eq!(db(node).unwrap(), "backend-1");
        assert_eq!(rulesets(&node.netns), before, "{mode:?} has stopped");

        exclude(&cluster, false);
        kube_proxy.wait_until_in_sync();
        assert_eq!((kube_proxy.is_running(), kube_proxy.starts()), (true, 2));
        assert_eq!(pod_phase(&cluster).as_deref(), Some("Running"));
        assert_eq!(ask(node, PROXY_MODE, "/proxyMode").unwrap(), mode.name());
        assert_eq!(db(node).unwrap(), "backend-3", "{mode:?} caught up");
    }
}

#[test]
fn rules_that_were_removed_meanwhile_are_there_when_it_is_in_sync_again() {
    for mode in [Mode::IptablesNft, Mode::Nftables] {
        let cluster = cluster();
        let node = cluster.lab.node(1);
        let kube_proxy = start(&cluster, mode);
        exclude(&cluster, true);
        kube_proxy.wait_until_stopped();
        node.netns.pipe("nft", &["flush", "ruleset"], "");
        db(node).unwrap_err();

        // It is back long before its rules are.
        kube_proxy.hold_sync(true);
        exclude(&cluster, false);
        kube_proxy.wait_until_running();
        kube_proxy.wait_until_seen();
        assert_eq!(ask(node, PROXY_MODE, "/proxyMode").unwrap(), mode.name());
        let metrics = ask(node, PROXY_MODE, "/metrics").unwrap();
        let never = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 0e0";
        assert!(metrics.contains(never), "{metrics}");
        db(node).unwrap_err();

        kube_proxy.hold_sync(false);
        kube_proxy.wait_until_in_sync();
        let metrics = ask(node, PROXY_MODE, "/metrics").unwrap();
        assert!(
            metrics.contains("last_timestamp_seconds") && !metrics.contains(never),
            "{metrics}"
        );
        assert_eq!(db(node).unwrap(), "backend-2", "{mode:?}");
    }
}

#[test]
fn one_that_is_stuck_runs_on_whatever_the_label_says() {
    let cluster = cluster();
    let kube_proxy = start(&cluster, Mode::IptablesNft);
    kube_proxy.stuck(true);
    exclude(&cluster, true);
    move_db(&cluster, 3);
    kube_proxy.wait_until_in_sync();
    assert!(kube_proxy.is_running());
    assert_eq!(pod_phase(&cluster).as_deref(), Some("Running"));
    assert_eq!(db(cluster.lab.node(1)).unwrap(), "backend-3");
    kube_proxy.stuck(false);
    kube_proxy.wait_until_stopped();
    assert_eq!(kube_proxy.starts(), 1);
}

#[test]
fn one_that_cannot_start_again_stays_pending() {
    let cluster = cluster();
    let kube_proxy = start(&cluster, Mode::IptablesNft);
    exclude(&cluster, true);
    kube_proxy.wait_until_stopped();
    kube_proxy.hold_start(true);
    exclude(&cluster, false);
    wait::until_blocking("a pending Pod", LIMIT, || {
        (pod_phase(&cluster).as_deref() == Some("Pending")).then_some(())
    });
    assert!(!kube_proxy.is_running());
    ask(cluster.lab.node(1), PROXY_MODE, "/proxyMode").unwrap_err();
    kube_proxy.hold_start(false);
    kube_proxy.wait_until_in_sync();
    assert_eq!(pod_phase(&cluster).as_deref(), Some("Running"));
}

#[test]
fn a_pod_that_is_deleted_is_made_anew_and_one_of_another_node_is_left_alone() {
    let cluster = Cluster::new(&[true, false]);
    register_nodes(&cluster.kubernetes, &cluster.lab);
    let [first, second] = [(1, &Family::BOTH[..]), (2, &[Family::V4])].map(|(number, families)| {
        let node = cluster.lab.node(number);
        KubeProxy::start(node, Mode::Nftables, &cluster.kubernetes, families)
    });
    cluster.kubernetes.delete("Pod", "kube-system", "kube-proxy-node-1");
    wait::until_blocking("a second start", LIMIT, || (first.starts() == 2).then_some(()));
    first.wait_until_in_sync();
    exclude(&cluster, true);
    first.wait_until_stopped();
    assert_eq!((second.is_running(), second.starts()), (true, 1));
}

#[test]
fn there_is_none_where_there_is_no_node_and_it_goes_for_good() {
    let cluster = Cluster::new(&[false]);
    let node = cluster.lab.node(1);
    let mut kube_proxy = KubeProxy::start_unwanted(node, Mode::IptablesNft, &cluster.kubernetes, &[Family::V4]);
    assert!(!kube_proxy.is_running());
    cluster.kubernetes.apply(node_with("node-1").object());
    kube_proxy.wait_until_in_sync();
    assert_eq!(db(node).unwrap(), "backend-2");
    let before = rulesets(&node.netns);
    kube_proxy.stop();
    assert!(!kube_proxy.is_running());
    assert_eq!(pod_phase(&cluster), None);
    ask(node, PROXY_MODE, "/proxyMode").unwrap_err();
    assert_eq!(rulesets(&node.netns), before);
}

#[test]
fn it_waits_for_the_port_for_load_balancers() {
    let cluster = cluster();
    let node = cluster.lab.node(1);
    let somebody = node.netns.run(|| std::net::TcpListener::bind("[::]:10256").unwrap());
    let _kube_proxy = start(&cluster, Mode::IptablesNft);
    drop(somebody);
    let health = wait::until_blocking("the port to be kube-proxy's", LIMIT, || {
        ask(node, HEALTHZ, "/healthz").ok()
    });
    assert!(health.contains("\"nodeEligible\":true"), "{health}");
}
