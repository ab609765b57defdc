//! Picking an endpoint for every connection anew.

use nftfleet_domain::service::Family;

use super::{chain, dnat, goto, is_family, jump, names, words_of_vip};
use crate::dataplane::expression::{Expression, Rule, load_fields, register_of_word};
use crate::dataplane::layout::class::draws;
use crate::dataplane::layout::sets::VIP;
use crate::dataplane::layout::{Chain, LOCAL_SLOTS};
use crate::dataplane::programmed::{Group, Which};

/// Draws a slot of so many, again and again if it is empty, and takes the first one in the end.
///
/// The draw is a chain of its own, jumped to as often as needed: for every element that is put into a map the kernel looks at
/// each rule that looks into it, so there must be few.
pub(super) fn chains(family: Family, which: Which, class: u16) -> Vec<Chain> {
    let group = Group::Class(class);
    let once = chain(names::draw(family, which, group), vec![draw(family, which, class)]);
    let mut rules = vec![Rule::new(vec![jump(once.name.clone())]); draws(class)];
    rules.push(Rule::new(vec![goto(names::first_slot(family, which))]));
    vec![once, chain(names::picking(family, which, group), rules)]
}

/// Takes the first slot, which is filled as long as there is an endpoint.
pub(in super::super) fn first(family: Family, which: Which) -> Chain {
    chain(names::first_slot(family, which), vec![draw(family, which, 1)])
}

fn draw(family: Family, which: Which, class: u16) -> Rule {
    let offset = match which {
        Which::All => 0,
        Which::Local => LOCAL_SLOTS,
    };
    let mut expressions = is_family(family);
    expressions.extend(load_fields(family, &VIP));
    expressions.push(Expression::Random {
        modulus: u32::from(class),
        offset,
        register: register_of_word(words_of_vip(family)),
    });
    expressions.extend(dnat(family, names::endpoints(family)));
    Rule::new(expressions)
}
