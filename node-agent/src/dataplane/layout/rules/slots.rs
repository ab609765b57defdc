//! Picking an endpoint for every connection anew.

use nftfleet_domain::service::Family;

use super::{dnat, is_family, names, words_of_vip};
use crate::dataplane::expression::{Expression, Rule, load_fields, register_of_word};
use crate::dataplane::layout::LOCAL_SLOTS;
use crate::dataplane::layout::class::draws;
use crate::dataplane::layout::sets::VIP;
use crate::dataplane::programmed::Which;

/// Draws a slot of so many, again and again if it is empty, and takes the first one in the end.
pub(super) fn rules(family: Family, which: Which, class: u16) -> Vec<Rule> {
    let offset = match which {
        Which::All => 0,
        Which::Local => LOCAL_SLOTS,
    };
    let draw = |modulus: u32| {
        let mut expressions = is_family(family);
        expressions.extend(load_fields(family, &VIP));
        expressions.push(Expression::Random {
            modulus,
            offset,
            register: register_of_word(words_of_vip(family)),
        });
        expressions.extend(dnat(family, names::endpoints(family)));
        Rule::new(expressions)
    };
    let mut rules = vec![draw(u32::from(class)); draws(class)];
    rules.push(draw(1));
    rules
}
