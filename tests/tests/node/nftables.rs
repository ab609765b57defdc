//! kube-proxy's nftables tables go, and everything else of nft's stays as it was, byte for byte.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nftfleet_agent::dataplane::Netlink;
use nftfleet_agent::switchover::cleanup::nftables::remove_tables;
use nftfleet_tests::kube_proxy::{self, Backend, Family, install_nftables};
use nftfleet_tests::manifests;
use nftfleet_tests::netns::{Netns, Prefix};
use nftfleet_tests::wait;

/// Tables like those that firewalld 2.x, Docker 29, the AWS VPC CNI 1.23 and an operator make, some with names of kube-proxy's in
/// places where they are somebody else's.
const FOREIGN: &str = r#"
table inet firewalld {
	ct helper helper-ftp { type "ftp" protocol tcp; l3proto inet; }
	chain filter_PREROUTING { type filter hook prerouting priority 10; policy accept; icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept; meta nfproto ipv6 fib saddr . mark . iif oif missing drop; }
	chain filter_FORWARD { type filter hook forward priority 10; policy accept; ct state { established, related } accept; ct status dnat accept; iifname "lo" accept; ct state invalid drop; reject with icmpx admin-prohibited; }
	chain nat_POSTROUTING { type nat hook postrouting priority 110; policy accept; }
}
table ip docker-bridges {
	chain filter-FORWARD { type filter hook forward priority 0; policy accept; iifname "docker0" counter accept comment "goto kube-proxy services; delete table"; }
	chain nat-prerouting { type nat hook prerouting priority -100; policy accept; fib daddr type local tcp dport 8080 counter dnat to 172.17.0.2:80; }
	chain nat-postrouting { type nat hook postrouting priority 100; policy accept; oifname != "docker0" ip saddr 172.17.0.0/16 masquerade; }
}
table ip aws-cni {
	chain nat-prerouting { type nat hook prerouting priority -90; policy accept; }
	chain snat-mark { type filter hook output priority -150; policy accept; ip daddr != 10.0.0.0/16 meta mark set meta mark | 0x80; }
}
table inet kube-proxy {
	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.1 . tcp . 443 : accept }; }
	chain nat-prerouting { type nat hook prerouting priority -100; policy accept; ip daddr . meta l4proto . th dport vmap @service-ips; }
}
table bridge kube-proxy {
	chain nat-prerouting { type filter hook prerouting priority 0; policy accept; }
}
table ip kube-proxy-site {
	set allowed { type ipv4_addr; flags interval; elements = { 192.0.2.0/24, 198.51.100.7 } comment "the site's own"; }
	chain filter-input { type filter hook input priority 0; policy accept; ip saddr @allowed accept; }
}
"#;

fn ruleset(node: &Netns) -> String {
    node.pipe("nft", &["list", "ruleset"], "")
}

fn remove(node: &Netns) -> Result<(), String> {
    node.run(|| remove_tables().map_err(|error| error.to_string()))
}

#[test]
fn only_kube_proxys_tables_go() {
    let node = Netns::create(&Prefix::unique(), "node");
    node.pipe("nft", &["-f", "-"], FOREIGN);
    kube_proxy::install_foreign(&node, Backend::Nft, &Family::BOTH);
    kube_proxy::install_kubelet(&node, Backend::Nft, &Family::BOTH);
    let before = ruleset(&node);
    for families in [&Family::BOTH[..], &[Family::V4], &[Family::V6], &[]] {
        install_nftables(&node, &manifests::all(), families);
        assert_eq!(ruleset(&node) == before, families.is_empty());
        remove(&node).unwrap();
        assert_eq!(ruleset(&node), before, "{families:?}");
    }
}

#[test]
fn base_chains_that_drop_what_is_forwarded_are_found() {
    let node = Netns::create(&Prefix::unique(), "node");
    let closed = || node.run(|| Netlink::open().unwrap().closed_forward_chains().unwrap());
    node.pipe("nft", &["-f", "-"], FOREIGN);
    kube_proxy::install_foreign(&node, Backend::Nft, &Family::BOTH);
    install_nftables(&node, &manifests::all(), &Family::BOTH);
    // iptables' own tools show what is iptables'.
    node.pipe("iptables-nft", &["-P", "FORWARD", "DROP"], "");
    assert_eq!(closed(), [] as [String; 0]);
    let drops = "add table inet site; add table ip6 filter6
        add chain inet site onward { type filter hook forward priority 5; policy drop; }
        add chain inet site inward { type filter hook input priority 5; policy drop; }
        add chain ip6 filter6 FORWARD { type filter hook forward priority 0; policy drop; }";
    node.pipe("nft", &["-f", "-"], drops);
    assert_eq!(closed(), ["inet site onward", "ip6 filter6 FORWARD"]);
}

#[test]
fn a_refused_removal_takes_nothing_and_says_so() {
    let node = Netns::create(&Prefix::unique(), "node");
    install_nftables(&node, &manifests::all(), &[Family::V4]);
    let before = ruleset(&node);
    // A table with an owner may not be deleted by anybody else while that one lives.
    let owner = node.run(|| {
        let mut command = Command::new("nft");
        command.arg("-i").stdin(Stdio::piped());
        command.stdout(Stdio::null()).spawn().unwrap()
    });
    let mut owner = Ended(owner);
    owner.say("add table ip6 kube-proxy { flags owner; }\n");
    wait::until_blocking("the owned table", Duration::from_secs(10), || {
        ruleset(&node).contains("ip6 kube-proxy").then_some(())
    });
    let error = remove(&node).unwrap_err();
    assert!(error.contains("Operation not permitted"), "{error}");
    assert!(ruleset(&node).contains(&before), "all or nothing");
    drop(owner);
    wait::until_blocking("the owner's end", Duration::from_secs(10), || {
        (!ruleset(&node).contains("ip6 kube-proxy")).then_some(())
    });
    remove(&node).unwrap();
    assert_eq!(ruleset(&node), "");
}

/// A table is live or not at any size, and told so without reading all of it.
#[test]
fn thousands_of_services_are_looked_at_in_no_time() {
    let node = Netns::create(&Prefix::unique(), "node");
    install_nftables(&node, &[], &[Family::V4]);
    let live = || node.run(|| Netlink::open().unwrap().kube_proxy_tables().unwrap()[0].live);
    assert!(!live());
    let mut elements = String::from("add element ip kube-proxy service-ips {");
    for n in 0..60_000u32 {
        let address = Ipv4Addr::from(0x0a64_0000 + n);
        write!(elements, "{address} . tcp . 80 : goto reject-chain,").unwrap();
    }
    node.pipe("nft", &["-f", "-"], &(elements + "}"));
    let started = Instant::now();
    assert!(live());
    let took = started.elapsed();
    println!("a look at a table with 60,000 elements took {took:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
}

/// A program that is ended with this value.
struct Ended(Child);

impl Ended {
    fn say(&mut self, line: &str) {
        let stdin = self.0.stdin.as_mut().expect("a piped standard input");
        stdin.write_all(line.as_bytes()).expect("a living program");
        stdin.flush().expect("a living program");
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
