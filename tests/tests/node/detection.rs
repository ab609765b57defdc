//! Which Service proxy is at work, told from what stands in a real kernel.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use nftfleet_domain::readiness::{ProxyMode, left_overs};
use nftfleet_tests::kube_proxy::{self, Backend, Family, install_nftables, remove_nftables};
use nftfleet_tests::manifests;
use nftfleet_tests::netns::{Netns, Prefix};
use nftfleet_tests::wait;

use crate::host::InNetns;

fn node() -> Netns {
    Netns::create(&Prefix::unique(), "node")
}

fn mode(node: &Netns) -> ProxyMode {
    ProxyMode::told_by(&InNetns(node).evidence())
}

fn remains(node: &Netns) -> Vec<String> {
    left_overs(&InNetns(node).evidence())
}

/// A kube-proxy that says its mode to one who asks, at its usual place.
fn saying(node: &Netns, word: &'static str) -> std::thread::JoinHandle<()> {
    // A process that another thread starts just now may hold a copy of the last one for a moment.
    let listener = wait::until_blocking("a free port", Duration::from_secs(10), || {
        node.run(|| TcpListener::bind("127.0.0.1:10249").ok())
    });
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("one who asks");
        let read = stream.read(&mut [0; 512]).expect("a request");
        assert!(read > 0);
        let length = word.len();
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{word}").expect("an open connection");
    })
}

#[test]
fn a_bare_node_and_one_with_others_rules_has_none() {
    let node = node();
    assert_eq!(mode(&node), ProxyMode::None);
    for backend in [Backend::Legacy, Backend::Nft] {
        kube_proxy::install_foreign(&node, backend, &Family::BOTH);
        kube_proxy::install_kubelet(&node, backend, &Family::BOTH);
    }
    assert_eq!(mode(&node), ProxyMode::None);
    assert_eq!(remains(&node), [] as [String; 0]);
}

#[test]
fn iptables_rules_are_told_by_backend_and_by_what_leads_to_them() {
    for (backend, alone) in [
        (Backend::Legacy, ProxyMode::IptablesLegacy),
        (Backend::Nft, ProxyMode::IptablesNft),
    ] {
        let node = node();
        kube_proxy::install(&node, backend, &manifests::all(), &[Family::V4]);
        assert_eq!(mode(&node), alone);
        let other = match backend {
            Backend::Legacy => Backend::Nft,
            Backend::Nft => Backend::Legacy,
        };
        kube_proxy::install(&node, other, &manifests::all(), &[Family::V6]);
        assert_eq!(mode(&node), ProxyMode::IptablesBoth);
        assert_eq!(remains(&node), [] as [String; 0]);

        // A clean-up that dies after its first step leaves chains that nothing leads to.
        let program = match other {
            Backend::Legacy => "ip6tables-legacy",
            Backend::Nft => "ip6tables-nft",
        };
        for chain in ["PREROUTING", "OUTPUT"] {
            node.pipe(program, &["-t", "nat", "-F", chain], "");
        }
        assert_eq!(mode(&node), alone);
        assert_eq!(remains(&node).len(), 1, "{:?}", remains(&node));
    }
}

#[test]
fn nftables_tables_are_told_live_from_left_over() {
    let node = node();
    install_nftables(&node, &manifests::all(), &Family::BOTH);
    assert_eq!(mode(&node), ProxyMode::KubeProxyNftables);
    assert_eq!(remains(&node), [] as [String; 0]);
    // One family will do: the cluster may have no other.
    remove_nftables(&node, &[Family::V6]);
    assert_eq!(mode(&node), ProxyMode::KubeProxyNftables);

    let damages = [
        "add table ip kube-proxy { flags dormant ; }",
        "delete chain ip kube-proxy nat-prerouting; delete chain ip kube-proxy nat-output",
        "flush map ip kube-proxy service-ips; flush map ip kube-proxy no-endpoint-services",
    ];
    for damage in damages {
        remove_nftables(&node, &Family::BOTH);
        install_nftables(&node, &manifests::all(), &[Family::V4]);
        node.pipe("nft", &["-f", "-"], damage);
        assert_eq!(mode(&node), ProxyMode::None, "{damage}");
        assert_eq!(remains(&node), ["the nftables tables ip kube-proxy"], "{damage}");
    }
    // A table of that name with nothing in it, and one of another family, which is none of kube-proxy's.
    remove_nftables(&node, &Family::BOTH);
    node.pipe(
        "nft",
        &["-f", "-"],
        "add table ip kube-proxy; add table inet kube-proxy",
    );
    let evidence = InNetns(&node).evidence();
    assert_eq!(evidence.kube_proxy_tables.known().unwrap(), &["ip kube-proxy"]);
    assert_eq!(ProxyMode::told_by(&evidence), ProxyMode::None);
}

#[test]
fn kube_proxys_own_word_decides_between_two() {
    let node = node();
    kube_proxy::install(&node, Backend::Nft, &manifests::all(), &[Family::V4]);
    install_nftables(&node, &manifests::all(), &[Family::V4]);
    assert!(matches!(mode(&node), ProxyMode::Ambiguous(_)), "{:?}", mode(&node));
    for (word, expected) in [
        ("iptables", ProxyMode::IptablesNft),
        ("nftables", ProxyMode::KubeProxyNftables),
    ] {
        let said = saying(&node, word);
        let evidence = InNetns(&node).evidence();
        said.join().unwrap();
        assert_eq!(ProxyMode::told_by(&evidence), expected);
        assert_eq!(left_overs(&evidence).len(), 1, "{:?}", left_overs(&evidence));
    }
    let said = saying(&node, "ipvs");
    let contradicted = mode(&node);
    said.join().unwrap();
    assert!(matches!(contradicted, ProxyMode::Unknown(_)), "{contradicted:?}");
}

#[test]
fn links_tell_of_others_and_of_left_overs() {
    let node = node();
    kube_proxy::install(&node, Backend::Legacy, &manifests::all(), &[Family::V4]);
    node.batch("link add kube-ipvs0 type bridge");
    assert_eq!(mode(&node), ProxyMode::IptablesLegacy);
    assert_eq!(remains(&node), ["the link kube-ipvs0"]);
    node.batch("link add cilium_host type veth peer name cilium_net");
    assert_eq!(mode(&node), ProxyMode::Other("Cilium".to_owned()));
    node.batch("link delete cilium_host");
    assert_eq!(mode(&node), ProxyMode::IptablesLegacy);
}
