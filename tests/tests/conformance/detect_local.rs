//! How a node tells its own pods from everybody else.

use std::net::IpAddr;

use nftfleet_agent::kube::LocalTraffic;
use nftfleet_domain::service::Vip;
use nftfleet_tests::manifests::node_with;
use nftfleet_tests::netns::Netns;

use crate::ask::{answered_by, asks, unanswered, vips};
use crate::case::cases;
use crate::objects::{WEB, web, web_on_nodes};
use crate::rig::{Rig, Setup};

cases! {
    DetectLocal: cluster_cidr, ["util TestDetectLocalNFTByCIDR", "app Test_getLocalDetectors"];
    DetectLocal: a_cluster_cidr_of_one_family_leaves_the_other_alone, ["app Test_getLocalDetectors"];
    DetectLocal: node_cidr, ["util TestDetectLocalNFTByCIDR", "app Test_getLocalDetectors"];
    DetectLocal: node_cidr_that_changes_or_comes_late, [];
    DetectLocal: bridge_interface, ["util TestDetectLocalNFTByBridgeInterface"];
    DetectLocal: interface_name_prefix, ["util TestDetectLocalNFTByInterfaceNamePrefix"];
    DetectLocal: an_interface_that_comes_later, [];
    DetectLocal: none, ["app Test_getLocalDetectors"];
}

fn rig(local_traffic: LocalTraffic, nodes: usize) -> Rig {
    let mut rig = Rig::with(&Setup {
        nodes,
        local_traffic,
        ..Setup::default()
    });
    let members = rig.members(["backend-1"]);
    rig.program(web().object(), &members);
    rig
}

fn networks<const N: usize>(texts: [&str; N]) -> Vec<ipnet::IpNet> {
    texts.map(|text| text.parse().expect("a network")).into()
}

/// The one endpoint of shop/web is asked from the asker's own address.
fn is_local(rig: &Rig, from: &Netns, own: [IpAddr; 2], to: &[Vip]) {
    for ask in asks([from], to) {
        let expected = own[usize::from(ask.to.address.is_ipv6())];
        assert_eq!(rig.seen(&ask).1, expected, "{} from {}", ask.to, from.name());
    }
}

/// The one endpoint of shop/web is asked from the node's address.
fn is_foreign(rig: &Rig, from: &Netns, to: &[Vip]) {
    for ask in asks([from], to) {
        let (identity, source) = rig.seen(&ask);
        assert_eq!(
            source,
            rig.masqueraded(&identity, ask.to),
            "{} from {}",
            ask.to,
            from.name()
        );
    }
}

fn own(rig: &Rig, name: &str) -> [IpAddr; 2] {
    rig.addresses(name).try_into().expect("an address of each family")
}

/// Of outside clients, the only endpoint's node would see the address; they are answered because they are masqueraded.
fn the_client_and_the_node_are_foreign(rig: &Rig) {
    let node = rig.node();
    is_foreign(rig, &node.client, &vips(WEB));
    is_foreign(rig, &node.netns, &vips(WEB));
}

fn cluster_cidr() {
    // Two of each family: kube-proxy looks at the first. Ends within a byte, to be sure of the mask.
    let cidrs = networks(["10.128.1.8/29", "fd00:128:1::10/125", "172.30.0.0/16", "fd00:30::/32"]);
    let mut rig = rig(LocalTraffic::ClusterCidr(cidrs), 1);
    let second = rig.lab.add_pod(1);
    is_local(&rig, &rig.node().pod, own(&rig, "pod-1"), &vips(WEB));
    the_client_and_the_node_are_foreign(&rig);
    is_foreign(&rig, &second.netns, &vips(WEB));
    // What is local decides about the policy Local too: local pods reach all endpoints, and are not masqueraded.
    let members = rig.members(["backend-1"]);
    rig.program(web_on_nodes().external_policy("Local").object(), &members);
    is_local(&rig, &rig.node().pod, own(&rig, "pod-1"), &rig.on_node(30080));
    unanswered(&asks([&second.netns], &rig.on_node(30080)));
}

fn a_cluster_cidr_of_one_family_leaves_the_other_alone() {
    let rig = rig(LocalTraffic::ClusterCidr(networks(["10.128.0.0/16"])), 1);
    let [v4, v6] = WEB.map(|at| vips([at]));
    let node = rig.node();
    is_local(&rig, &node.pod, own(&rig, "pod-1"), &v4);
    is_foreign(&rig, &node.client, &v4);
    // Without a network to tell by, nobody is masqueraded: a client's question arrives, and has no way back.
    is_local(&rig, &node.pod, own(&rig, "pod-1"), &v6);
    unanswered(&asks([&node.client], &v6));
}

fn node_cidr() {
    let mut rig = rig(LocalTraffic::NodeCidr, 2);
    rig.proxies[1]
        .dataplane
        .set_dormant(true)
        .expect("a node that leaves Services alone");
    is_local(&rig, &rig.node().pod, own(&rig, "pod-1"), &vips(WEB));
    the_client_and_the_node_are_foreign(&rig);
    // A pod of the other node that asks through us.
    let stranger = rig.lab.node(2);
    let [client4, client6] = own(&rig, "node-1");
    let script = format!("route add 10.96.0.0/12 via {client4}\nroute add fd00:10:96::/112 via {client6}");
    stranger.netns.batch(&script);
    is_foreign(&rig, &stranger.pod, &vips(WEB));
}

fn node_cidr_that_changes_or_comes_late() {
    let mut rig = rig(LocalTraffic::NodeCidr, 1);
    let [v4, v6] = own(&rig, "node-1").map(|address| address.to_string());
    let node = |networks: &[&str]| {
        let node = node_with("node-1").address(&v4).address(&v6);
        match networks {
            [] => node.object(),
            networks => node.pod_cidrs(networks).object(),
        }
    };
    is_local(&rig, &rig.node().pod, own(&rig, "pod-1"), &vips(WEB));
    rig.apply(node(&["10.128.77.0/24", "fd00:128:77::/64"]));
    rig.commit();
    is_foreign(&rig, &rig.node().pod, &vips(WEB));
    rig.apply(node(&["10.128.1.0/24", "fd00:128:1::/64"]));
    rig.commit();
    is_local(&rig, &rig.node().pod, own(&rig, "pod-1"), &vips(WEB));
    the_client_and_the_node_are_foreign(&rig);
}

fn bridge_interface() {
    let rig = rig(LocalTraffic::Bridge("pod0".to_owned()), 1);
    // Its address is that of a pod, its device is not.
    let second = rig.lab.add_pod(1);
    is_local(&rig, &rig.node().pod, own(&rig, "pod-1"), &vips(WEB));
    is_foreign(&rig, &second.netns, &vips(WEB));
    the_client_and_the_node_are_foreign(&rig);
}

fn interface_name_prefix() {
    let mut rig = rig(LocalTraffic::InterfacePrefix("pod".to_owned()), 1);
    let second = rig.lab.add_pod(1);
    is_local(&rig, &rig.node().pod, own(&rig, "pod-1"), &vips(WEB));
    let own2 = [IpAddr::from(second.address4), second.address6.into()];
    is_local(&rig, &second.netns, own2, &vips(WEB));
    the_client_and_the_node_are_foreign(&rig);
    let members = rig.members(["backend-1", "backend-2"]);
    rig.program(web_on_nodes().external_policy("Local").object(), &members);
    answered_by(&asks([&second.netns], &rig.on_node(30080)), ["backend-1", "backend-2"]);
    unanswered(&asks([&rig.node().client], &rig.on_node(30080)));
}

fn an_interface_that_comes_later() {
    // kube-proxy once wrote the number of the device instead of its name, and failed where there was none.
    let rig = rig(LocalTraffic::Bridge("pod1".to_owned()), 1);
    is_foreign(&rig, &rig.node().pod, &vips(WEB));
    let second = rig.lab.add_pod(1);
    let own = [IpAddr::from(second.address4), second.address6.into()];
    is_local(&rig, &second.netns, own, &vips(WEB));
}

fn none() {
    let mut rig = rig(LocalTraffic::None, 1);
    let client = rig.node().client.clone();
    is_local(&rig, &rig.node().pod, own(&rig, "pod-1"), &vips(WEB));
    unanswered(&asks([&client], &vips(WEB)));
    // A way in from outside is masqueraded for everybody with the policy Cluster.
    let members = rig.members(["backend-1"]);
    rig.program(web_on_nodes().object(), &members);
    is_foreign(&rig, &rig.node().pod, &rig.on_node(30080));
    is_foreign(&rig, &client, &rig.on_node(30080));
    // And with the policy Local a pod is like anybody from outside.
    let members = rig.members(["backend-1", "pod-1"]);
    rig.program(web_on_nodes().external_policy("Local").object(), &members);
    answered_by(&asks([&client], &rig.on_node(30080)), ["pod-1"]);
    answered_by(&asks([&rig.node().pod], &rig.on_node(30080)), ["pod-1"]);
}
