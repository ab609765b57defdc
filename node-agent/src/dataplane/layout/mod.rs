//! The table `inet nftfleet`: its sets, chains and constant rules as plain values.
//!
//! There is no chain, rule or anonymous set per Service or endpoint. A Service is a few set elements, so a change costs the
//! same at any size (docs/DATAPLANE.md explains the table line by line):
//!
//! - `endpointsN` maps VIP and slot to an endpoint;
//! - `serviceN-C` holds the VIPs whose endpoints lie in slots 0 to C-1, and sends them to chain `slotsN-C`;
//! - `slotsN-C` draws a slot, and draws again when it is empty; its last rule takes slot 0, which is never empty while the
//!   Service has an endpoint, so no connection is refused by bad luck.

mod class;
pub mod names;
mod rules;

use ipnet::{Ipv4Net, Ipv6Net};
use nftfleet_domain::service::Family;

pub use class::{CLASSES, class_of, most_endpoints};
use rules::{VIP, cluster_ip, is_family, jump, masquerading, pick, reject_connection, services, slots};

use super::expression::{Field, Rule};

/// The table's name; its family is `inet`.
pub const TABLE: &str = "nftfleet";

/// The table's comment, the first thing that a person reads.
pub const TABLE_COMMENT: &str = "Services of Kubernetes: made by nftfleet-agent, do not edit";

/// Before kube-proxy's and iptables' -100, so that we decide first while the old rules still stand.
const DNAT_PRIORITY: i32 = -110;

/// Before kube-proxy's and iptables' 100, so that our mark is taken off before their masquerade rules look for it.
const SNAT_PRIORITY: i32 = 90;

/// What the table depends on besides Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutSettings {
    /// Pod addresses: who connects from elsewhere to a `ClusterIP` is masqueraded. None masquerades nobody.
    pub cluster_cidr4: Option<Ipv4Net>,
    /// The same for IPv6.
    pub cluster_cidr6: Option<Ipv6Net>,
    /// The packet mark's bit that carries "masquerade" from the first hook to the last, 0-31. kube-proxy's default is 14.
    pub masquerade_bit: u8,
}

/// A set or map of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// The family of its addresses.
    pub family: Family,
    /// The fields of its key, in order.
    pub key: Vec<Field>,
    /// The fields of its data; empty for a plain set.
    pub data: Vec<Field>,
    /// What it is for.
    pub comment: Option<String>,
}

/// Where a base chain hooks in; every one is of type nat with policy accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The hook's number (`NF_INET_*`).
    pub number: u32,
    /// Its priority.
    pub priority: i32,
}

/// A chain of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where it hooks in, if it does.
    pub hook: Option<Hook>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// The table without its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Sets and maps.
    pub sets: Vec<Set>,
    /// Chains; a chain stands before those that jump to it.
    pub chains: Vec<Chain>,
}

impl Layout {
    /// The table for these settings.
    pub fn new(settings: &LayoutSettings) -> Self {
        let mut sets = Vec::new();
        let mut chains = vec![reject_connection()];
        for family in Family::BOTH {
            sets.extend(sets_of(family));
            chains.extend(CLASSES.map(|class| slots(family, class)));
            chains.push(pick(family));
            chains.push(cluster_ip(family, settings));
            chains.push(services(family));
        }
        let dispatch = Family::BOTH.map(|family| {
            let mut expressions = is_family(family);
            expressions.push(jump(format!("services{}", names::digit(family))));
            Rule::new(expressions)
        });
        let hook = |number, priority| Some(Hook { number, priority });
        chains.extend([
            Chain {
                name: "prerouting".to_owned(),
                hook: hook(0, DNAT_PRIORITY),
                rules: dispatch.to_vec(),
            },
            Chain {
                name: "output".to_owned(),
                hook: hook(3, DNAT_PRIORITY),
                rules: dispatch.to_vec(),
            },
            Chain {
                name: "postrouting".to_owned(),
                hook: hook(4, SNAT_PRIORITY),
                rules: masquerading(settings),
            },
        ]);
        Self { sets, chains }
    }
}

fn sets_of(family: Family) -> Vec<Set> {
    let set = |name, key: &[Field], data: &[Field], comment: Option<&str>| Set {
        name,
        family,
        key: key.to_vec(),
        data: data.to_vec(),
        comment: comment.map(str::to_owned),
    };
    let mut sets = vec![
        set(
            names::endpoints(family),
            &[Field::Destination, Field::Protocol, Field::DestinationPort, Field::Slot],
            &[Field::Destination, Field::DestinationPort],
            Some("VIP and slot to endpoint"),
        ),
        set(
            names::cluster_ips(family),
            &[Field::Destination],
            &[],
            Some("all ClusterIPs"),
        ),
        set(
            names::hairpin(family),
            &[
                Field::Source,
                Field::Destination,
                Field::Protocol,
                Field::DestinationPort,
            ],
            &[],
            Some("local endpoints that reach themselves"),
        ),
    ];
    sets.extend(CLASSES.map(|class| {
        let comment = format!("VIPs with endpoints in slots 0 to {}", class - 1);
        set(names::service(family, class), &VIP, &[], Some(&comment))
    }));
    sets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::expression::{Expression, Verdict};

    #[test]
    fn every_target_of_a_verdict_stands_before_it() {
        let settings = LayoutSettings {
            cluster_cidr4: None,
            cluster_cidr6: None,
            masquerade_bit: 14,
        };
        let layout = Layout::new(&settings);
        let mut seen = std::collections::BTreeSet::new();
        for chain in &layout.chains {
            for rule in &chain.rules {
                for expression in &rule.expressions {
                    if let Expression::Verdict(Verdict::Jump(to) | Verdict::Goto(to)) = expression {
                        assert!(seen.contains(to), "{} jumps to {to}", chain.name);
                    }
                    if let Expression::Lookup { set, .. } = expression {
                        assert!(
                            layout.sets.iter().any(|s| s.name == *set),
                            "{} looks into {set}",
                            chain.name
                        );
                    }
                }
            }
            assert!(seen.insert(chain.name.clone()), "{} twice", chain.name);
        }
    }
}
