//! kube-proxy's IPVS mode, as it finds itself on a node: `kube-ipvs0` with every Service's address, virtual services, ipsets,
//! and the chains that look into those. Shape: Kubernetes 1.30 to 1.36, pkg/proxy/ipvs/{proxier,ipset}.go.
//!
//! Not written: the same as in its iptables mode.

use std::fmt::Write as _;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use serde_json::Value;

use super::ports::ServicePort;
use super::{Backend, Family, restore};
use crate::netns::Netns;

const DEVICE: &str = "kube-ipvs0";

/// What kube-proxy switches on at its start: without the first two connections don't survive a move.
const SYSCTLS: [&str; 3] = [
    "ipv4/vs/conntrack",
    "ipv4/vs/expire_nodest_conn",
    "ipv4/vs/expire_quiescent_template",
];

/// Name (behind `KUBE-` or `KUBE-6-`), type, and the comment of the rules that look into it.
const SETS: [(&str, &str, &str); 17] = [
    (
        "LOOP-BACK",
        "hash:ip,port,ip",
        "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
    ),
    (
        "CLUSTER-IP",
        "hash:ip,port",
        "Kubernetes service cluster ip + port for masquerade purpose",
    ),
    ("EXTERNAL-IP", "hash:ip,port", ""),
    ("EXTERNAL-IP-LOCAL", "hash:ip,port", ""),
    ("LOAD-BALANCER", "hash:ip,port", "Kubernetes service lb portal"),
    ("LOAD-BALANCER-LOCAL", "hash:ip,port", ""),
    ("LOAD-BALANCER-FW", "hash:ip,port", ""),
    ("LOAD-BALANCER-SOURCE-IP", "hash:ip,port,ip", ""),
    ("LOAD-BALANCER-SOURCE-CIDR", "hash:ip,port,net", ""),
    (
        "NODE-PORT-TCP",
        "bitmap:port",
        "Kubernetes nodeport TCP port for masquerade purpose",
    ),
    ("NODE-PORT-LOCAL-TCP", "bitmap:port", ""),
    (
        "NODE-PORT-UDP",
        "bitmap:port",
        "Kubernetes nodeport UDP port for masquerade purpose",
    ),
    ("NODE-PORT-LOCAL-UDP", "bitmap:port", ""),
    ("NODE-PORT-SCTP-HASH", "hash:ip,port", ""),
    ("NODE-PORT-LOCAL-SCTP-HASH", "hash:ip,port", ""),
    (
        "HEALTH-CHECK-NODE-PORT",
        "bitmap:port",
        "Kubernetes health check node port",
    ),
    ("IPVS-IPS", "hash:ip", ""),
];

/// The name of a set; kube-proxy cuts it off where the kernel does not take more.
fn set(family: Family, name: &str) -> String {
    match family {
        Family::V4 => format!("KUBE-{name}"),
        Family::V6 => format!("KUBE-6-{name}").chars().take(31).collect(),
    }
}

fn comment(name: &str) -> &'static str {
    let known = SETS.iter().find(|(known, ..)| *known == name);
    known.expect("a set of kube-proxy's").2
}

/// Writes all of it for these Services and `EndpointSlices` (other objects are ignored), on a node that has none of it. Panics
/// with what a program said when it refuses, as on a kernel without IPVS.
pub fn install_ipvs(netns: &Netns, backend: Backend, objects: &[Value], families: &[Family]) {
    for parameter in SYSCTLS {
        netns.sysctl(parameter, "1");
    }
    let node_addresses = netns.run(node_addresses);
    let mut addresses = format!("link add {DEVICE} type dummy\n");
    let (mut services, mut sets) = (String::new(), String::new());
    for family in families {
        let ports = ServicePort::all(objects, *family);
        for port in &ports {
            // One address may have several ports.
            let address = format!("addr replace {}/{} dev {DEVICE}\n", port.cluster_ip, family.full());
            if !addresses.contains(&address) {
                addresses += &address;
            }
            virtual_services(&mut services, *family, port, &node_addresses);
        }
        fill_sets(&mut sets, *family, &ports);
    }
    netns.batch(&addresses);
    netns.pipe("ipvsadm", &["--restore"], &services);
    netns.pipe("ipset", &["-exist", "restore"], &sets);
    for family in families {
        restore(netns, backend, *family, &rules(*family));
    }
}

/// Whether kube-proxy's device is there.
pub fn has_ipvs_link(netns: &Netns) -> bool {
    netns.pipe("ip", &["-brief", "link"], "").contains(DEVICE)
}

/// What `ipvsadm` prints: every virtual service and destination, sorted.
pub fn virtual_service_list(netns: &Netns) -> Vec<String> {
    let text = netns.pipe("ipvsadm", &["--save", "--numeric"], "");
    let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

/// The node's addresses on which kube-proxy opens node ports: all but loopback and link-local ones and its own.
fn node_addresses() -> Vec<IpAddr> {
    let found = getifaddrs().expect("the kernel lists addresses").filter_map(|found| {
        let address = found.address.filter(|_| found.interface_name != DEVICE)?;
        match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
            (None, Some(v6)) => Some(IpAddr::V6(v6.ip())).filter(|_| !v6.ip().is_unicast_link_local()),
            (None, None) => None,
        }
    });
    found.filter(|address| !address.is_loopback()).collect()
}

fn virtual_services(text: &mut String, family: Family, port: &ServicePort, node_addresses: &[IpAddr]) {
    let flag = match port.protocol.as_str() {
        "tcp" => "-t",
        "udp" => "-u",
        other => panic!("IPVS in the lab does not speak {other}"),
    };
    let mut frontends = vec![at(&port.cluster_ip, port.port)];
    if let Some(node_port) = port.node_port {
        let own = node_addresses.iter().map(ToString::to_string);
        frontends.extend(
            own.filter(|a| family.contains(a))
                .map(|address| at(&address, node_port)),
        );
    }
    for frontend in frontends {
        put(text, format!("-A {flag} {frontend} -s rr"));
        for endpoint in &port.endpoints {
            put(text, format!("-a {flag} {frontend} -r {endpoint} -m -w 1"));
        }
    }
}

fn at(address: &str, port: u64) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

fn fill_sets(text: &mut String, family: Family, ports: &[ServicePort]) {
    let inet = match family {
        Family::V4 => "inet",
        Family::V6 => "inet6",
    };
    for (name, kind, _) in SETS {
        let options = match kind {
            "bitmap:port" => "range 0-65535".to_owned(),
            _ => format!("family {inet} hashsize 1024 maxelem 65536"),
        };
        put(text, format!("create {} {kind} {options}", set(family, name)));
    }
    let mut add = |name: &str, entry: String| put(text, format!("add -exist {} {entry}", set(family, name)));
    for port in ports {
        let ServicePort {
            protocol, cluster_ip, ..
        } = port;
        add("CLUSTER-IP", format!("{cluster_ip},{protocol}:{}", port.port));
        add("IPVS-IPS", cluster_ip.clone());
        if let Some(node_port) = port.node_port {
            add(&format!("NODE-PORT-{}", protocol.to_uppercase()), node_port.to_string());
        }
        for endpoint in &port.endpoints {
            let address = &endpoint.address;
            add("LOOP-BACK", format!("{address},{protocol}:{},{address}", endpoint.port));
        }
    }
}

fn rules(family: Family) -> String {
    let name = |name: &str| set(family, name);
    let look = |set: &str, fields: &str| {
        let comment = comment(set);
        format!(
            "-m comment --comment \"{comment}\" -m set --match-set {} {fields}",
            name(set)
        )
    };
    let loopback = match family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1/128",
    };
    let node_port = |protocol: &str| {
        let set = format!("NODE-PORT-{}", protocol.to_uppercase());
        format!(
            "-A KUBE-NODE-PORT -p {protocol} {} -j KUBE-MARK-MASQ",
            look(&set, "dst")
        )
    };
    let may_pass = |set: &str, fields: &str| {
        format!(
            "-A KUBE-IPVS-FILTER -m set --match-set {} {fields} -j RETURN",
            name(set)
        )
    };
    let jump = |from: &str, comment: &str, to: &str| format!("-I {from} -m comment --comment \"{comment}\" -j {to}");
    let nat = [
        format!("-A KUBE-SERVICES -s {loopback} -j RETURN"),
        format!(
            "-A KUBE-SERVICES {} ! -s {} -j KUBE-MARK-MASQ",
            look("CLUSTER-IP", "dst,dst"),
            family.cluster_cidr()
        ),
        "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT".to_owned(),
        format!(
            "-A KUBE-SERVICES -m set --match-set {} dst,dst -j ACCEPT",
            name("CLUSTER-IP")
        ),
        node_port("tcp"),
        node_port("udp"),
        "-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ".to_owned(),
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000".to_owned(),
        format!("-A KUBE-POSTROUTING {} -j MASQUERADE", look("LOOP-BACK", "dst,dst,src")),
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN".to_owned(),
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000".to_owned(),
        "-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE \
         --random-fully"
            .to_owned(),
        jump("OUTPUT", "kubernetes service portals", "KUBE-SERVICES"),
        jump("PREROUTING", "kubernetes service portals", "KUBE-SERVICES"),
        jump("POSTROUTING", "kubernetes postrouting rules", "KUBE-POSTROUTING"),
    ];
    let filter = [
        "-A KUBE-SOURCE-RANGES-FIREWALL -j DROP".to_owned(),
        "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT"
            .to_owned(),
        "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate \
         RELATED,ESTABLISHED -j ACCEPT"
            .to_owned(),
        format!("-A KUBE-NODE-PORT {} -j ACCEPT", look("HEALTH-CHECK-NODE-PORT", "dst")),
        may_pass("LOAD-BALANCER", "dst,dst"),
        may_pass("CLUSTER-IP", "dst,dst"),
        may_pass("EXTERNAL-IP", "dst,dst"),
        may_pass("EXTERNAL-IP-LOCAL", "dst,dst"),
        may_pass("HEALTH-CHECK-NODE-PORT", "dst"),
        format!(
            "-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set {} dst -j REJECT",
            name("IPVS-IPS")
        ),
        jump("FORWARD", "kubernetes forwarding rules", "KUBE-FORWARD"),
        jump("INPUT", "kubernetes health check rules", "KUBE-NODE-PORT"),
        jump("INPUT", "kube-proxy firewall rules", "KUBE-PROXY-FIREWALL"),
        jump("FORWARD", "kube-proxy firewall rules", "KUBE-PROXY-FIREWALL"),
        jump("INPUT", "kubernetes ipvs access filter", "KUBE-IPVS-FILTER"),
        jump("OUTPUT", "kubernetes ipvs access filter", "KUBE-IPVS-OUT-FILTER"),
    ];
    let table = |name: &str, chains: &[&str], rules: &[String]| {
        let chains: Vec<String> = chains.iter().map(|chain| format!(":KUBE-{chain} - [0:0]")).collect();
        format!("*{name}\n{}\n{}\nCOMMIT\n", chains.join("\n"), rules.join("\n"))
    };
    table(
        "nat",
        &["SERVICES", "POSTROUTING", "NODE-PORT", "LOAD-BALANCER", "MARK-MASQ"],
        &nat,
    ) + &table(
        "filter",
        &[
            "FORWARD",
            "NODE-PORT",
            "PROXY-FIREWALL",
            "SOURCE-RANGES-FIREWALL",
            "IPVS-FILTER",
            "IPVS-OUT-FILTER",
        ],
        &filter,
    )
}

fn put(text: &mut String, line: impl std::fmt::Display) {
    writeln!(text, "{line}").expect("a String takes every line");
}
