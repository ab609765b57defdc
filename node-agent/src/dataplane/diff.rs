//! What must change for the kernel to hold what is desired.
//!
//! Endpoints keep their slots as long as they can, and slots stay dense from 0: a removed endpoint's slot is taken by a new
//! one, else by the last. A Service that changes class is put into the new class's set with the endpoints, and taken out of
//! the old one in the commit after: a packet that meets sets of both sides of a commit always finds the Service in one.

use std::collections::{BTreeMap, BTreeSet};

use nftfleet_domain::service::{Endpoint, Vip};

use super::desired::{Change, Desired, Element, Programmed, Slots};
use super::layout::{class_of, most_endpoints};

/// The changes of the next commit; empty when the kernel holds what is desired. After a commit with changes, ask again:
/// changes of class take two commits.
pub fn diff(desired: &Desired, programmed: &Programmed) -> Vec<Change> {
    let mut changes = Vec::new();
    // Removals stand first where order is free, so that a set which is full has room.
    for address in programmed.cluster_ips.difference(&desired.cluster_ips) {
        changes.push(Change::Remove(Element::ClusterIp(*address)));
    }
    for (protocol, endpoint) in programmed.local.difference(&desired.local) {
        changes.push(Change::Remove(Element::Local(*protocol, *endpoint)));
    }
    let none = BTreeSet::new();
    let empty = Slots::default();
    for (vip, slots) in &programmed.services {
        if !desired.services.contains_key(vip) {
            service(*vip, &none, slots, &mut changes);
        }
    }
    for (vip, endpoints) in &desired.services {
        service(
            *vip,
            endpoints,
            programmed.services.get(vip).unwrap_or(&empty),
            &mut changes,
        );
    }
    for (protocol, endpoint) in desired.local.difference(&programmed.local) {
        changes.push(Change::Add(Element::Local(*protocol, *endpoint)));
    }
    for address in desired.cluster_ips.difference(&programmed.cluster_ips) {
        changes.push(Change::Add(Element::ClusterIp(*address)));
    }
    changes
}

fn service(vip: Vip, wanted: &BTreeSet<Endpoint>, slots: &Slots, changes: &mut Vec<Change>) {
    let placed = place(wanted, &slots.endpoints);
    for (slot, endpoint) in &slots.endpoints {
        if placed.get(slot) != Some(endpoint) {
            changes.push(Change::Remove(Element::Slot(vip, *slot, *endpoint)));
        }
    }
    for (slot, endpoint) in &placed {
        if slots.endpoints.get(slot) != Some(endpoint) {
            changes.push(Change::Add(Element::Slot(vip, *slot, *endpoint)));
        }
    }
    let class = class_of(placed.len());
    let enters = class.filter(|class| !slots.classes.contains(class));
    if let Some(class) = enters {
        changes.push(Change::Add(Element::Class(vip, class)));
    } else {
        for old in slots.classes.iter().filter(|old| Some(**old) != class) {
            changes.push(Change::Remove(Element::Class(vip, *old)));
        }
    }
}

/// The endpoints' slots: dense from 0, with as few moves as can be. Endpoints beyond the largest class are left out, the
/// highest first; [`Desired`]'s maker counts and names them.
fn place(wanted: &BTreeSet<Endpoint>, held: &BTreeMap<u16, Endpoint>) -> BTreeMap<u16, Endpoint> {
    let wanted: BTreeSet<Endpoint> = wanted.iter().take(most_endpoints()).copied().collect();
    let mut placed = BTreeMap::new();
    let mut kept = BTreeSet::new();
    for (slot, endpoint) in held {
        if usize::from(*slot) < wanted.len() && wanted.contains(endpoint) && kept.insert(*endpoint) {
            placed.insert(*slot, *endpoint);
        }
    }
    let mut homeless = wanted.iter().filter(|endpoint| !kept.contains(endpoint));
    for slot in (0..=u16::MAX).take(wanted.len()) {
        if let std::collections::btree_map::Entry::Vacant(vacant) = placed.entry(slot)
            && let Some(endpoint) = homeless.next()
        {
            vacant.insert(*endpoint);
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use nftfleet_domain::service::Protocol;
    use proptest::prelude::*;

    fn vip(port: u16) -> Vip {
        Vip {
            address: IpAddr::from([10, 96, 0, 1]),
            protocol: Protocol::Tcp,
            port,
        }
    }

    fn endpoint(n: u16) -> Endpoint {
        Endpoint {
            address: IpAddr::from([10, 128, n.to_be_bytes()[0], n.to_be_bytes()[1]]),
            port: 8080,
        }
    }

    fn desired(services: &BTreeMap<u16, BTreeSet<u16>>) -> Desired {
        Desired {
            services: services
                .iter()
                .map(|(port, endpoints)| (vip(*port), endpoints.iter().map(|n| endpoint(*n)).collect()))
                .collect(),
            cluster_ips: BTreeSet::from([IpAddr::from([10, 96, 0, 1])]),
            local: services
                .values()
                .flatten()
                .take(2)
                .map(|n| (Protocol::Tcp, endpoint(*n)))
                .collect(),
        }
    }

    /// Commits until nothing changes, checking after every commit what a packet may rely on.
    fn settle(programmed: &mut Programmed, desired: &Desired) -> usize {
        for commits in 0..4 {
            let changes = diff(desired, programmed);
            if changes.is_empty() {
                return commits;
            }
            programmed.apply(&changes);
            for (vip, endpoints) in &desired.services {
                let Some(slots) = programmed.services.get(vip) else {
                    assert!(endpoints.is_empty(), "{vip} is not programmed");
                    continue;
                };
                let found: BTreeSet<Endpoint> = slots.endpoints.values().copied().collect();
                assert_eq!(found, *endpoints, "{vip}");
                assert!(
                    slots.endpoints.keys().copied().map(usize::from).eq(0..endpoints.len()),
                    "{vip} has a hole"
                );
                assert!(
                    slots.classes.contains(&class_of(endpoints.len()).unwrap_or(0)) || endpoints.is_empty(),
                    "{vip}"
                );
            }
        }
        panic!("the diff does not come to an end");
    }

    #[test]
    fn replacing_an_endpoint_touches_one_slot() {
        let mut programmed = Programmed::default();
        settle(&mut programmed, &desired(&BTreeMap::from([(80, (0..5).collect())])));
        let mut next = desired(&BTreeMap::from([(80, BTreeSet::from([0, 1, 9, 3, 4]))]));
        next.local = programmed.local.clone();
        let changes = diff(&next, &programmed);
        assert_eq!(
            changes,
            [
                Change::Remove(Element::Slot(vip(80), 2, endpoint(2))),
                Change::Add(Element::Slot(vip(80), 2, endpoint(9)))
            ]
        );
    }

    #[test]
    fn a_change_of_class_leaves_the_old_set_one_commit_later() {
        let mut programmed = Programmed::default();
        settle(&mut programmed, &desired(&BTreeMap::from([(80, (0..3).collect())])));
        let next = desired(&BTreeMap::from([(80, (0..5).collect())]));
        programmed.apply(&diff(&next, &programmed));
        assert_eq!(programmed.services[&vip(80)].classes, BTreeSet::from([3, 5]));
        assert_eq!(diff(&next, &programmed), [Change::Remove(Element::Class(vip(80), 3))]);
    }

    #[test]
    fn the_last_endpoint_leaves_nothing_behind() {
        let mut programmed = Programmed::default();
        settle(&mut programmed, &desired(&BTreeMap::from([(80, (0..3).collect())])));
        settle(&mut programmed, &desired(&BTreeMap::from([(80, BTreeSet::new())])));
        assert!(programmed.services.is_empty());
    }

    #[test]
    fn more_endpoints_than_the_largest_class_holds_are_cut() {
        let mut programmed = Programmed::default();
        let many: BTreeSet<u16> = (0..17_000).collect();
        let wish = desired(&BTreeMap::from([(80, many)]));
        let changes = diff(&wish, &programmed);
        programmed.apply(&changes);
        assert_eq!(programmed.services[&vip(80)].endpoints.len(), most_endpoints());
        assert_eq!(diff(&wish, &programmed), []);
    }

    proptest! {
        #[test]
        fn any_history_ends_in_the_desired_state(
            history in proptest::collection::vec(
                proptest::collection::btree_map(1u16..6, proptest::collection::btree_set(0u16..40, 0..30), 0..5),
                1..8,
            )
        ) {
            let mut programmed = Programmed::default();
            for services in &history {
                let wish = desired(services);
                let commits = settle(&mut programmed, &wish);
                prop_assert!(commits <= 2, "{commits} commits");
                prop_assert_eq!(&programmed.cluster_ips, &wish.cluster_ips);
                prop_assert_eq!(&programmed.local, &wish.local);
                for slots in programmed.services.values() {
                    prop_assert_eq!(slots.classes.len(), 1);
                }
            }
        }
    }
}
