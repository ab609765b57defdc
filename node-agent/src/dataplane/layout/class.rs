//! Classes: how many slots a VIP's endpoints are spread over.

use crate::dataplane::programmed::Which;

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

/// How many of the classes there are for a list: a node does not run more pods of one Service than the 22nd has room for.
const LOCAL_CLASSES: usize = 22;

/// The classes of a list.
pub fn classes(which: Which) -> &'static [u16] {
    match which {
        Which::All => &CLASSES,
        Which::Local => &CLASSES[..LOCAL_CLASSES],
    }
}

/// How many endpoints of one VIP can be programmed.
pub fn most_endpoints(which: Which) -> usize {
    classes(which).last().map_or(0, |class| usize::from(*class))
}

/// How often a class draws before it takes slot 0. With two thirds filled, 12 draws leave 2 in a million to slot 0, too few
/// to make the spread uneven.
pub(super) fn draws(class: u16) -> usize {
    match class {
        1 => 1,
        _ if class <= LAST_EXACT_CLASS => 2,
        _ => 12,
    }
}

/// How often a new client, or one whose endpoint has gone, draws a ticket. With half of them held, 20 draws leave 1 in a
/// million without one: it is served, and draws again with its next connection.
pub(super) const TICKET_DRAWS: usize = 20;

/// How often such a one draws an endpoint without being remembered, before it takes the last resort.
pub(super) const PLAIN_DRAWS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_room_and_is_at_least_two_thirds_full() {
        assert_eq!(class_of(0), None);
        for endpoints in 1..=most_endpoints(Which::All) {
            let class = usize::from(class_of(endpoints).unwrap());
            assert!(class >= endpoints, "{endpoints}");
            assert!(endpoints * 3 >= class * 2, "{endpoints} in {class}");
        }
    }
}
