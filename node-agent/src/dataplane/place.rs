//! Where endpoints stand: slots, which are drawn for every connection, and tickets, which clients keep.

use std::collections::BTreeMap;

use nftfleet_domain::service::Endpoint;

use super::layout::CLASSES;

/// The endpoints' slots: dense from 0, with as few moves as can be. A removed endpoint's slot is taken by a new one, else by
/// the last. `wanted` is sorted.
pub fn slots(wanted: &[Endpoint], held: &[Option<Endpoint>]) -> Vec<Endpoint> {
    let mut homeless = vec![true; wanted.len()];
    let mut placed: Vec<Option<Endpoint>> = vec![None; wanted.len()];
    for (place, endpoint) in placed.iter_mut().zip(held) {
        if let Some(endpoint) = endpoint
            && let Ok(found) = wanted.binary_search(endpoint)
            && std::mem::take(&mut homeless[found])
        {
            *place = Some(*endpoint);
        }
    }
    let mut rest = wanted.iter().zip(homeless).filter(|(_, homeless)| *homeless);
    let fill = |place: Option<Endpoint>| place.or_else(|| rest.next().map(|(endpoint, _)| *endpoint));
    placed.into_iter().filter_map(fill).collect()
}

/// The ticket that no client is ever given: who has drawn in vain goes where it says.
pub const LAST_RESORT: u16 = u16::MAX;

/// The endpoints' tickets, and from how many new clients draw.
///
/// An endpoint keeps every ticket that it has while it is there, since clients hold them: none of them is ever sent
/// elsewhere because others came or went. Every endpoint has one among those that are drawn, at least half of which are
/// held. A ticket whose endpoint has gone is `burnt`, oldest first: clients still hold it, and would all go to whoever got
/// it, so it is left free while there is room. After much coming and going an endpoint may have two tickets, and so more of
/// the new clients, until it goes. `wanted` is sorted and not empty; `classes` are those that are drawn from now, which stay
/// as long as they can.
pub fn tickets(
    wanted: &[Endpoint],
    held: &BTreeMap<u16, Endpoint>,
    burnt: &[u16],
    classes: &[u16],
) -> (BTreeMap<u16, Endpoint>, u16) {
    let (kept, going): (Vec<_>, Vec<_>) = held
        .iter()
        .filter(|(ticket, _)| **ticket != LAST_RESORT)
        .partition(|(_, endpoint)| wanted.binary_search(endpoint).is_ok());
    let mut placed: BTreeMap<u16, Endpoint> = kept.into_iter().map(|(n, endpoint)| (*n, *endpoint)).collect();
    let burnt = burnt.iter().filter(|n| !placed.contains_key(n)).copied();
    let burnt: Vec<u16> = burnt.chain(going.into_iter().map(|(n, _)| *n)).collect();
    let fits = |class: u16, is_clean: bool| {
        let unusable = burnt.iter().filter(|n| is_clean && **n < class).count();
        let needed = placed.range(..class).count() + homeless(wanted, &placed, class).len() + unusable;
        needed <= usize::from(class)
    };
    let half_full = |class: &u16| usize::from(*class) <= 2 * wanted.len();
    let serves = |class: &u16| half_full(class) && homeless(wanted, &placed, *class).is_empty();
    let present = classes.iter().copied().find(serves);
    let mut roomy = CLASSES.into_iter().filter(|class| usize::from(*class) >= wanted.len());
    let clean = roomy.clone().take_while(half_full).find(|class| fits(*class, true));
    // The largest class has room for every endpoint that is programmed, if not always for all their old tickets.
    let largest = CLASSES.last().copied().unwrap_or(1);
    let class = present
        .or(clean)
        .or_else(|| roomy.find(|class| fits(*class, false)))
        .unwrap_or(largest);
    let is_free = |n: &u16| !placed.contains_key(n);
    let never_held = (0..class).filter(is_free).filter(|n| !burnt.contains(n));
    let free: Vec<u16> = never_held
        .chain(burnt.iter().copied().filter(|n| *n < class).filter(is_free))
        .collect();
    let homeless = homeless(wanted, &placed, class);
    placed.extend(free.into_iter().zip(homeless));
    placed.extend(wanted.first().map(|endpoint| (LAST_RESORT, *endpoint)));
    (placed, class)
}

/// The endpoints without a ticket that is drawn.
fn homeless(wanted: &[Endpoint], placed: &BTreeMap<u16, Endpoint>, class: u16) -> Vec<Endpoint> {
    let mut homeless = vec![true; wanted.len()];
    for endpoint in placed.range(..class).map(|(_, endpoint)| endpoint) {
        if let Ok(found) = wanted.binary_search(endpoint) {
            homeless[found] = false;
        }
    }
    let without = wanted.iter().zip(homeless).filter(|(_, homeless)| *homeless);
    without.map(|(endpoint, _)| *endpoint).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use super::*;
    use proptest::prelude::*;

    fn endpoint(n: u16) -> Endpoint {
        let [high, low] = n.to_be_bytes();
        Endpoint {
            address: IpAddr::from([10, 128, high, low]),
            port: 8080,
        }
    }

    fn endpoints(numbers: &BTreeSet<u16>) -> Vec<Endpoint> {
        numbers.iter().map(|n| endpoint(*n)).collect()
    }

    #[test]
    fn a_replaced_endpoint_leaves_its_slot_to_the_new_one() {
        let held: Vec<_> = (0..5).map(|n| Some(endpoint(n))).collect();
        let wanted = endpoints(&[0, 1, 3, 4, 9].into());
        assert_eq!(slots(&wanted, &held), [0, 1, 9, 3, 4].map(endpoint));
    }

    #[test]
    fn a_removed_endpoint_leaves_its_slot_to_the_last() {
        let held: Vec<_> = (0..5).map(|n| Some(endpoint(n))).collect();
        let wanted = endpoints(&[0, 2, 3, 4].into());
        assert_eq!(slots(&wanted, &held), [0, 4, 2, 3].map(endpoint));
    }

    fn numbers(placed: &BTreeMap<u16, Endpoint>) -> Vec<(u16, u8)> {
        let last = |endpoint: &Endpoint| match endpoint.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => 0,
        };
        let drawn = placed.iter().filter(|(ticket, _)| **ticket != LAST_RESORT);
        drawn.map(|(ticket, endpoint)| (*ticket, last(endpoint))).collect()
    }

    #[test]
    fn tickets_stay_with_their_endpoints() {
        let (held, class) = tickets(&endpoints(&(0..10).collect()), &BTreeMap::new(), &[], &[]);
        assert_eq!(class, 12);
        let (after, class) = tickets(&endpoints(&[5, 7].into()), &held, &[], &[]);
        // No class that is half full has a ticket for both that nobody else held: the oldest are taken.
        assert_eq!(class, 2);
        assert_eq!(numbers(&after), [(0, 5), (1, 7), (5, 5), (7, 7)]);
    }

    #[test]
    fn a_ticket_whose_endpoint_went_is_left_free_while_there_is_room() {
        let (held, class) = tickets(&endpoints(&(0..4).collect()), &BTreeMap::new(), &[], &[]);
        assert_eq!(class, 4);
        let (held, class) = tickets(&endpoints(&[1, 2, 3].into()), &held, &[], &[]);
        assert_eq!((numbers(&held), class), (vec![(1, 1), (2, 2), (3, 3)], 4));
        let (held, class) = tickets(&endpoints(&[1, 2, 3, 9].into()), &held, &[0], &[]);
        assert_eq!((numbers(&held), class), (vec![(1, 1), (2, 2), (3, 3), (4, 9)], 5));
    }

    #[test]
    fn an_endpoint_that_is_replaced_again_and_again_takes_the_oldest_ticket() {
        let (held, _) = tickets(&[endpoint(1)], &BTreeMap::new(), &[], &[]);
        let (held, class) = tickets(&[endpoint(2)], &held, &[], &[]);
        assert_eq!((numbers(&held), class), (vec![(1, 2)], 2));
        let (held, class) = tickets(&[endpoint(3)], &held, &[0], &[]);
        assert_eq!((numbers(&held), class), (vec![(0, 3)], 1));
        assert_eq!(held[&LAST_RESORT], endpoint(3));
    }

    proptest! {
        #[test]
        fn slots_hold_each_endpoint_once_and_move_few(
            before in proptest::collection::btree_set(0u16..60, 0..40),
            after in proptest::collection::btree_set(0u16..60, 0..40),
        ) {
            let held: Vec<Option<Endpoint>> = slots(&endpoints(&before), &[]).into_iter().map(Some).collect();
            let placed = slots(&endpoints(&after), &held);
            let found: BTreeSet<_> = placed.iter().copied().collect();
            prop_assert_eq!(found, endpoints(&after).into_iter().collect());
            prop_assert_eq!(placed.len(), after.len());
            let moved = placed.iter().zip(&held).filter(|(new, old)| Some(**new) != **old).count();
            let gone = before.difference(&after).count();
            prop_assert!(moved <= gone, "{} slots written anew for {} that went", moved, gone);
        }

        #[test]
        fn no_client_is_sent_elsewhere_and_every_endpoint_is_drawn(
            history in proptest::collection::vec(proptest::collection::btree_set(0u16..80, 1..60), 1..12),
        ) {
            let (mut held, mut burnt, mut classes) = (BTreeMap::new(), Vec::new(), vec![]);
            for numbers in history {
                let wanted = endpoints(&numbers);
                let (placed, class) = tickets(&wanted, &held, &burnt, &classes);
                for (ticket, endpoint) in &held {
                    if *ticket != LAST_RESORT && wanted.contains(endpoint) {
                        prop_assert_eq!(placed.get(ticket), Some(endpoint));
                    }
                }
                let drawn: Vec<_> = placed.range(..class).map(|(_, endpoint)| *endpoint).collect();
                prop_assert_eq!(drawn.iter().copied().collect::<BTreeSet<_>>(), wanted.iter().copied().collect());
                prop_assert!(placed.contains_key(&LAST_RESORT));
                prop_assert!(drawn.len() * 2 >= usize::from(class), "{} of {}", drawn.len(), class);
                prop_assert!(placed.values().all(|endpoint| wanted.contains(endpoint)));
                burnt.extend(held.keys().filter(|ticket| !placed.contains_key(ticket)));
                burnt.retain(|ticket| !placed.contains_key(ticket));
                classes = vec![class];
                // A second look, and one after a restart, which knows of no burnt tickets, change nothing.
                for burnt in [burnt.as_slice(), &[]] {
                    let (again, same) = tickets(&wanted, &placed, burnt, &classes);
                    prop_assert_eq!((&again, same), (&placed, class));
                }
                held = placed;
            }
        }
    }
}
