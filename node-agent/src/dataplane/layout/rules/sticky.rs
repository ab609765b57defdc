//! Sending a client that comes back to the endpoint that it had.
//!
//! The packet's priority carries what one rule finds out to the next, because it is the only such place that nft 1.0.6 can
//! print, parse and load again: first the number of the Service's port, then the client's ticket.

use nftfleet_domain::service::Family;

use super::{chain, dnat, is_family, jump, lookup, names, set_priority};
use crate::dataplane::expression::{
    Base, DynamicOperation, Expression, Field, MetaKey, Rule, load_fields, register_of_word,
};
use crate::dataplane::layout::Chain;
use crate::dataplane::layout::class::{PLAIN_DRAWS, TICKET_DRAWS};
use crate::dataplane::layout::sets::VIP;
use crate::dataplane::place::LAST_RESORT;
use crate::dataplane::programmed::{Group, Which};

/// Where the tickets of all lists and of local lists begin: numbers that nobody else would use as a priority ("NF", "NG").
/// Both together are `4e46:0000/15`, which is taken off at the end.
pub const TICKETS: [u32; 2] = [0x4e46_0000, 0x4e47_0000];

/// Any number: the hash is no secret, and a node's clients should meet the same one after a restart.
pub const SEED: u32 = 0x6e66_7466;

/// Finds the client's ticket or draws one, and sends it where the ticket says; if nobody holds it any more, draws anew.
///
/// What is done again and again is a chain of its own, as in [`super::slots`].
pub(super) fn chains(family: Family, which: Which, timeout: u32, class: u16) -> Vec<Chain> {
    let offset = match which {
        Which::All => TICKETS[0],
        Which::Local => TICKETS[1],
    };
    let draw = |register, modulus| Expression::Random {
        modulus,
        offset,
        register,
    };
    let number = to_priority(family, load_fields(family, &VIP), names::affinity_ids(family, which));
    let (mut update, mut forget) = (is_family(family), is_family(family));
    update.extend(client(family, 2));
    update.push(draw(2, u32::from(class)));
    update.push(Expression::Dynamic {
        operation: DynamicOperation::Update,
        set: names::clients(family),
        key: 1,
        data: 2,
        timeout: u64::from(timeout) * 1000,
    });
    forget.extend(client(family, 2));
    forget.push(Expression::Immediate {
        register: 2,
        value: vec![0; 4],
    });
    forget.push(Expression::Dynamic {
        operation: DynamicOperation::Delete,
        set: names::clients(family),
        key: 1,
        data: 2,
        timeout: 0,
    });
    let ticket = to_priority(family, client(family, 14), names::clients(family));
    let mut send = is_family(family);
    send.extend(load_fields(family, &[VIP[0], VIP[1], VIP[2], Field::Priority]));
    send.extend(dnat(family, names::sticky(family)));

    // The map of clients is full, or every ticket drawn was free: the connection is served without being remembered.
    let set_priority_to_draw = vec![
        draw(1, u32::from(class)),
        Expression::SetMeta {
            key: MetaKey::Priority,
            register: 1,
        },
    ];
    let rules = |of: &[&Vec<Expression>]| of.iter().map(|rule| Rule::new((*rule).clone())).collect::<Vec<_>>();
    let group = Group::Sticky { timeout, class };
    let another = chain(
        names::another_ticket(family, which, timeout, class),
        rules(&[&number, &forget, &update, &ticket, &send]),
    );
    let unremembered = chain(
        names::draw(family, which, group),
        rules(&[&set_priority_to_draw, &send]),
    );
    let again = |chain: &Chain, times| vec![Rule::new(vec![jump(chain.name.clone())]); times];
    let mut picking = rules(&[&number, &update, &ticket, &send]);
    picking.extend(again(&another, TICKET_DRAWS - 1));
    picking.extend(again(&unremembered, PLAIN_DRAWS));
    picking.extend(rules(&[
        &set_priority(offset + u32::from(LAST_RESORT)).to_vec(),
        &send,
        &set_priority(0).to_vec(),
    ]));
    let picking = chain(names::picking(family, which, group), picking);
    vec![another, unremembered, picking]
}

/// Sets the packet's priority to what a map holds for the fields that are loaded.
fn to_priority(family: Family, key: Vec<Expression>, map: String) -> Vec<Expression> {
    let mut expressions = is_family(family);
    expressions.extend(key);
    expressions.push(lookup(map, Some(1)));
    expressions.push(Expression::SetMeta {
        key: MetaKey::Priority,
        register: 1,
    });
    expressions
}

/// Loads the client and the number of the Service's port. `scratch` is the register that nft uses for an address to hash.
fn client(family: Family, scratch: u32) -> Vec<Expression> {
    let mut expressions = match family {
        Family::V4 => load_fields(family, &[Field::Source]),
        Family::V6 => vec![
            Expression::LoadPayload {
                base: Base::Network,
                offset: Field::Source.offset(family),
                length: 16,
                register: scratch,
            },
            Expression::Hash {
                from: scratch,
                length: 16,
                modulus: u32::MAX,
                seed: SEED,
                register: 1,
            },
        ],
    };
    expressions.push(Expression::LoadMeta {
        key: MetaKey::Priority,
        register: register_of_word(1),
    });
    expressions
}
