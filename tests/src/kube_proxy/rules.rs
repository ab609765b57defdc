//! The rules themselves, as input for `iptables-restore --noflush`.

use std::collections::BTreeSet;

use super::ports::{Endpoint, ServicePort};
use super::{Family, chain};

/// The chains of one Service port or endpoint: these come and go.
const PER_SERVICE: [&str; 3] = ["KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-"];

/// From a chain of the kernel to one of kube-proxy's, put in front of what is there, in this order.
const JUMPS: [(&str, &str, &str, &str, bool); 12] = [
    (
        "filter",
        "INPUT",
        "KUBE-EXTERNAL-SERVICES",
        "kubernetes externally-visible service portals",
        true,
    ),
    (
        "filter",
        "FORWARD",
        "KUBE-EXTERNAL-SERVICES",
        "kubernetes externally-visible service portals",
        true,
    ),
    (
        "filter",
        "INPUT",
        "KUBE-NODEPORTS",
        "kubernetes health check service ports",
        false,
    ),
    ("filter", "FORWARD", "KUBE-SERVICES", "kubernetes service portals", true),
    ("filter", "OUTPUT", "KUBE-SERVICES", "kubernetes service portals", true),
    (
        "filter",
        "FORWARD",
        "KUBE-FORWARD",
        "kubernetes forwarding rules",
        false,
    ),
    (
        "filter",
        "INPUT",
        "KUBE-PROXY-FIREWALL",
        "kubernetes load balancer firewall",
        true,
    ),
    (
        "filter",
        "OUTPUT",
        "KUBE-PROXY-FIREWALL",
        "kubernetes load balancer firewall",
        true,
    ),
    (
        "filter",
        "FORWARD",
        "KUBE-PROXY-FIREWALL",
        "kubernetes load balancer firewall",
        true,
    ),
    ("nat", "OUTPUT", "KUBE-SERVICES", "kubernetes service portals", false),
    (
        "nat",
        "PREROUTING",
        "KUBE-SERVICES",
        "kubernetes service portals",
        false,
    ),
    (
        "nat",
        "POSTROUTING",
        "KUBE-POSTROUTING",
        "kubernetes postrouting rules",
        false,
    ),
];

pub(super) fn write(ports: &[ServicePort], family: Family, existing: &str) -> String {
    // Others may lead packets to that chain too.
    let first_time = !existing.contains("--comment \"kubernetes service portals\" -j KUBE-SERVICES");
    let mut mangle = Table::new("mangle", first_time);
    mangle.chain("KUBE-PROXY-CANARY");
    let tables = [
        mangle,
        filter(ports, family, first_time),
        nat(ports, family, first_time, existing),
    ];
    tables.into_iter().map(Table::finish).collect()
}

fn filter(ports: &[ServicePort], family: Family, first_time: bool) -> Table {
    let mut filter = Table::new("filter", first_time);
    for name in [
        "KUBE-PROXY-CANARY",
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-FORWARD",
        "KUBE-NODEPORTS",
        "KUBE-PROXY-FIREWALL",
    ] {
        filter.chain(name);
    }
    for ServicePort {
        name,
        protocol,
        cluster_ip,
        port,
        node_port,
        endpoints,
    } in ports
    {
        if !endpoints.is_empty() {
            continue;
        }
        let comment = format!("-m comment --comment \"{name} has no endpoints\" -m {protocol} -p {protocol}");
        let mask = family.full();
        filter.rule(format!(
            "KUBE-SERVICES {comment} -d {cluster_ip}/{mask} --dport {port} -j REJECT"
        ));
        if let Some(node_port) = node_port {
            let local = "-m addrtype --dst-type LOCAL";
            filter.rule(format!(
                "KUBE-EXTERNAL-SERVICES {comment} {local} --dport {node_port} -j REJECT"
            ));
        }
    }
    filter.rule("KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP");
    filter.rule(
        "KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT",
    );
    filter.rule(
        "KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" \
         -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    );
    filter
}

fn nat(ports: &[ServicePort], family: Family, first_time: bool, existing: &str) -> Table {
    let mut nat = Table::new("nat", first_time);
    for name in [
        "KUBE-PROXY-CANARY",
        "KUBE-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-MARK-MASQ",
    ] {
        nat.chain(name);
    }
    nat.rule("KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN");
    nat.rule("KUBE-POSTROUTING -j MARK --xor-mark 0x4000");
    nat.rule(
        "KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" \
         -j MASQUERADE --random-fully",
    );
    nat.rule("KUBE-MARK-MASQ -j MARK --or-mark 0x4000");
    for port in ports.iter().filter(|port| !port.endpoints.is_empty()) {
        service(&mut nat, port, family);
    }
    let not_localhost = match family {
        Family::V4 => "",
        // There is no way to reach a node port on ::1, so kube-proxy does not pretend.
        Family::V6 => "! -d ::1/128 ",
    };
    nat.rule(format!(
        "KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this \
         chain\" -m addrtype --dst-type LOCAL {not_localhost}-j KUBE-NODEPORTS"
    ));
    nat.delete_stale(existing);
    nat
}

/// The rules of a Service port with endpoints.
fn service(nat: &mut Table, service: &ServicePort, family: Family) {
    let ServicePort {
        name,
        protocol,
        cluster_ip,
        port,
        node_port,
        endpoints,
    } = service;
    let service_chain = chain::service(name, protocol);
    let mask = family.full();
    let to_vip = format!(
        "-m comment --comment \"{name} cluster IP\" -m {protocol} -p {protocol} -d {cluster_ip}/{mask} --dport {port}"
    );
    nat.rule(format!("KUBE-SERVICES {to_vip} -j {service_chain}"));

    nat.chain(&service_chain);
    nat.rule(format!(
        "{service_chain} {to_vip} ! -s {} -j KUBE-MARK-MASQ",
        family.cluster_cidr()
    ));
    let mut left = endpoints.len();
    for endpoint in endpoints {
        let endpoint_chain = chain::endpoint(name, protocol, &endpoint.to_string());
        // Of those that are left, each has the same chance; the last takes what comes.
        let chance = match left {
            1 => String::new(),
            left => format!("-m statistic --mode random --probability {} ", probability(left)),
        };
        left -= 1;
        let comment = format!("-m comment --comment \"{name} -> {endpoint}\"");
        nat.rule(format!("{service_chain} {comment} {chance}-j {endpoint_chain}"));
        self::endpoint(nat, service, endpoint, &endpoint_chain, mask);
    }

    if let Some(node_port) = node_port {
        let external = chain::external(name, protocol);
        let comment = format!("-m comment --comment \"{name}\"");
        nat.rule(format!(
            "KUBE-NODEPORTS {comment} -m {protocol} -p {protocol} --dport {node_port} -j {external}"
        ));
        nat.chain(&external);
        let masquerade = format!("-m comment --comment \"masquerade traffic for {name} external destinations\"");
        nat.rule(format!("{external} {masquerade} -j KUBE-MARK-MASQ"));
        nat.rule(format!("{external} -j {service_chain}"));
    }
}

fn endpoint(nat: &mut Table, service: &ServicePort, endpoint: &Endpoint, endpoint_chain: &str, mask: u8) {
    let ServicePort { name, protocol, .. } = service;
    let comment = format!("-m comment --comment \"{name}\"");
    nat.chain(endpoint_chain);
    // A pod that reaches itself through the Service must see another's address.
    nat.rule(format!(
        "{endpoint_chain} {comment} -s {}/{mask} -j KUBE-MARK-MASQ",
        endpoint.address
    ));
    nat.rule(format!(
        "{endpoint_chain} {comment} -m {protocol} -p {protocol} -j DNAT --to-destination {endpoint}"
    ));
}

/// One in `left`, with the ten digits that kube-proxy prints.
fn probability(left: usize) -> String {
    let left = u64::try_from(left).expect("a number of endpoints");
    let digits = (10_000_000_000 + left / 2) / left;
    format!("0.{digits:010}")
}

/// One table of the input.
struct Table {
    name: &'static str,
    chains: BTreeSet<String>,
    rules: Vec<String>,
    first_time: bool,
}

impl Table {
    fn new(name: &'static str, first_time: bool) -> Self {
        Self {
            name,
            chains: BTreeSet::new(),
            rules: Vec::new(),
            first_time,
        }
    }

    /// Makes a chain, or empties it if it is there.
    fn chain(&mut self, name: &str) {
        self.chains.insert(name.to_owned());
    }

    fn rule(&mut self, rule: impl std::fmt::Display) {
        self.rules.push(format!("-A {rule}"));
    }

    /// Deletes the Service chains that are in `existing` and no longer wanted.
    fn delete_stale(&mut self, existing: &str) {
        let names = existing
            .lines()
            .filter_map(|line| line.strip_prefix(':')?.split_whitespace().next());
        let ours = names.filter(|name| PER_SERVICE.iter().any(|prefix| name.starts_with(prefix)));
        for name in ours {
            if self.chains.insert(name.to_owned()) {
                self.rules.push(format!("-X {name}"));
            }
        }
    }

    fn finish(self) -> String {
        let chains = self.chains.iter().map(|chain| format!(":{chain} - [0:0]"));
        let jumps = JUMPS
            .iter()
            .filter(|(table, ..)| *table == self.name && self.first_time);
        let jumps = jumps.map(|(_, from, to, comment, only_new)| {
            let new = if *only_new { "-m conntrack --ctstate NEW " } else { "" };
            format!("-I {from} {new}-m comment --comment \"{comment}\" -j {to}")
        });
        let mut lines = vec![format!("*{}", self.name)];
        lines.extend(chains);
        lines.extend(self.rules);
        lines.extend(jumps);
        lines.push("COMMIT\n".to_owned());
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_printed_as_kube_proxy_does() {
        let printed = [2, 3, 4, 7].map(probability);
        assert_eq!(
            printed,
            ["0.5000000000", "0.3333333333", "0.2500000000", "0.1428571429"]
        );
    }
}
