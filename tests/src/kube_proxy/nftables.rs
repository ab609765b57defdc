//! kube-proxy's nftables mode: the tables `ip kube-proxy` and `ip6 kube-proxy` in the shape of Kubernetes 1.36.2
//! (pkg/proxy/nftables/proxier.go).
//!
//! Like kube-proxy, each sync reads which elements and chains are there and writes the difference, in one transaction
//! of the real `nft`; the chains of Services that are gone are emptied in it, and deleted in a second one, which may fail
//! (kernels before 6.2 hold on to them for a while) and is tried again by the next sync.
//!
//! `NodePort`s listen on every global address of the namespace. Every endpoint counts as local in `hairpin-connections`: an
//! endpoint that reaches itself is local anyhow. Not written: what [`super`] does not write either.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use data_encoding::BASE32;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::Family;
use super::ports::ServicePort;
use crate::netns::Netns;

/// Sets and maps: name, key and data, comment. `ADDRESS` stands for the family's type of addresses.
const SETS: [(&str, &str, &str, &str); 8] = [
    ("set", "cluster-ips", "ADDRESS", "Active ClusterIPs"),
    ("set", "nodeport-ips", "ADDRESS", "IPs that accept NodePort traffic"),
    (
        "set",
        "hairpin-connections",
        "ADDRESS . ADDRESS . inet_proto . inet_service",
        "Hairpin connections, where an endpoint reaches itself through a Service",
    ),
    (
        "map",
        "no-endpoint-services",
        "ADDRESS . inet_proto . inet_service : verdict",
        "vmap to drop or reject packets to services with no endpoints",
    ),
    (
        "map",
        "no-endpoint-nodeports",
        "inet_proto . inet_service : verdict",
        "vmap to drop or reject packets to service nodeports with no endpoints",
    ),
    (
        "map",
        "firewall-ips",
        "ADDRESS . inet_proto . inet_service : verdict",
        "destinations that are subject to LoadBalancerSourceRanges",
    ),
    (
        "map",
        "service-ips",
        "ADDRESS . inet_proto . inet_service : verdict",
        "ClusterIP, ExternalIP and LoadBalancer IP traffic",
    ),
    (
        "map",
        "service-nodeports",
        "inet_proto . inet_service : verdict",
        "NodePort traffic",
    ),
];

/// The chains that do not depend on Services: name, hook, rules. `IP` stands for the family, `CLUSTER_CIDR` for the pods'
/// network.
const CHAINS: [(&str, &str, &[&str]); 16] = [
    ("mark-for-masquerade", "", &["meta mark set meta mark | 0x4000"]),
    ("reject-chain", "", &["reject"]),
    (
        "firewall-check",
        "",
        &["IP daddr . meta l4proto . th dport vmap @firewall-ips"],
    ),
    (
        "service-endpoints-check",
        "",
        &["IP daddr . meta l4proto . th dport vmap @no-endpoint-services"],
    ),
    (
        "nodeport-endpoints-check",
        "",
        &["IP daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports"],
    ),
    (
        "cluster-ips-check",
        "",
        &["IP daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\""],
    ),
    (
        "services",
        "",
        &[
            "IP daddr @cluster-ips IP saddr != CLUSTER_CIDR meta mark set meta mark | 0x4000 comment \"masquerade \
             clusterIP traffic from outside cluster\"",
            "IP daddr . meta l4proto . th dport vmap @service-ips",
            "IP daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports",
        ],
    ),
    (
        "masquerading",
        "",
        &[
            "meta mark & 0x4000 != 0 meta mark set meta mark ^ 0x4000 masquerade fully-random",
            "ct status dnat IP saddr . IP daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random",
        ],
    ),
    (
        "filter-prerouting-pre-dnat",
        "type filter hook prerouting priority -110",
        &["ct state new jump firewall-check"],
    ),
    (
        "filter-output-pre-dnat",
        "type filter hook output priority -110",
        &["ct state new jump firewall-check"],
    ),
    (
        "filter-input",
        "type filter hook input priority 0",
        &[
            "ct state new jump nodeport-endpoints-check",
            "ct state new jump service-endpoints-check",
        ],
    ),
    (
        "filter-forward",
        "type filter hook forward priority 0",
        &[
            "ct state new jump service-endpoints-check",
            "ct state new jump cluster-ips-check",
        ],
    ),
    (
        "filter-output",
        "type filter hook output priority 0",
        &[
            "ct state new jump service-endpoints-check",
            "ct state new jump cluster-ips-check",
        ],
    ),
    (
        "nat-prerouting",
        "type nat hook prerouting priority -100",
        &["jump services"],
    ),
    ("nat-output", "type nat hook output priority -100", &["jump services"]),
    (
        "nat-postrouting",
        "type nat hook postrouting priority 100",
        &["jump masquerading"],
    ),
];

/// Writes kube-proxy's tables for these Services and `EndpointSlices` (other objects are ignored), or brings them up to date
/// if they are there. Panics with what `nft` said when it refuses.
pub fn install_nftables(netns: &Netns, objects: &[Value], families: &[Family]) {
    for family in families {
        let wanted = Wanted::new(&ServicePort::all(objects, *family), &node_addresses(netns, *family));
        let there = There::read(netns, *family);
        let (text, stale) = transaction(*family, &wanted, &there);
        netns.pipe("nft", &["-f", "-"], &text);
        if !stale.is_empty() {
            // A failure is left to the next sync.
            let _ = netns
                .command("nft")
                .arg(stale)
                .stderr(std::process::Stdio::null())
                .status();
        }
    }
}

/// Deletes kube-proxy's tables, as `kube-proxy --cleanup` does. They need not be there.
pub fn remove_nftables(netns: &Netns, families: &[Family]) {
    for family in families {
        let ip = ip(*family);
        // nft 1.0.6 has no `destroy`.
        netns.pipe(
            "nft",
            &["-f", "-"],
            &format!("add table {ip} kube-proxy\ndelete table {ip} kube-proxy\n"),
        );
    }
}

/// The table with everything in it that does not depend on Services, as input of `nft`. What is there already stays, and
/// rules are written anew.
pub fn base(family: Family) -> String {
    let ip = ip(family);
    let address = match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    let mut text = String::new();
    put(
        &mut text,
        format_args!("add table {ip} kube-proxy {{ comment \"rules for kube-proxy\" ; }}"),
    );
    for (kind, name, types, comment) in SETS {
        let types = types.replace("ADDRESS", address);
        put(
            &mut text,
            format_args!("add {kind} {ip} kube-proxy {name} {{ type {types} ; comment \"{comment}\" ; }}"),
        );
    }
    for (name, hook, _) in CHAINS {
        let hook = if hook.is_empty() {
            String::new()
        } else {
            format!(" {{ {hook} ; }}")
        };
        put(&mut text, format_args!("add chain {ip} kube-proxy {name}{hook}"));
        put(&mut text, format_args!("flush chain {ip} kube-proxy {name}"));
    }
    for (name, _, rules) in CHAINS {
        for rule in rules {
            let rule = rule
                .replace("IP ", &format!("{ip} "))
                .replace("CLUSTER_CIDR", family.cluster_cidr());
            put(&mut text, format_args!("add rule {ip} kube-proxy {name} {rule}"));
        }
    }
    text
}

/// Eight letters that stand for a whole name, which may have been cut.
pub fn hash(name: &str) -> String {
    BASE32.encode(&Sha256::digest(name))[..8].to_owned()
}

const fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// What is to be in the table: the elements of each set or map, with the verdict where it has one, and the rules of the
/// Services' chains.
#[derive(Debug, Default)]
struct Wanted {
    elements: BTreeMap<&'static str, BTreeMap<String, String>>,
    chains: BTreeMap<String, Vec<String>>,
}

impl Wanted {
    fn new(ports: &[ServicePort], node_addresses: &[String]) -> Self {
        let mut wanted = Self::default();
        for address in node_addresses {
            wanted.element("nodeport-ips", address.clone(), "");
        }
        for port in ports {
            wanted.service(port);
        }
        wanted
    }

    fn element(&mut self, set: &'static str, key: String, verdict: &str) {
        self.elements.entry(set).or_default().insert(key, verdict.to_owned());
    }

    fn service(&mut self, service: &ServicePort) {
        let ServicePort {
            name,
            protocol,
            cluster_ip,
            port,
            node_port,
            endpoints,
        } = service;
        let vip = format!("{cluster_ip} . {protocol} . {port}");
        self.element("cluster-ips", cluster_ip.clone(), "");
        if endpoints.is_empty() {
            self.element("no-endpoint-services", vip, "goto reject-chain");
            if let Some(node_port) = node_port {
                self.element(
                    "no-endpoint-nodeports",
                    format!("{protocol} . {node_port}"),
                    "goto reject-chain",
                );
            }
            return;
        }
        let (owner, port_name) = name.split_once(':').unwrap_or((name, ""));
        let rest = format!("{owner}/{protocol}/{port_name}");
        let base = format!("{}-{rest}", hash(&rest));
        let chain = format!("service-{base}");
        self.element("service-ips", vip, &format!("goto {chain}"));
        if let Some(node_port) = node_port {
            let external = format!("external-{base}");
            self.element(
                "service-nodeports",
                format!("{protocol} . {node_port}"),
                &format!("goto {external}"),
            );
            let rules = vec!["jump mark-for-masquerade".to_owned(), format!("goto {chain}")];
            self.chains.insert(external, rules);
        }
        let mut pairs = Vec::new();
        for (number, endpoint) in endpoints.iter().enumerate() {
            let (address, port) = (&endpoint.address, endpoint.port);
            pairs.push(format!("{number} : {address} . {port}"));
            self.element(
                "hairpin-connections",
                format!("{address} . {address} . {protocol} . {port}"),
                "",
            );
        }
        let ip = if cluster_ip.contains(':') { "ip6" } else { "ip" };
        let rule = format!(
            "meta l4proto {protocol} dnat {ip} to numgen random mod {} map {{ {} }}",
            pairs.len(),
            pairs.join(", ")
        );
        self.chains.insert(chain, vec![rule]);
    }
}

/// What is in the table, as far as it depends on Services.
#[derive(Debug, Default)]
struct There {
    elements: BTreeMap<&'static str, BTreeMap<String, String>>,
    chains: BTreeSet<String>,
}

impl There {
    fn read(netns: &Netns, family: Family) -> Self {
        let mut there = Self::default();
        let ip = ip(family);
        let chains = listed(netns, &["chains", ip], "chain");
        let chains = chains.iter().filter(|chain| chain["table"] == "kube-proxy");
        there.chains = chains
            .filter_map(|chain| chain["name"].as_str().map(str::to_owned))
            .collect();
        let sets = [listed(netns, &["sets", ip], "set"), listed(netns, &["maps", ip], "map")].concat();
        let known: BTreeSet<_> = sets
            .iter()
            .filter(|set| set["table"] == "kube-proxy")
            .filter_map(|set| set["name"].as_str())
            .collect();
        for (kind, name, ..) in SETS.iter().filter(|(_, name, ..)| known.contains(name)) {
            let found = listed(netns, &[kind, ip, "kube-proxy", name], kind);
            let elements = found.iter().filter_map(|set| set["elem"].as_array()).flatten();
            there.elements.insert(*name, elements.map(element).collect());
        }
        there
    }
}

/// The objects of one kind that `nft list` prints.
fn listed(netns: &Netns, what: &[&str], kind: &str) -> Vec<Value> {
    let arguments = [&["--json", "list"], what].concat();
    let printed = netns.pipe("nft", &arguments, "");
    let mut listed: Value = serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{what:?}: {error}"));
    match listed["nftables"].take() {
        Value::Array(objects) => objects
            .into_iter()
            .map(|mut object| object[kind].take())
            .filter(|object| !object.is_null())
            .collect(),
        other => panic!("{what:?}: {other}"),
    }
}

/// A listed element: its key and, in a map, its verdict, as [`Wanted`] has them.
fn element(listed: &Value) -> (String, String) {
    match listed {
        Value::Array(pair) => (key(&pair[0]), verdict(&pair[1])),
        alone => (key(alone), String::new()),
    }
}

fn key(value: &Value) -> String {
    let words = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value["concat"].as_array() {
        Some(fields) => fields.iter().map(words).collect::<Vec<_>>().join(" . "),
        None => words(value),
    }
}

fn verdict(value: &Value) -> String {
    match value["goto"]["target"].as_str() {
        Some(target) => format!("goto {target}"),
        None => value.to_string(),
    }
}

/// What is written in one go, and what deletes the chains that are stale then.
fn transaction(family: Family, wanted: &Wanted, there: &There) -> (String, String) {
    let ip = ip(family);
    let mut text = base(family);
    // Every chain before the first rule: rules lead from one to another.
    for chain in wanted.chains.keys() {
        put(&mut text, format_args!("add chain {ip} kube-proxy {chain}"));
        put(&mut text, format_args!("flush chain {ip} kube-proxy {chain}"));
    }
    for (chain, rules) in &wanted.chains {
        for rule in rules {
            put(&mut text, format_args!("add rule {ip} kube-proxy {chain} {rule}"));
        }
    }
    let none = BTreeMap::new();
    for (_, set, ..) in SETS {
        let wanted = wanted.elements.get(set).unwrap_or(&none);
        let there = there.elements.get(set).unwrap_or(&none);
        for (key, _) in there.iter().filter(|(key, verdict)| wanted.get(*key) != Some(verdict)) {
            put(
                &mut text,
                format_args!("delete element {ip} kube-proxy {set} {{ {key} }}"),
            );
        }
        for (key, verdict) in wanted.iter().filter(|(key, verdict)| there.get(*key) != Some(verdict)) {
            let verdict = if verdict.is_empty() {
                String::new()
            } else {
                format!(" : {verdict}")
            };
            put(
                &mut text,
                format_args!("add element {ip} kube-proxy {set} {{ {key}{verdict} }}"),
            );
        }
    }
    let is_fixed = |name: &str| CHAINS.iter().any(|(fixed, ..)| *fixed == name);
    let mut stale = String::new();
    for chain in there
        .chains
        .iter()
        .filter(|name| !is_fixed(name) && !wanted.chains.contains_key(*name))
    {
        put(&mut text, format_args!("flush chain {ip} kube-proxy {chain}"));
        put(&mut stale, format_args!("delete chain {ip} kube-proxy {chain}"));
    }
    (text, stale)
}

/// The global addresses of a namespace.
fn node_addresses(netns: &Netns, family: Family) -> Vec<String> {
    let printed = netns.pipe("ip", &["-json", "address", "show", "scope", "global"], "");
    let links: Value = serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{printed}: {error}"));
    let links = links.as_array().into_iter().flatten();
    links
        .filter_map(|link| link["addr_info"].as_array())
        .flatten()
        .filter_map(|address| address["local"].as_str())
        .filter(|address| family.contains(address))
        .map(str::to_owned)
        .collect()
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes every line");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests;
    use crate::netns::Prefix;

    /// A Service's chain, as it stands in the tables of every cluster that has `default/kubernetes`.
    #[test]
    fn well_known_names() {
        let wanted = Wanted::new(&ServicePort::all(&manifests::all(), Family::V4), &[]);
        assert!(
            wanted
                .chains
                .contains_key("service-2QRHZV4L-default/kubernetes/tcp/https"),
            "{:?}",
            wanted.chains.keys()
        );
    }

    #[test]
    fn a_sync_writes_what_is_wanted_and_a_second_one_finds_nothing_to_do() {
        let netns = Netns::create(&Prefix::unique(), "node");
        let objects = manifests::all();
        install_nftables(&netns, &objects, &Family::BOTH);
        let shown = netns.pipe("nft", &["list", "ruleset"], "");
        install_nftables(&netns, &objects, &Family::BOTH);
        assert_eq!(netns.pipe("nft", &["list", "ruleset"], ""), shown);
        for family in Family::BOTH {
            let wanted = Wanted::new(&ServicePort::all(&objects, family), &[]);
            let there = There::read(&netns, family);
            for (set, elements) in &wanted.elements {
                assert_eq!(there.elements.get(set), Some(elements), "{set}");
            }
            assert!(wanted.chains.keys().all(|chain| there.chains.contains(chain)));
        }
        // Without Services nothing of them is left.
        install_nftables(&netns, &[], &Family::BOTH);
        for family in Family::BOTH {
            let there = There::read(&netns, family);
            assert_eq!(there.chains.len(), CHAINS.len(), "{:?}", there.chains);
            assert!(there.elements.values().all(BTreeMap::is_empty), "{:?}", there.elements);
        }
        remove_nftables(&netns, &Family::BOTH);
        remove_nftables(&netns, &Family::BOTH);
        assert_eq!(netns.pipe("nft", &["list", "ruleset"], ""), "");
    }
}
