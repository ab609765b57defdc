//! The base chains.

use nftfleet_domain::service::Family;

use super::{TICKETS, VIP, is_family, is_in, jump, names, set_priority};
use crate::dataplane::desired::Route;
use crate::dataplane::expression::{Comparison, CtKey, Expression, Field, MetaKey, Rule, Verdict, load_fields};
use crate::dataplane::layout::LayoutSettings;

/// `IPS_DST_NAT` of the kernel's connection tracking: the connection's destination is translated.
const IPS_DST_NAT: u32 = 0x20;

/// What both ranges of tickets have in common.
const TICKET_MASK: u32 = 0xfffe_0000;

pub(in super::super) fn prerouting() -> Vec<Rule> {
    let rule = |family| {
        let mut expressions = is_family(family);
        expressions.push(jump(names::of("services", family)));
        Rule::new(expressions)
    };
    Family::BOTH.map(rule).to_vec()
}

/// The node's own connections. One to its own node port without endpoints goes on to the closed port, which answers by
/// itself: a refusal in this hook would be EPERM to UDP.
pub(in super::super) fn output() -> Vec<Rule> {
    let closed = |family| {
        let mut expressions = is_family(family);
        expressions.extend(is_in(family, &[Field::Destination], names::nodeport_ips(family)));
        expressions.extend(is_in(family, &VIP, names::route(family, Route::NoEndpoints)));
        expressions.push(Expression::Verdict(Verdict::Accept));
        Rule::with_comment(expressions, "own address: the closed port answers by itself")
    };
    let mut rules = Family::BOTH.map(closed).to_vec();
    rules.extend(prerouting());
    rules
}

pub(in super::super) fn postrouting(settings: LayoutSettings) -> Vec<Rule> {
    let mut ticket = load_masked(MetaKey::Priority, TICKET_MASK).to_vec();
    ticket.push(Expression::Compare {
        register: 1,
        comparison: Comparison::Equal,
        value: TICKETS[0].to_ne_bytes().to_vec(),
    });
    ticket.extend(set_priority(0));
    let bit = 1u32 << settings.masquerade_bit;
    let mut marked = load_masked(MetaKey::Mark, bit).to_vec();
    marked.push(is_not_zero());
    marked.extend(load_masked(MetaKey::Mark, !bit));
    marked.push(Expression::SetMeta {
        key: MetaKey::Mark,
        register: 1,
    });
    marked.push(Expression::MasqueradeFullyRandom);
    let mut rules = vec![Rule::new(ticket), Rule::new(marked)];
    for family in Family::BOTH {
        let mut expressions = vec![
            Expression::LoadCt {
                key: CtKey::Status,
                register: 1,
            },
            masked(IPS_DST_NAT),
            is_not_zero(),
        ];
        expressions.extend(is_family(family));
        let fields = [Field::Source, VIP[0], VIP[1], VIP[2]];
        expressions.extend(load_fields(family, &fields));
        expressions.push(super::lookup(names::hairpin(family), None));
        expressions.push(Expression::MasqueradeFullyRandom);
        rules.push(Rule::new(expressions));
    }
    rules
}

fn load_masked(key: MetaKey, mask: u32) -> [Expression; 2] {
    [Expression::LoadMeta { key, register: 1 }, masked(mask)]
}

fn masked(mask: u32) -> Expression {
    Expression::Bitwise {
        register: 1,
        mask: mask.to_ne_bytes().to_vec(),
        xor: vec![0; 4],
    }
}

fn is_not_zero() -> Expression {
    Expression::Compare {
        register: 1,
        comparison: Comparison::NotEqual,
        value: vec![0; 4],
    }
}
