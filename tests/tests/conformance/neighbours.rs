//! What others have on the node, and what strangers do to what is ours.

use nftfleet_domain::inventory::Version;
use nftfleet_domain::readiness::check::{kernel, nft};
use nftfleet_domain::service::Protocol;
use nftfleet_tests::kube_proxy::{self, Backend, Family};
use nftfleet_tests::manifests;

use crate::ask::{answered_by, asks, vip, vips};
use crate::case::cases;
use crate::objects::{PORT, WEB, web, web_on_nodes};
use crate::rig::Rig;

cases! {
    OtherModes: what_others_have_is_not_touched, ["networking.go:548", "iptables TestCleanupLeftovers"];
    OtherModes: our_table_answers_before_the_rules_of_others, [];
    SelfHeal: what_a_stranger_did_is_found_and_mended, [];
    SelfHeal: a_table_that_is_gone_is_made_again, ["networking.go:548"];
    HostPort: host_ports_of_others_work_beside_us, ["hostport.go:63"];
    ConntrackSysctls: the_nodes_settings_stay_as_they_are, [];
    Requirements: kernels_and_nft_that_are_too_old_are_named, [];
}

/// All that is not ours, without counters and dates.
fn others(rig: &mut Rig) -> Vec<String> {
    let node = rig.node().netns.clone();
    let tables = rig.proxy().nft(&["list", "tables"]);
    let mut all = Vec::new();
    // iptables-nft's tables are read by their own tool below; nft warns at them.
    for table in tables
        .lines()
        .filter(|table| table.ends_with(" site") || table.ends_with(" kube-proxy"))
    {
        let words: Vec<&str> = ["-s", "list"].into_iter().chain(table.split_whitespace()).collect();
        all.push(rig.proxy().nft(&words));
    }
    for family in Family::BOTH {
        for backend in [Backend::Legacy, Backend::Nft] {
            let saved = kube_proxy::save(&node, backend, family);
            let lines = saved.lines().filter(|line| !line.starts_with('#'));
            all.extend(lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned()));
        }
    }
    all
}

/// Rules of kube-proxy in all its modes, of kubelet, of a container runtime and of the site.
fn install_others(rig: &mut Rig) {
    let node = rig.node().netns.clone();
    for backend in [Backend::Legacy, Backend::Nft] {
        kube_proxy::install_foreign(&node, backend, &Family::BOTH);
        kube_proxy::install_kubelet(&node, backend, &Family::BOTH);
        kube_proxy::install(&node, backend, &manifests::all(), &Family::BOTH);
    }
    rig.proxy().nft_load(
        "table inet site {
            set admins { type ipv4_addr; elements = { 192.0.2.7 }; }
            chain input {
                type filter hook input priority 5; policy accept;
                tcp dport 9999 ip saddr != @admins counter drop
            }
        }
        table ip kube-proxy {
            map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
            chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
            chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
        }",
    );
}

fn what_others_have_is_not_touched() {
    let mut rig = Rig::new();
    install_others(&mut rig);
    let before = others(&mut rig);
    assert!(before.len() > 100, "{before:?}");
    let members = rig.members(["backend-1", "pod-1"]);
    rig.program(web_on_nodes().affinity(60).object(), &members);
    rig.program(web_on_nodes().external_policy("Local").object(), &members);
    rig.restart();
    rig.proxy().nft_load("delete table inet nftfleet");
    assert!(rig.proxy().differences().len() == 1);
    rig.proxy().load();
    rig.endpoints("web", &[]);
    assert_eq!(others(&mut rig), before);
}

fn our_table_answers_before_the_rules_of_others() {
    let mut rig = Rig::new();
    // The same Service, kube-proxy's way to backend-1, ours to backend-2.
    let members = rig.members(["backend-1"]);
    let mut objects = vec![web().object()];
    objects.extend(crate::objects::slices("web", &members));
    let node = rig.node().netns.clone();
    for backend in [Backend::Legacy, Backend::Nft] {
        kube_proxy::install(&node, backend, &objects, &Family::BOTH);
    }
    rig.proxy().dataplane.set_dormant(true).expect("a table that can sleep");
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
    let members = rig.members(["backend-2"]);
    rig.program(web().object(), &members);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
    rig.proxy()
        .dataplane
        .set_dormant(false)
        .expect("a table that can be woken");
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-2"]);
    // Asleep, ours leaves it to the others, and is kept up to date.
    rig.proxy().dataplane.set_dormant(true).expect("a table that can sleep");
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
    let members = rig.members(["backend-3"]);
    rig.endpoints("web", &members);
    rig.proxy()
        .dataplane
        .set_dormant(false)
        .expect("a table that can be woken");
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-3"]);
}

fn what_a_stranger_did_is_found_and_mended() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1", "pod-1"]);
    rig.program(web_on_nodes().external_policy("Local").object(), &members);
    for script in [
        "flush map inet nftfleet endpoints4",
        "flush set inet nftfleet cluster-ips6",
        "flush set inet nftfleet to-local4",
        "flush set inet nftfleet nodeport-ips4",
        "flush set inet nftfleet service-cidrs4",
        "flush set inet nftfleet hairpin4",
        "add element inet nftfleet service-cidrs4 { 10.200.0.0/16 }",
        "add element inet nftfleet to-all4 { 192.168.50.1 . tcp . 22 }",
        "flush chain inet nftfleet services4",
        "insert rule inet nftfleet prerouting ip saddr 172.30.1.2 accept",
        "add chain inet nftfleet site",
        "flush table inet nftfleet",
    ] {
        rig.proxy().nft_load(script);
        assert_ne!(rig.proxy().differences(), Vec::<String>::new(), "{script}");
        assert!(rig.proxy().load() > 0, "{script}");
        assert_eq!(rig.proxy().differences(), Vec::<String>::new(), "{script}");
        let client = &rig.node().client;
        answered_by(&asks([client], &vips(WEB)), ["backend-1", "pod-1"]);
        answered_by(&asks([client], &rig.on_node(30080)), ["pod-1"]);
    }
}

fn a_table_that_is_gone_is_made_again() {
    let mut rig = Rig::new();
    let members = rig.members(["backend-1", "pod-1"]);
    rig.program(web_on_nodes().affinity(60).external_policy("Local").object(), &members);
    rig.proxy().nft_load("flush ruleset");
    assert_ne!(rig.proxy().differences(), Vec::<String>::new());
    assert!(rig.proxy().load() > 0);
    let client = &rig.node().client;
    answered_by(&asks([client], &rig.on_node(30080)), ["pod-1"]);
    for ask in asks([client], &vips(WEB)) {
        ask.answer();
    }
}

fn host_ports_of_others_work_beside_us() {
    let mut rig = Rig::new();
    // As a CNI's port mapper writes them.
    rig.proxy().nft_load(&format!(
        "table inet cni_hostport {{
            chain hostports {{
                ip daddr 192.168.50.1 tcp dport 8088 dnat ip to 10.128.1.10:{PORT}
                ip6 daddr fd00:50::1 tcp dport 8088 dnat ip6 to [fd00:128:1::10]:{PORT}
            }}
            chain prerouting {{ type nat hook prerouting priority dstnat; fib daddr type local jump hostports; }}
            chain output {{ type nat hook output priority -100; fib daddr type local jump hostports; }}
        }}"
    ));
    let host_ports = ["192.168.50.1:8088", "[fd00:50::1]:8088"].map(|at| vip(at, Protocol::Tcp));
    let members = rig.members(["backend-1"]);
    rig.program(web_on_nodes().object(), &members);
    let node = rig.node().clone();
    answered_by(&asks([&node.client, &node.netns], &host_ports), ["pod-1"]);
    answered_by(&asks(rig.everybody(), &rig.on_node(30080)), ["backend-1"]);
}

/// What kube-proxy sets and we don't: a node that comes from kube-proxy has them, and they outlive it.
fn the_nodes_settings_stay_as_they_are() {
    const SETTINGS: [&str; 5] = [
        "nf_conntrack_tcp_timeout_established",
        "nf_conntrack_tcp_timeout_close_wait",
        "nf_conntrack_tcp_be_liberal",
        "nf_conntrack_udp_timeout",
        "nf_conntrack_udp_timeout_stream",
    ];
    let mut rig = Rig::new();
    let node = rig.node().netns.clone();
    for (setting, value) in SETTINGS.iter().zip(["86401", "3601", "1", "61", "181"]) {
        node.sysctl(&format!("netfilter/{setting}"), value);
    }
    let members = rig.members(["backend-1"]);
    rig.program(web_on_nodes().affinity(60).object(), &members);
    rig.restart();
    let read = |setting: &&str| node.run(|| std::fs::read_to_string(format!("/proc/sys/net/netfilter/{setting}")));
    let found: Vec<String> = SETTINGS
        .iter()
        .map(|setting| read(setting).expect("a setting").trim().to_owned())
        .collect();
    assert_eq!(found, ["86401", "3601", "1", "61", "181"]);
}

fn kernels_and_nft_that_are_too_old_are_named() {
    // The check itself is tested where it is; here, that it asks for no less than kube-proxy does.
    assert!(kernel::OLDEST_KERNEL >= Version::new(5, 13, 0));
    assert!(nft::OLDEST_NFT >= Version::new(1, 0, 1));
}
