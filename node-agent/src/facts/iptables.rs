//! What `iptables-save` prints, in both backends, and what of it is kube-proxy's.

use nftfleet_domain::inventory::IptablesEvidence;

/// An iptables backend. Both can hold rules at the same time, and neither shows the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// The old xtables.
    Legacy,
    /// iptables' rules in `nf_tables`.
    Nft,
}

impl Backend {
    /// Both backends.
    pub const BOTH: [Self; 2] = [Self::Legacy, Self::Nft];

    /// The `save` and `restore` commands of each family, IPv4 first.
    pub const fn commands(self) -> [(&'static str, &'static str); 2] {
        match self {
            Self::Legacy => [
                ("iptables-legacy-save", "iptables-legacy-restore"),
                ("ip6tables-legacy-save", "ip6tables-legacy-restore"),
            ],
            Self::Nft => [
                ("iptables-nft-save", "iptables-nft-restore"),
                ("ip6tables-nft-save", "ip6tables-nft-restore"),
            ],
        }
    }
}

/// A table as `iptables-save` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedTable<'a> {
    /// Its name, for example `nat`.
    pub name: &'a str,
    /// Its chains; built-in ones have a policy.
    pub chains: Vec<SavedChain<'a>>,
    /// Its rules, in order.
    pub rules: Vec<SavedRule<'a>>,
}

/// A chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedChain<'a> {
    /// Its name.
    pub name: &'a str,
    /// What happens to packets that no rule of it decides, for the kernel's own chains; none for others.
    pub policy: Option<&'a str>,
}

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedRule<'a> {
    /// Its chain.
    pub chain: &'a str,
    /// Where it jumps or goes to, if it does.
    pub target: Option<&'a str>,
    /// All that stands behind `-A CHAIN `.
    pub specification: &'a str,
}

/// Reads what `iptables-save` printed. Lines that it never prints are passed over.
pub fn tables(saved: &str) -> Vec<SavedTable<'_>> {
    let mut tables: Vec<SavedTable<'_>> = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(SavedTable {
                name: name.trim(),
                chains: Vec::new(),
                rules: Vec::new(),
            });
            continue;
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_whitespace();
            if let (Some(name), Some(policy)) = (words.next(), words.next()) {
                table.chains.push(SavedChain {
                    name,
                    policy: (policy != "-").then_some(policy),
                });
            }
        } else if let Some((chain, specification)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
            table.rules.push(SavedRule {
                chain,
                target: target(specification),
                specification,
            });
        }
    }
    tables
}

/// The word behind `-j` or `-g`, outside of quotes.
fn target(specification: &str) -> Option<&str> {
    let mut in_quotes = false;
    let mut after_jump = false;
    for word in specification.split(' ') {
        if !in_quotes && after_jump {
            return Some(word);
        }
        after_jump = !in_quotes && (word == "-j" || word == "-g");
        let quotes = word.matches('"').count() - word.matches("\\\"").count();
        in_quotes ^= quotes % 2 == 1;
    }
    None
}

/// Whether a chain is kube-proxy's, in its iptables or its IPVS mode. kubelet's chains (KUBE-FIREWALL, KUBE-MARK-DROP,
/// KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT) are not, nor is anything else that begins with `KUBE-`: network plugins use that
/// prefix too.
pub fn is_kube_proxys(chain: &str) -> bool {
    const NAMES: [&str; 13] = [
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-MARK-MASQ",
        "KUBE-FORWARD",
        "KUBE-PROXY-FIREWALL",
        "KUBE-PROXY-CANARY",
        "KUBE-SOURCE-RANGES-FIREWALL",
        "KUBE-NODE-PORT",
        "KUBE-LOAD-BALANCER",
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
    ];
    const PREFIXES: [&str; 6] = [
        "KUBE-SVC-",
        "KUBE-SVL-",
        "KUBE-SEP-",
        "KUBE-FW-",
        "KUBE-EXT-",
        "KUBE-XLB-",
    ];
    NAMES.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// What of kube-proxy's is there, summed over the texts of both families.
pub fn evidence(saved: &[String]) -> IptablesEvidence {
    let mut evidence = IptablesEvidence::default();
    for table in saved
        .iter()
        .flat_map(|text| tables(text))
        .filter(|table| table.name == "nat")
    {
        for chain in &table.chains {
            evidence.service_chains += u32::from(chain.name.starts_with("KUBE-SVC-"));
            evidence.endpoint_chains += u32::from(chain.name.starts_with("KUBE-SEP-"));
        }
        for rule in &table.rules {
            let dispatches = ["PREROUTING", "OUTPUT"].contains(&rule.chain) && rule.target == Some("KUBE-SERVICES");
            evidence.dispatch_jumps += u32::from(dispatches);
        }
    }
    evidence
}

/// Whether forwarded packets may pass only through the hole that kube-proxy made: KUBE-FORWARD stands in `FORWARD`, whose
/// policy is not ACCEPT, or which drops or rejects, itself or in a chain of others that it leads to. Without kube-proxy's
/// rules, Services could be cut off (Docker sets such a policy, kubernetes/kubernetes#39823; the stock firewall of RHEL ends
/// in a REJECT).
pub fn forwards_by_kube_proxys_leave(saved: &str) -> bool {
    tables(saved)
        .iter()
        .filter(|table| table.name == "filter")
        .any(|table| {
            let has_hole = table
                .rules
                .iter()
                .any(|rule| rule.chain == "FORWARD" && rule.target == Some("KUBE-FORWARD"));
            let is_closed =
                |chain: &SavedChain<'_>| chain.name == "FORWARD" && chain.policy.is_some_and(|p| p != "ACCEPT");
            has_hole && (table.chains.iter().any(is_closed) || refuses(table, "FORWARD"))
        })
}

/// Whether a chain, or one of others that it leads to, drops or rejects anything.
fn refuses(table: &SavedTable<'_>, from: &str) -> bool {
    let mut seen = vec![from];
    let mut next = 0;
    while let Some(chain) = seen.get(next).copied() {
        next += 1;
        for target in table
            .rules
            .iter()
            .filter(|rule| rule.chain == chain)
            .filter_map(|rule| rule.target)
        {
            if ["DROP", "REJECT"].contains(&target) {
                return true;
            }
            if !is_kube_proxys(target) && !seen.contains(&target) {
                seen.push(target);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = r#"# Generated by iptables-save v1.8.9 (nf_tables) on Mon Nov 23 18:16:59 2026
*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-SEP-EQX7RFQBOBSBOFBX - [0:0]
-A PREROUTING -m comment --comment "kubernetes -j service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
COMMIT
"#;

    #[test]
    fn kube_proxys_chains_are_counted_and_kubelets_are_not() {
        let counted = evidence(&[NODE.to_owned(), String::new()]);
        assert_eq!(
            counted,
            IptablesEvidence {
                dispatch_jumps: 2,
                service_chains: 1,
                endpoint_chains: 1
            }
        );
        let kubelet_only: String = NODE
            .lines()
            .filter(|l| !l.contains("KUBE-S"))
            .collect::<Vec<_>>()
            .join("\n");
        assert_eq!(evidence(&[kubelet_only]), IptablesEvidence::default());
    }

    #[test]
    fn chains_of_the_ipvs_mode_are_kube_proxys_and_names_that_are_alike_are_not() {
        // pkg/proxy/ipvs/proxier.go, iptablesChains, as of 1.36.
        for own in [
            "KUBE-SERVICES",
            "KUBE-POSTROUTING",
            "KUBE-NODE-PORT",
            "KUBE-LOAD-BALANCER",
            "KUBE-MARK-MASQ",
            "KUBE-FORWARD",
            "KUBE-PROXY-FIREWALL",
            "KUBE-SOURCE-RANGES-FIREWALL",
            "KUBE-IPVS-FILTER",
            "KUBE-IPVS-OUT-FILTER",
        ] {
            assert!(is_kube_proxys(own), "{own}");
        }
        for other in [
            "KUBE-FIREWALL",
            "KUBE-MARK-DROP",
            "KUBE-KUBELET-CANARY",
            "KUBE-IPTABLES-HINT",
            "KUBE-NODE-PORT-2",
            "KUBE-NWPLCY-DEFAULT",
            "KUBE-ROUTER-INPUT",
        ] {
            assert!(!is_kube_proxys(other), "{other}");
        }
    }

    #[test]
    fn a_closed_forward_chain_with_kube_proxys_hole_is_seen() {
        let closed = "*filter\n:FORWARD DROP [0:0]\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\nCOMMIT\n";
        assert!(forwards_by_kube_proxys_leave(closed));
        assert!(!forwards_by_kube_proxys_leave(&closed.replace("DROP", "ACCEPT")));
        assert!(!forwards_by_kube_proxys_leave(
            &closed.replace("-A FORWARD -j KUBE-FORWARD\n", "")
        ));
    }

    #[test]
    fn a_jump_in_a_comment_is_no_jump() {
        assert_eq!(
            target(r#"-m comment --comment "a -j KUBE-SERVICES" -j ACCEPT"#),
            Some("ACCEPT")
        );
        assert_eq!(
            target(r#"-m comment --comment "say \"x -j Y\" now" -j ACCEPT"#),
            Some("ACCEPT")
        );
        assert_eq!(target("-p tcp"), None);
    }
}
