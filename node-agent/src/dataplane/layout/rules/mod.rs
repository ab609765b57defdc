//! The table's chains, rule by rule.

mod dispatch;
mod hooks;
mod slots;
mod sticky;

use nftfleet_domain::service::Family;

pub(super) use dispatch::{dispatch, pick};
pub(super) use hooks::{output, postrouting, prerouting};
pub(super) use slots::first as first_slot;
pub(super) use sticky::SEED;
pub use sticky::TICKETS;

use super::sets::VIP;
use super::{Chain, LayoutSettings, names};
use crate::dataplane::expression::{
    Comparison, Expression, Field, MetaKey, Rule, Verdict, load_fields, register_of_word,
};
use crate::dataplane::programmed::{Group, Which};

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
    chain(
        REJECT.to_owned(),
        vec![Rule::new(tcp), Rule::new(vec![Expression::RejectPortUnreachable])],
    )
}

/// The chain that refuses.
const REJECT: &str = "reject-connection";

/// The chain that picks an endpoint of a group's VIPs, last, and those that it jumps to.
pub(super) fn picking(family: Family, which: Which, group: Group) -> Vec<Chain> {
    match group {
        Group::Class(class) => slots::chains(family, which, class),
        Group::Sticky { timeout, class } => sticky::chains(family, which, timeout, class),
    }
}

fn chain(name: String, rules: Vec<Rule>) -> Chain {
    Chain {
        name,
        hook: None,
        rules,
    }
}

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

/// Goes on if these fields are in the set.
fn is_in(family: Family, fields: &[Field], set: String) -> Vec<Expression> {
    let mut expressions = load_fields(family, fields);
    expressions.push(lookup(set, None));
    expressions
}

fn lookup(set: String, into: Option<u32>) -> Expression {
    Expression::Lookup {
        register: 1,
        set,
        into,
        inverted: false,
    }
}

/// Sends the connection to the endpoint that a map gives for what has been loaded.
fn dnat(family: Family, map: String) -> [Expression; 2] {
    [
        lookup(map, Some(1)),
        Expression::Dnat {
            family,
            address: 1,
            port: register_of_word(Field::Destination.words(family)),
        },
    ]
}

/// How many words a VIP takes in a key.
fn words_of_vip(family: Family) -> u32 {
    VIP.iter().map(|field| field.words(family)).sum()
}

fn set_mark(settings: LayoutSettings) -> [Expression; 3] {
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

/// Sets the packet's priority, in which what a rule found out is kept for the next.
fn set_priority(value: u32) -> [Expression; 2] {
    [
        Expression::Immediate {
            register: 1,
            value: value.to_ne_bytes().to_vec(),
        },
        Expression::SetMeta {
            key: MetaKey::Priority,
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

fn drop_packet() -> Expression {
    Expression::Verdict(Verdict::Drop)
}
