//! Where endpoints stand: slots, which are drawn for every connection, and tickets, which clients keep.

use std::collections::BTreeMap;

use nftfleet_domain::service::Endpoint;

use super::layout::{CLASSES, class_of};

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

/// The endpoints' tickets, and from how many new clients draw.
///
/// An endpoint keeps every ticket that it has while it is there, since clients hold them: none of them is ever sent
/// elsewhere because others came or went. Every endpoint has one among those that are drawn, at least two thirds of which
/// are held, and ticket 0 always is: it is taken when all draws have missed. After much coming and going an endpoint may
/// have two, and so more of the new clients, until it goes.
pub fn tickets(wanted: &[Endpoint], held: &BTreeMap<u16, Endpoint>) -> (BTreeMap<u16, Endpoint>, u16) {
    let mut placed: BTreeMap<u16, Endpoint> = held
        .iter()
        .filter(|(_, endpoint)| wanted.binary_search(endpoint).is_ok())
        .map(|(ticket, endpoint)| (*ticket, *endpoint))
        .collect();
    let mut room = wanted.len();
    let (class, homeless) = loop {
        let class = class_of(room).unwrap_or(1);
        let mut homeless = vec![true; wanted.len()];
        for endpoint in placed.range(..class).map(|(_, endpoint)| endpoint) {
            if let Ok(found) = wanted.binary_search(endpoint) {
                homeless[found] = false;
            }
        }
        let needed = placed.range(..class).count() + homeless.iter().filter(|homeless| **homeless).count();
        // The largest class has room for every endpoint that is programmed, if not always for all their old tickets.
        if needed <= usize::from(class) || Some(&class) == CLASSES.last() {
            break (class, homeless);
        }
        room = needed;
    };
    let mut rest = wanted.iter().zip(homeless).filter(|(_, homeless)| *homeless);
    for ticket in 0..class {
        if let std::collections::btree_map::Entry::Vacant(free) = placed.entry(ticket) {
            match rest.next() {
                Some((endpoint, _)) => drop(free.insert(*endpoint)),
                None if ticket == 0 => drop(wanted.first().map(|endpoint| free.insert(*endpoint))),
                None => break,
            }
        }
    }
    (placed, class)
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

    #[test]
    fn tickets_stay_with_their_endpoints() {
        let (held, class) = tickets(&endpoints(&(0..10).collect()), &BTreeMap::new());
        assert_eq!(class, 12);
        let (after, class) = tickets(&endpoints(&[5, 7].into()), &held);
        assert_eq!(class, 2);
        let expected = [(0, 5), (1, 7), (5, 5), (7, 7)].map(|(ticket, n)| (ticket, endpoint(n)));
        assert_eq!(after, expected.into());
    }

    #[test]
    fn ticket_0_is_always_held() {
        let held = BTreeMap::from([(1, endpoint(1))]);
        let (after, class) = tickets(&[endpoint(1)], &held);
        assert_eq!((after[&0], class), (endpoint(1), 1));
        let held = BTreeMap::from([(1, endpoint(1)), (2, endpoint(2))]);
        let (after, class) = tickets(&[endpoint(1), endpoint(2)], &held);
        assert_eq!(class, 2);
        assert_eq!(after[&0], endpoint(2));
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
            let mut held = BTreeMap::new();
            for numbers in history {
                let wanted = endpoints(&numbers);
                let (placed, class) = tickets(&wanted, &held);
                for (ticket, endpoint) in &held {
                    if wanted.contains(endpoint) {
                        prop_assert_eq!(placed.get(ticket), Some(endpoint));
                    }
                }
                let drawn: Vec<_> = placed.range(..class).map(|(_, endpoint)| *endpoint).collect();
                prop_assert_eq!(drawn.iter().copied().collect::<BTreeSet<_>>(), wanted.iter().copied().collect());
                prop_assert!(placed.contains_key(&0));
                prop_assert!(drawn.len() * 2 >= usize::from(class), "{} of {}", drawn.len(), class);
                prop_assert!(placed.values().all(|endpoint| wanted.contains(endpoint)));
                held = placed;
            }
        }
    }
}
