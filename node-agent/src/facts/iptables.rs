//! What `iptables-save` prints, in both backends, and what of it is kube-proxy's.

use std::collections::{BTreeMap, BTreeSet};

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

impl<'a> SavedRule<'a> {
    /// The words of its specification. What has anything in it but letters, digits, `-` and `_` is printed in quotes, and is one
    /// word with them.
    pub fn words(&self) -> impl Iterator<Item = &'a str> {
        words(self.specification)
    }
}

/// The word behind `-j` or `-g`.
fn target(specification: &str) -> Option<&str> {
    let mut words = words(specification);
    while let Some(word) = words.next() {
        match word {
            "-j" | "-g" => return words.next(),
            // A comment may be just that.
            "--comment" => drop(words.next()),
            _ => {}
        }
    }
    None
}

/// The words of a rule. One in quotes is one word with its quotes; in it, what follows a backslash means itself.
fn words(specification: &str) -> impl Iterator<Item = &str> {
    let mut rest = specification;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(' ');
        let (mut in_quotes, mut is_escaped) = (false, false);
        let end = rest.find(|letter| {
            let means_itself = std::mem::take(&mut is_escaped);
            match letter {
                '\\' if in_quotes && !means_itself => is_escaped = true,
                '"' if !means_itself => in_quotes = !in_quotes,
                _ => {}
            }
            letter == ' ' && !in_quotes
        });
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        (!word.is_empty()).then_some(word)
    })
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
        // Of its IPVS mode.
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
            let dispatches = ENTRIES.contains(&rule.chain) && rule.target == Some("KUBE-SERVICES");
            evidence.dispatch_jumps += u32::from(dispatches);
            let matches_a_set = is_kube_proxys(rule.chain) && rule.specification.contains("--match-set KUBE-");
            evidence.ipset_rules += u32::from(matches_a_set);
        }
        let reached = reached(&table, &ENTRIES);
        let reached = reached.iter().filter(|chain| chain.starts_with("KUBE-SVC-")).count();
        evidence.reached_service_chains += u32::try_from(reached).unwrap_or(u32::MAX);
    }
    evidence
}

/// Where packets come into the nat table that may be for a Service.
const ENTRIES: [&str; 2] = ["PREROUTING", "OUTPUT"];

/// The chains that a packet may come to from these, the latter included. Targets of iptables' own, like `DROP`, are chains here.
pub fn reached<'a>(table: &SavedTable<'a>, from: &[&'a str]) -> BTreeSet<&'a str> {
    let mut targets = BTreeMap::<&str, Vec<&str>>::new();
    for rule in &table.rules {
        targets.entry(rule.chain).or_default().extend(rule.target);
    }
    let mut reached: BTreeSet<&str> = from.iter().copied().collect();
    let mut next: Vec<&str> = from.to_vec();
    while let Some(chain) = next.pop() {
        let further = targets.get(chain).into_iter().flatten();
        next.extend(further.filter(|target| reached.insert(target)));
    }
    reached
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
                reached_service_chains: 1,
                endpoint_chains: 1,
                ipset_rules: 0,
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
    fn chains_that_nothing_leads_to_are_not_reached() {
        let without = |gone: &str| {
            let text = NODE.lines().filter(|line| !line.contains(gone)).collect::<Vec<_>>();
            evidence(&[text.join("\n")])
        };
        assert_eq!(without("service portals").reached_service_chains, 0);
        assert_eq!(without("-A PREROUTING").reached_service_chains, 1);
        assert_eq!(without("-A KUBE-SERVICES").reached_service_chains, 0);
        let in_between = NODE.replace(
            "-A KUBE-SERVICES -d",
            "-A KUBE-SERVICES -j KUBE-NODEPORTS\n-A KUBE-NODEPORTS -j KUBE-EXT-X\n-A KUBE-EXT-X -d",
        );
        assert_eq!(evidence(&[in_between]).reached_service_chains, 1);
    }

    /// As kube-proxy 1.35 writes them.
    const IPVS: &str = r#"*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port for masquerade purpose" -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES ! -s 10.128.0.0/16 -m comment --comment "Kubernetes service cluster ip + port for masquerade purpose" -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
COMMIT
"#;

    #[test]
    fn ipvs_modes_rules_are_not_taken_for_those_of_iptables_mode() {
        let counted = evidence(&[IPVS.to_owned()]);
        assert_eq!((counted.dispatch_jumps, counted.ipset_rules), (2, 3));
        assert!(!counted.is_at_work());
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
        assert_eq!(
            target(r#"-m comment --comment "ends in \\" -j DROP"#),
            Some("DROP"),
            "an escaped backslash escapes nothing"
        );
        assert_eq!(target("-m comment --comment -j -g DROP"), Some("DROP"));
        assert_eq!(target("-p tcp"), None);
    }
}
