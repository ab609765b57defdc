//! The table's chains, rule by rule.

use nftfleet_domain::service::Family;

use super::class::{CLASSES, draws};
use super::{Chain, LayoutSettings, names};
use crate::dataplane::expression::{
    Base, Comparison, CtKey, Expression, Field, MetaKey, Rule, Verdict, load_fields, register_of_word,
};

/// The fields of a VIP.
pub(super) const VIP: [Field; 3] = [Field::Destination, Field::Protocol, Field::DestinationPort];

/// TCP by reset: an ICMP error costs IPv6 clients a second.
pub(super) fn reject_connection() -> Chain {
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

pub(super) fn slots(family: Family, class: u16) -> Chain {
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

pub(super) fn pick(family: Family) -> Chain {
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

pub(super) fn cluster_ip(family: Family, settings: &LayoutSettings) -> Chain {
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

pub(super) fn services(family: Family) -> Chain {
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

pub(super) fn masquerading(settings: &LayoutSettings) -> Vec<Rule> {
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
pub(super) fn is_family(family: Family) -> Vec<Expression> {
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

pub(super) fn jump(chain: String) -> Expression {
    Expression::Verdict(Verdict::Jump(chain))
}

fn goto(chain: String) -> Expression {
    Expression::Verdict(Verdict::Goto(chain))
}
