//! The table `inet nftfleet`: its sets, chains and constant rules as plain values.
//!
//! There is no chain, rule or anonymous set per Service or endpoint. A Service is a few set elements, so a change costs the
//! same at any size (docs/DATAPLANE.md explains the table line by line):
//!
//! - `endpointsN` maps VIP and slot to an endpoint;
//! - `serviceN-C` holds the VIPs whose endpoints lie in slots 0 to C-1, and sends them to chain `slotsN-C`;
//! - `slotsN-C` draws a slot, and draws again when it is empty; its last rule takes slot 0, which is never empty while the
//!   Service has an endpoint, so no connection is refused by bad luck.

use ipnet::{Ipv4Net, Ipv6Net};
use nftfleet_domain::service::Family;

use super::expression::{
    Base, Comparison, CtKey, Expression, Field, MetaKey, Rule, Verdict, load_fields, register_of_word,
};

/// The table's name; its family is `inet`.
pub const TABLE: &str = "nftfleet";

/// The table's comment, the first thing that a person reads.
pub const TABLE_COMMENT: &str = "Services of Kubernetes: made by nftfleet-agent, do not edit";

/// Before kube-proxy's and iptables' -100, so that we decide first while the old rules still stand.
const DNAT_PRIORITY: i32 = -110;

/// Before kube-proxy's and iptables' 100, so that our mark is taken off before their masquerade rules look for it.
const SNAT_PRIORITY: i32 = 90;

/// How many endpoints a class has slots for. Exact for small numbers, then in steps of a third to a half, so that at least
/// two thirds of the slots are filled.
pub const CLASSES: [u16; 30] = [
    1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
    6144, 8192, 12288, 16384,
];

/// Up to here a class has exactly as many slots as endpoints: a draw misses only while a commit goes by.
const LAST_EXACT_CLASS: u16 = 8;

/// The smallest class that has room for `endpoints`; none for no endpoint, and the largest for more than it holds.
pub fn class_of(endpoints: usize) -> Option<u16> {
    if endpoints == 0 {
        return None;
    }
    CLASSES
        .into_iter()
        .find(|class| usize::from(*class) >= endpoints)
        .or(CLASSES.last().copied())
}

/// How many endpoints of one VIP can be programmed.
pub fn most_endpoints() -> usize {
    CLASSES.last().map_or(0, |class| usize::from(*class))
}

/// How often a class draws before it takes slot 0. With two thirds filled, 12 draws leave 2 in a million to slot 0, too few
/// to make the spread uneven.
fn draws(class: u16) -> usize {
    match class {
        1 => 1,
        _ if class <= LAST_EXACT_CLASS => 2,
        _ => 12,
    }
}

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

/// The names of a family's sets and chains.
pub mod names {
    use super::Family;

    /// `4` or `6`.
    pub fn digit(family: Family) -> char {
        match family {
            Family::V4 => '4',
            Family::V6 => '6',
        }
    }

    /// The map from VIP and slot to endpoint.
    pub fn endpoints(family: Family) -> String {
        format!("endpoints{}", digit(family))
    }

    /// The set of all `ClusterIP`s.
    pub fn cluster_ips(family: Family) -> String {
        format!("cluster-ips{}", digit(family))
    }

    /// The set of local endpoints that may reach themselves.
    pub fn hairpin(family: Family) -> String {
        format!("hairpin{}", digit(family))
    }

    /// The set of a class's VIPs.
    pub fn service(family: Family, class: u16) -> String {
        format!("service{}-{class}", digit(family))
    }

    /// The chain that draws a slot of a class.
    pub fn slots(family: Family, class: u16) -> String {
        format!("slots{}-{class}", digit(family))
    }
}

/// The fields of a VIP.
const VIP: [Field; 3] = [Field::Destination, Field::Protocol, Field::DestinationPort];

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

/// TCP by reset: an ICMP error costs IPv6 clients a second.
fn reject_connection() -> Chain {
    let tcp = vec![
        Expression::LoadMeta {
            key: MetaKey::Protocol,
            register: 1,
        },
        Expression::Compare {
            register: 1,
            comparison: Comparison::Equal,
            value: vec![6],
        },
        Expression::RejectTcpReset,
    ];
    Chain {
        name: "reject-connection".to_owned(),
        hook: None,
        rules: vec![Rule::new(tcp), Rule::new(vec![Expression::RejectPortUnreachable])],
    }
}

fn slots(family: Family, class: u16) -> Chain {
    let draw = |modulus: u32| {
        let mut expressions = is_family(family);
        expressions.extend(load_fields(family, &VIP));
        let slot = VIP.iter().map(|field| field.words(family)).sum();
        expressions.extend([
            Expression::Random {
                modulus,
                register: register_of_word(slot),
            },
            Expression::Lookup {
                register: 1,
                set: names::endpoints(family),
                into: Some(1),
            },
            Expression::Dnat {
                family,
                address: 1,
                port: register_of_word(Field::Destination.words(family)),
            },
        ]);
        Rule::new(expressions)
    };
    let mut rules = vec![draw(u32::from(class)); draws(class)];
    rules.push(draw(1));
    Chain {
        name: names::slots(family, class),
        hook: None,
        rules,
    }
}

fn pick(family: Family) -> Chain {
    let rules = CLASSES.map(|class| {
        let mut expressions = is_family(family);
        expressions.extend(load_fields(family, &VIP));
        expressions.push(Expression::Lookup {
            register: 1,
            set: names::service(family, class),
            into: None,
        });
        expressions.push(goto(names::slots(family, class)));
        Rule::new(expressions)
    });
    Chain {
        name: format!("pick{}", names::digit(family)),
        hook: None,
        rules: rules.to_vec(),
    }
}

fn cluster_ip(family: Family, settings: &LayoutSettings) -> Chain {
    let pick = || jump(format!("pick{}", names::digit(family)));
    let mut rules = Vec::new();
    if let Some(mut expressions) = is_not_from_pods(family, settings) {
        expressions.extend(set_mark(settings));
        rules.push(Rule::new(expressions));
    }
    rules.extend([
        Rule::new(vec![pick()]),
        Rule::with_comment(vec![pick()], "second look: a commit fell between two lookups"),
        Rule::new(vec![goto("reject-connection".to_owned())]),
    ]);
    Chain {
        name: format!("cluster-ip{}", names::digit(family)),
        hook: None,
        rules,
    }
}

fn services(family: Family) -> Chain {
    let mut expressions = is_family(family);
    expressions.extend(load_fields(family, &[Field::Destination]));
    expressions.push(Expression::Lookup {
        register: 1,
        set: names::cluster_ips(family),
        into: None,
    });
    expressions.push(goto(format!("cluster-ip{}", names::digit(family))));
    Chain {
        name: format!("services{}", names::digit(family)),
        hook: None,
        rules: vec![Rule::new(expressions)],
    }
}

fn masquerading(settings: &LayoutSettings) -> Vec<Rule> {
    let bit = 1u32 << settings.masquerade_bit;
    let zero = vec![0; 4];
    let load_mark = Expression::LoadMeta {
        key: MetaKey::Mark,
        register: 1,
    };
    let marked = vec![
        load_mark.clone(),
        Expression::Bitwise {
            register: 1,
            mask: bit.to_ne_bytes().to_vec(),
            xor: zero.clone(),
        },
        Expression::Compare {
            register: 1,
            comparison: Comparison::NotEqual,
            value: zero.clone(),
        },
        load_mark,
        Expression::Bitwise {
            register: 1,
            mask: (!bit).to_ne_bytes().to_vec(),
            xor: zero.clone(),
        },
        Expression::SetMeta {
            key: MetaKey::Mark,
            register: 1,
        },
        Expression::MasqueradeFullyRandom,
    ];
    let mut rules = vec![Rule::new(marked)];
    for family in Family::BOTH {
        let mut expressions = vec![
            Expression::LoadCt {
                key: CtKey::Status,
                register: 1,
            },
            Expression::Bitwise {
                register: 1,
                mask: IPS_DST_NAT.to_ne_bytes().to_vec(),
                xor: zero.clone(),
            },
            Expression::Compare {
                register: 1,
                comparison: Comparison::NotEqual,
                value: zero.clone(),
            },
        ];
        expressions.extend(is_family(family));
        let fields = [
            Field::Source,
            Field::Destination,
            Field::Protocol,
            Field::DestinationPort,
        ];
        expressions.extend(load_fields(family, &fields));
        expressions.push(Expression::Lookup {
            register: 1,
            set: names::hairpin(family),
            into: None,
        });
        expressions.push(Expression::MasqueradeFullyRandom);
        rules.push(Rule::new(expressions));
    }
    rules
}

/// `IPS_DST_NAT` of the kernel's connection tracking: the connection's destination is translated.
const IPS_DST_NAT: u32 = 0x20;

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
fn is_family(family: Family) -> Vec<Expression> {
    let number = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    vec![
        Expression::LoadMeta {
            key: MetaKey::Family,
            register: 1,
        },
        Expression::Compare {
            register: 1,
            comparison: Comparison::Equal,
            value: vec![number],
        },
    ]
}

/// Matches sources outside the cluster CIDR, as nft writes it: whole bytes are loaded and compared, other prefixes masked.
fn is_not_from_pods(family: Family, settings: &LayoutSettings) -> Option<Vec<Expression>> {
    let (network, prefix, offset) = match family {
        Family::V4 => {
            let net = settings.cluster_cidr4?;
            (
                net.network().octets().to_vec(),
                net.prefix_len(),
                Field::Source.offset(family),
            )
        }
        Family::V6 => {
            let net = settings.cluster_cidr6?;
            (
                net.network().octets().to_vec(),
                net.prefix_len(),
                Field::Source.offset(family),
            )
        }
    };
    if prefix == 0 {
        return None;
    }
    let whole = usize::from(prefix / 8);
    let mut expressions = is_family(family);
    if prefix.is_multiple_of(8) {
        let length = u32::from(prefix / 8);
        expressions.push(Expression::LoadPayload {
            base: Base::Network,
            offset,
            length,
            register: 1,
        });
        let value = network[..whole].to_vec();
        expressions.push(Expression::Compare {
            register: 1,
            comparison: Comparison::NotEqual,
            value,
        });
    } else {
        let mask: Vec<u8> = (0..network.len())
            .map(|byte| match byte.cmp(&whole) {
                std::cmp::Ordering::Less => 0xff,
                std::cmp::Ordering::Equal => !(0xff >> (prefix % 8)),
                std::cmp::Ordering::Greater => 0,
            })
            .collect();
        let length = if family == Family::V4 { 4 } else { 16 };
        expressions.push(Expression::LoadPayload {
            base: Base::Network,
            offset,
            length,
            register: 1,
        });
        expressions.push(Expression::Bitwise {
            register: 1,
            xor: vec![0; mask.len()],
            mask,
        });
        expressions.push(Expression::Compare {
            register: 1,
            comparison: Comparison::NotEqual,
            value: network,
        });
    }
    Some(expressions)
}

fn set_mark(settings: &LayoutSettings) -> [Expression; 3] {
    let bit = 1u32 << settings.masquerade_bit;
    [
        Expression::LoadMeta {
            key: MetaKey::Mark,
            register: 1,
        },
        Expression::Bitwise {
            register: 1,
            mask: (!bit).to_ne_bytes().to_vec(),
            xor: bit.to_ne_bytes().to_vec(),
        },
        Expression::SetMeta {
            key: MetaKey::Mark,
            register: 1,
        },
    ]
}

fn jump(chain: String) -> Expression {
    Expression::Verdict(Verdict::Jump(chain))
}

fn goto(chain: String) -> Expression {
    Expression::Verdict(Verdict::Goto(chain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_room_and_is_at_least_two_thirds_full() {
        assert_eq!(class_of(0), None);
        for endpoints in 1..=most_endpoints() {
            let class = usize::from(class_of(endpoints).unwrap());
            assert!(class >= endpoints, "{endpoints}");
            assert!(endpoints * 3 >= class * 2, "{endpoints} in {class}");
        }
    }

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
