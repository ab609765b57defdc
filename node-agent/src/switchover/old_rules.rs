//! Whether kube-proxy's rules are whole and of now, so that a node can be given back to them.
//!
//! Read from the kernel, not asked of kube-proxy: its word is that it runs, not that it has written everything. Pure but for the
//! listing commands.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use nftfleet_domain::service::{Endpoint, Protocol, Vip};

use crate::dataplane::desired;
use crate::facts::iptables::{Backend, SavedTable, tables};
use crate::host::Host;
use crate::ipvs::{Frontend, Ipvs, IpvsError};

/// What must be there: the ClusterIPs that have endpoints, with these. iptables and nftables get other VIPs in the same
/// transaction; in IPVS mode kube-proxy makes its virtual services last.
pub type Expected = BTreeMap<Vip, BTreeSet<Endpoint>>;

/// How many missing VIPs are named.
const NAMED: usize = 3;

/// What kube-proxy must have written for these.
pub fn expected(frontends: &BTreeMap<Vip, desired::Frontend>) -> Expected {
    let is_cluster_ip = |(_, frontend): &(&Vip, &desired::Frontend)| frontend.route.is_none();
    let lists = frontends.iter().filter(is_cluster_ip).filter_map(|(vip, frontend)| {
        let list = frontend.all.as_ref().or(frontend.local.as_ref())?;
        Some((*vip, list.endpoints.iter().copied().collect()))
    });
    lists.collect()
}

/// Which of kube-proxy's modes has everything that is expected.
///
/// # Errors
/// None has; what each lacks, in words, or why it can't be told.
pub fn in_sync(host: &dyn Host, expected: &Expected) -> Result<&'static str, String> {
    if expected.is_empty() {
        return Err(
            "no ClusterIP has endpoints, so it can't be told whether kube-proxy's rules are in sync".to_owned(),
        );
    }
    let mut lacking = Vec::new();
    for (backend, name) in [(Backend::Legacy, "iptables-legacy"), (Backend::Nft, "iptables-nft")] {
        match by_iptables(host, backend).map(|found| missing(expected, &found)) {
            Ok(None) => return Ok(name),
            Ok(Some(what)) => lacking.push(format!("{name}: {what}")),
            Err(why) => lacking.push(why),
        }
    }
    match by_nftables(host).map(|found| missing(expected, &found)) {
        Ok(None) => return Ok("kube-proxy's nftables"),
        Ok(Some(what)) => lacking.push(format!("kube-proxy's nftables: {what}")),
        Err(why) => lacking.push(why),
    }
    match by_ipvs().map(|found| missing(expected, &found)) {
        Ok(None) => return Ok("IPVS"),
        Ok(Some(what)) => lacking.push(format!("IPVS: {what}")),
        Err(why) => lacking.push(why.to_string()),
    }
    Err(lacking.join("; "))
}

/// What IPVS serves. A destination without weight gets no connections.
fn by_ipvs() -> Result<Expected, IpvsError> {
    let mut ipvs = Ipvs::open()?;
    let mut found = Expected::new();
    for service in ipvs.services()? {
        let Frontend::Vip(vip) = service.frontend else { continue };
        let destinations = ipvs.destinations(&service.frontend)?;
        let endpoints = destinations
            .iter()
            .filter(|destination| destination.weight > 0)
            .map(|destination| Endpoint {
                address: destination.address.ip(),
                port: destination.address.port(),
            });
        found.insert(vip, endpoints.collect());
    }
    Ok(found)
}

/// What of the expected was not found as it should be, in words.
fn missing(expected: &Expected, found: &Expected) -> Option<String> {
    let differ: Vec<&Vip> = expected
        .iter()
        .filter(|(vip, endpoints)| found.get(vip) != Some(endpoints))
        .map(|(vip, _)| vip)
        .collect();
    if differ.is_empty() {
        return None;
    }
    let named: Vec<String> = differ.iter().take(NAMED).map(ToString::to_string).collect();
    Some(format!(
        "{} of {} ClusterIP ports are missing or have other endpoints, such as {}",
        differ.len(),
        expected.len(),
        named.join(", ")
    ))
}

fn listed(host: &dyn Host, program: &str, arguments: &[&str]) -> Result<Option<String>, String> {
    match host.run(program, arguments, "") {
        Ok(ran) if ran.succeeded => Ok(Some(ran.stdout)),
        Ok(ran) if ran.stderr.contains("No such file or directory") => Ok(None),
        Ok(ran) => Err(format!("{program}: {}", ran.stderr.trim())),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

fn by_iptables(host: &dyn Host, backend: Backend) -> Result<Expected, String> {
    let mut found = Expected::new();
    for (save, _) in backend.commands() {
        let text = listed(host, save, &["-t", "nat"])?.unwrap_or_default();
        for table in tables(&text) {
            found.extend(served(&table));
        }
    }
    Ok(found)
}

/// The ClusterIPs that a nat table leads to endpoints; none if nothing leads a packet there.
fn served(table: &SavedTable<'_>) -> Expected {
    let is_entered = |chain: &str| {
        let enters = |r: &&crate::facts::iptables::SavedRule<'_>| r.chain == chain && r.target == Some("KUBE-SERVICES");
        table.rules.iter().any(|rule| enters(&rule))
    };
    if !is_entered("PREROUTING") || !is_entered("OUTPUT") {
        return Expected::new();
    }
    let mut endpoint_of: BTreeMap<&str, Endpoint> = BTreeMap::new();
    let mut chains_of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut vips = Vec::new();
    for rule in &table.rules {
        let words = words(rule.specification);
        let after = |flag: &str| {
            words
                .iter()
                .position(|word| *word == flag)
                .and_then(|at| words.get(at + 1).copied())
        };
        if rule.chain == "KUBE-SERVICES" {
            let address = after("-d").and_then(|net| net.split('/').next()?.parse::<IpAddr>().ok());
            let protocol = after("-p").and_then(|name| name.to_ascii_uppercase().parse::<Protocol>().ok());
            let port = after("--dport").and_then(|port| port.parse().ok());
            if let (Some(address), Some(protocol), Some(port), Some(target)) = (address, protocol, port, rule.target)
                && ["KUBE-SVC-", "KUBE-SVL-"].iter().any(|kind| target.starts_with(kind))
            {
                let vip = Vip {
                    address,
                    protocol,
                    port,
                };
                vips.push((vip, target));
            }
        } else if rule.chain.starts_with("KUBE-SEP-") {
            if let Some(endpoint) = after("--to-destination").and_then(endpoint) {
                endpoint_of.insert(rule.chain, endpoint);
            }
        } else if let Some(target) = rule.target.filter(|target| target.starts_with("KUBE-SEP-")) {
            chains_of.entry(rule.chain).or_default().push(target);
        }
    }
    let endpoints = |chain: &str| -> BTreeSet<Endpoint> {
        let chains = chains_of.get(chain).into_iter().flatten();
        chains.filter_map(|chain| endpoint_of.get(chain).copied()).collect()
    };
    vips.into_iter().map(|(vip, chain)| (vip, endpoints(chain))).collect()
}

/// The words of a rule outside of quotes.
fn words(specification: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut in_quotes = false;
    for word in specification.split(' ') {
        let quotes = word.matches('"').count() - word.matches("\\\"").count();
        if !in_quotes && quotes == 0 {
            words.push(word);
        }
        in_quotes ^= quotes % 2 == 1;
    }
    words
}

fn endpoint(text: &str) -> Option<Endpoint> {
    let at: SocketAddr = text.parse().ok()?;
    Some(Endpoint {
        address: at.ip(),
        port: at.port(),
    })
}

/// What kube-proxy's nftables mode serves: its map `service-ips`, whose elements lead to chains that hold the endpoints, either
/// themselves (since 1.36) or by a chain of each endpoint.
fn by_nftables(host: &dyn Host) -> Result<Expected, String> {
    let mut found = Expected::new();
    for family in ["ip", "ip6"] {
        if let Some(text) = listed(host, "nft", &["-n", "list", "table", family, "kube-proxy"])? {
            found.extend(nftables_serves(&text));
        }
    }
    Ok(found)
}

fn nftables_serves(text: &str) -> Expected {
    let mut vips: Vec<(Vip, &str)> = Vec::new();
    let mut endpoints_of: BTreeMap<&str, BTreeSet<Endpoint>> = BTreeMap::new();
    let mut goes_to: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let (mut chain, mut is_hooked, mut map) = ("", false, "");
    for line in text.lines().map(str::trim) {
        if let Some(name) = block(line, "chain ") {
            (chain, map) = (name, "");
        } else if let Some(name) = block(line, "map ") {
            (chain, map) = ("", name);
        } else if map == "service-ips" {
            let line = line.strip_prefix("elements = {").unwrap_or(line);
            vips.extend(line.split(',').filter_map(service_ip));
        } else if !chain.is_empty() {
            is_hooked |= line.starts_with("type nat hook prerouting");
            for part in line.split([',', '{', '}']) {
                if let Some((_, to)) = part.split_once("goto ") {
                    goes_to.entry(chain).or_default().push(to.trim());
                }
                endpoints_of.entry(chain).or_default().extend(destination(part));
            }
        }
    }
    if !is_hooked {
        return Expected::new();
    }
    let endpoints = |chain: &str| -> BTreeSet<Endpoint> {
        let own = endpoints_of.get(chain).into_iter().flatten();
        let next = goes_to.get(chain).into_iter().flatten();
        let theirs = next.filter_map(|chain| endpoints_of.get(chain)).flatten();
        own.chain(theirs).copied().collect()
    };
    vips.into_iter().map(|(vip, chain)| (vip, endpoints(chain))).collect()
}

/// The name in `chain NAME {`.
fn block<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    line.strip_prefix(kind)?.strip_suffix('{').map(str::trim)
}

/// `10.96.0.1 . tcp . 443 : goto service-ABC`, with the protocol's name or number.
fn service_ip(element: &str) -> Option<(Vip, &str)> {
    let (key, chain) = element.split_once(": goto ")?;
    // An element may have a comment between the key and the verdict.
    let key = key.split(" comment ").next()?;
    let mut parts = key.split(" . ").map(str::trim);
    let (address, protocol, port) = (parts.next()?, parts.next()?, parts.next()?);
    let protocol = match protocol {
        "6" | "tcp" => Protocol::Tcp,
        "17" | "udp" => Protocol::Udp,
        "132" | "sctp" => Protocol::Sctp,
        _ => return None,
    };
    let vip = Vip {
        address: address.parse().ok()?,
        protocol,
        port: port.parse().ok()?,
    };
    let chain = chain.trim_end_matches(['}', ' ']);
    Some((vip, chain.split_whitespace().next()?))
}

/// `… dnat to 10.0.0.1:80`, or `0 : 10.0.0.1 . 80` of a map.
fn destination(text: &str) -> Option<Endpoint> {
    if let Some((_, to)) = text.split_once("dnat to ") {
        return endpoint(to.split_whitespace().next()?);
    }
    let (address, port) = text.split_once(" : ")?.1.split_once(" . ")?;
    Some(Endpoint {
        address: address.trim().parse().ok()?,
        port: port.split_whitespace().next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vip(at: &str) -> Vip {
        let at: SocketAddr = at.parse().unwrap();
        Vip {
            address: at.ip(),
            protocol: Protocol::Tcp,
            port: at.port(),
        }
    }

    fn one(at: &str, endpoints: &[&str]) -> Expected {
        Expected::from([(vip(at), endpoints.iter().filter_map(|text| endpoint(text)).collect())])
    }

    const NAT: &str = r#"*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment "shop/web -d 10.0.0.9 cluster IP" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-1
-A KUBE-SVC-A -j KUBE-SEP-2
-A KUBE-SEP-1 -s 10.0.0.1/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.0.0.1:8080
-A KUBE-SEP-2 -p tcp -m tcp -j DNAT --to-destination 10.0.0.2:8080
COMMIT
"#;

    #[test]
    fn iptables_rules_are_followed_to_their_endpoints() {
        let expected = one("10.96.0.1:80", &["10.0.0.1:8080", "10.0.0.2:8080"]);
        let found = |text: &str| served(&tables(text)[0]);
        assert_eq!(found(NAT), expected);
        assert_eq!(missing(&expected, &found(NAT)), None);
        // An endpoint that is not there any more, one that is not there yet, and rules that nothing leads to.
        for (from, to) in [
            ("10.0.0.2:8080", "10.0.0.3:8080"),
            ("-A KUBE-SVC-A -j KUBE-SEP-2\n", ""),
            ("-A OUTPUT", "-A OTHER"),
        ] {
            let text = NAT.replace(from, to);
            assert_ne!(text, NAT);
            let what = missing(&expected, &found(&text)).unwrap();
            assert!(what.contains("1 of 1") && what.contains("10.96.0.1"), "{what}");
        }
    }

    #[test]
    fn kube_proxys_nftables_are_followed_in_both_shapes() {
        let expected = one("10.96.0.1:80", &["10.0.0.1:8080", "10.0.0.2:8080"]);
        let head = "table ip kube-proxy {\n\tmap service-ips {\n\t\ttype ipv4_addr . inet_proto . inet_service : verdict\n\t\t\
                    elements = { 10.96.0.1 . 6 . 80 : goto service-X,\n\t\t\t     10.96.0.2 . 17 . 53 : goto service-Y }\n\t}\n\
                    \tchain nat-prerouting {\n\t\ttype nat hook prerouting priority -100; policy accept;\n\t\tjump services\n\t}\n";
        let now = "\tchain service-X {\n\t\tdnat ip to numgen random mod 2 map { 0 : 10.0.0.1 . 8080, 1 : 10.0.0.2 . 8080 }\n\t}\n}\n";
        let earlier = "\tchain service-X {\n\t\tnumgen random mod 2 vmap { 0 : goto endpoint-1, 1 : goto endpoint-2 }\n\t}\n\
                       \tchain endpoint-1 {\n\t\tip saddr 10.0.0.1 jump mark-for-masquerade\n\t\tmeta l4proto 6 dnat to 10.0.0.1:8080\n\t}\n\
                       \tchain endpoint-2 {\n\t\tmeta l4proto 6 dnat to 10.0.0.2:8080\n\t}\n}\n";
        for shape in [now, earlier] {
            let text = format!("{head}{shape}");
            assert_eq!(missing(&expected, &nftables_serves(&text)), None, "{text}");
            let stale = text.replace("10.0.0.2", "10.0.0.3");
            assert!(missing(&expected, &nftables_serves(&stale)).is_some());
            let unhooked = text.replace("type nat hook", "type filter hook");
            assert!(missing(&expected, &nftables_serves(&unhooked)).is_some());
        }
    }
}
