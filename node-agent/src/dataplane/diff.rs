//! What must change for the kernel to hold what is desired, key by key: the cost is that of what changed.
//!
//! A VIP that changes its class is put into the new one together with its new endpoints, and taken out of the old one in a
//! later commit: a packet that meets sets of both sides of a commit always finds its way, to the endpoints that are desired.
//! Everything else changes at once, so that no packet of later finds old endpoints or an old policy; the second look of the
//! rules is for those under way.

use std::collections::BTreeSet;
use std::sync::Arc;

use nftfleet_domain::service::{Endpoint, Family, Vip};

use super::desired::{Desired, Frontend, Key, List};
use super::layout::{class_of, most_endpoints};
use super::place;
use super::programmed::{Change, Element, Group, Held, HeldList, Programmed, Which};

/// The next commit for some keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What changes; empty when the kernel holds all that is desired.
    pub changes: Vec<Change>,
    /// VIPs that enter something with these changes, and still stand where they are to stand no more.
    pub left_behind: Vec<Vip>,
}

/// The changes of the next commit for these keys; empty when the kernel holds what is desired, and nothing else. After a
/// commit with changes, ask again: what is left behind goes in a second one.
pub fn diff<'a>(desired: &Desired, programmed: &Programmed, keys: impl IntoIterator<Item = &'a Key>) -> Vec<Change> {
    difference(desired, programmed, keys, |_| true).changes
}

/// The next commit for these keys, in which only those VIPs are taken out of what they leave that `may_leave`.
pub fn difference<'a>(
    desired: &Desired,
    programmed: &Programmed,
    keys: impl IntoIterator<Item = &'a Key>,
    may_leave: impl Fn(&Vip) -> bool,
) -> Difference {
    let mut difference = Difference::default();
    let changes = &mut difference.changes;
    for key in keys {
        match *key {
            Key::Vip(vip) => {
                let plan = of_vip(vip, desired.frontends.get(&vip), programmed);
                changes.extend(plan.now);
                if plan.after.is_empty() {
                    continue;
                }
                if plan.enters {
                    difference.left_behind.push(vip);
                } else if may_leave(&vip) {
                    changes.extend(plan.after.into_iter().map(Change::Remove));
                }
            }
            Key::ClusterIp(address) => {
                let (wanted, held) = (desired.cluster_ips.get(&address), programmed.cluster_ips.get(&address));
                if wanted != held {
                    let element = |name: &Arc<str>| Element::ClusterIp(address, Arc::clone(name));
                    changes.extend(held.map(|name| Change::Remove(element(name))));
                    changes.extend(wanted.map(|name| Change::Add(element(name))));
                }
            }
            Key::ExternalIp(address) => changes.extend(member(
                &desired.external_ips,
                &programmed.external_ips,
                &address,
                Element::ExternalIp(address),
            )),
            Key::NodePortIp(address) => changes.extend(member(
                &desired.nodeport_ips,
                &programmed.nodeport_ips,
                &address,
                Element::NodePortIp(address),
            )),
            Key::ServiceCidr(network) => changes.extend(member(
                &desired.service_cidrs,
                &programmed.service_cidrs,
                &network,
                Element::ServiceCidr(network),
            )),
            Key::Hairpin(protocol, endpoint) => changes.extend(member(
                &desired.hairpins,
                &programmed.hairpins,
                &(protocol, endpoint),
                Element::Hairpin(protocol, endpoint),
            )),
        }
    }
    difference
}

/// All keys of both sides.
pub fn all_keys(desired: &Desired, programmed: &Programmed) -> BTreeSet<Key> {
    let mut keys = desired.keys();
    keys.extend(programmed.keys());
    keys
}

fn member<T: Ord>(wanted: &BTreeSet<T>, held: &BTreeSet<T>, member: &T, element: Element) -> Option<Change> {
    match (wanted.contains(member), held.contains(member)) {
        (true, false) => Some(Change::Add(element)),
        (false, true) => Some(Change::Remove(element)),
        _ => None,
    }
}

/// The changes of one VIP, sorted by when they may happen.
#[derive(Default)]
struct Plan {
    /// Now, in this commit.
    now: Vec<Change>,
    /// In a later commit if the VIP enters what it is to be found in instead; now if not.
    after: Vec<Element>,
    /// Whether it does.
    enters: bool,
    /// Whether nothing else of the VIP may change before the next commit.
    waits: bool,
}

fn of_vip(vip: Vip, wanted: Option<&Frontend>, programmed: &Programmed) -> Plan {
    let nothing = Held::default();
    let held = programmed.vips.get(&vip).unwrap_or(&nothing);
    let mut plan = Plan::default();
    of_sources(vip, wanted, held, &mut plan);
    if plan.waits {
        return plan;
    }
    for which in Which::BOTH {
        let list = wanted.and_then(|frontend| match which {
            Which::All => frontend.all.as_ref(),
            Which::Local => frontend.local.as_ref(),
        });
        of_list(vip, which, list, held.list(which), programmed, &mut plan);
    }
    let route = wanted.and_then(|frontend| Some((frontend.route?, &frontend.name)));
    for (other, name) in &held.routes {
        let element = Element::Route(vip, *other, Arc::clone(name));
        match route {
            Some((route, wanted)) if route == *other => {
                if wanted != name {
                    plan.now.push(Change::Remove(element));
                    plan.now
                        .push(Change::Add(Element::Route(vip, route, Arc::clone(wanted))));
                }
            }
            _ => plan.now.push(Change::Remove(element)),
        }
    }
    if let Some((route, name)) = route
        && !held.routes.contains_key(&route)
    {
        plan.now.push(Change::Add(Element::Route(vip, route, Arc::clone(name))));
    }
    plan
}

fn of_list(vip: Vip, which: Which, list: Option<&List>, held: &HeldList, programmed: &Programmed, plan: &mut Plan) {
    let slot = |(slot, endpoint): (u16, &Endpoint)| Element::Slot(vip, which, slot, *endpoint);
    let filled = || (0..).zip(&held.slots).filter_map(|(n, e)| Some((n, e.as_ref()?)));
    let ticket = |ticket: &u16, endpoint: &Endpoint| Element::Ticket(vip, which, *ticket, *endpoint);
    let affinity = list.and_then(|list| list.affinity.as_ref());
    let endpoints = list.map(|list| &list.endpoints[..list.endpoints.len().min(most_endpoints(which))]);
    let group = match (endpoints, affinity) {
        (None, _) => None,
        (Some(endpoints), None) => {
            let placed = place::slots(endpoints, &held.slots);
            let at = |n: u16| placed.get(usize::from(n));
            plan.now.extend(
                filled()
                    .filter(|(n, e)| at(*n) != Some(e))
                    .map(slot)
                    .map(Change::Remove),
            );
            let before = |n: u16| held.slots.get(usize::from(n)).and_then(Option::as_ref);
            let new = (0..).zip(&placed).filter(|(n, e)| before(*n) != Some(e));
            plan.now.extend(new.map(slot).map(Change::Add));
            class_of(placed.len()).map(Group::Class)
        }
        (Some(endpoints), Some(affinity)) => {
            let known = known_tickets(held, affinity, which, programmed);
            // The group that the VIP has entered for this timeout comes before one that it is about to leave.
            let (ours, others): (Vec<_>, Vec<_>) = known
                .groups
                .iter()
                .filter_map(|group| match group {
                    Group::Sticky { timeout, class } => Some((*timeout, *class)),
                    Group::Class(_) => None,
                })
                .partition(|(timeout, _)| *timeout == affinity.timeout);
            let drawn: Vec<u16> = ours.into_iter().chain(others).map(|(_, class)| class).collect();
            let burnt = programmed.burnt.get(&(Family::of(vip.address), affinity.number));
            let burnt = burnt.map(Vec::as_slice).unwrap_or_default();
            let (placed, class) = place::tickets(endpoints, &known.tickets, burnt, &drawn);
            for (n, endpoint) in held.tickets.iter().filter(|(n, e)| placed.get(n) != Some(e)) {
                plan.now.push(Change::Remove(ticket(n, endpoint)));
            }
            for (n, endpoint) in placed.iter().filter(|(n, e)| held.tickets.get(n) != Some(e)) {
                plan.now.push(Change::Add(ticket(n, endpoint)));
            }
            if held.number != Some(affinity.number) {
                let number = |number| Element::Number(vip, which, number);
                plan.now.extend(held.number.map(number).map(Change::Remove));
                plan.now.push(Change::Add(number(affinity.number)));
            }
            let timeout = affinity.timeout;
            Some(Group::Sticky { timeout, class })
        }
    };
    if list.is_none() || affinity.is_some() {
        plan.now.extend(filled().map(slot).map(Change::Remove));
    }
    if affinity.is_none() {
        plan.now
            .extend(held.tickets.iter().map(|(n, e)| ticket(n, e)).map(Change::Remove));
        plan.now
            .extend(held.number.map(|n| Element::Number(vip, which, n)).map(Change::Remove));
    }
    for other in held.groups.iter().filter(|other| Some(**other) != group) {
        let element = Element::Member(vip, which, *other);
        if group.is_some_and(|group| is_same_kind(group, *other)) {
            plan.after.push(element);
        } else {
            plan.now.push(Change::Remove(element));
        }
    }
    if let Some(group) = group.filter(|group| !held.groups.contains(group)) {
        plan.now.push(Change::Add(Element::Member(vip, which, group)));
        plan.enters = true;
    }
}

/// Whether packets that find the VIP in either of two groups meet the same slots, or the same tickets.
const fn is_same_kind(group: Group, other: Group) -> bool {
    matches!(
        (group, other),
        (Group::Class(_), Group::Class(_)) | (Group::Sticky { .. }, Group::Sticky { .. })
    )
}

/// The list whose tickets clients may hold: the VIP's own, or that of a sibling if it is new.
fn known_tickets<'a>(
    held: &'a HeldList,
    affinity: &super::desired::Affinity,
    which: Which,
    programmed: &'a Programmed,
) -> &'a HeldList {
    if held.number == Some(affinity.number) {
        return held;
    }
    let siblings = affinity.siblings.iter().filter_map(|vip| programmed.vips.get(vip));
    let mut lists = siblings.map(|sibling| sibling.list(which));
    let same = lists.find(|list| list.number == Some(affinity.number));
    same.unwrap_or(held)
}

fn of_sources(vip: Vip, wanted: Option<&Frontend>, held: &Held, plan: &mut Plan) {
    let source = |network: &ipnet::IpNet| Element::Source(vip, *network);
    let Some(allowed) = wanted.and_then(|frontend| frontend.sources.as_deref()) else {
        if held.firewalled {
            plan.now.push(Change::Remove(Element::Firewalled(vip)));
            // First the VIP is open again, then its sources go: a packet must not find the one without the other.
            plan.enters |= wanted.is_some();
        }
        plan.after.extend(held.sources.iter().map(source));
        return;
    };
    plan.now
        .extend(held.sources.difference(allowed).map(source).map(Change::Remove));
    plan.now
        .extend(allowed.difference(&held.sources).map(source).map(Change::Add));
    if held.firewalled {
        return;
    }
    // The kernel swaps a set of ranges a moment after the other sets: a VIP in use is guarded in the commit after its sources
    // are in, or packets in between would be dropped. All else of it comes with the guard, or who may not connect would find
    // what is new behind it. A new VIP is never open.
    let is_new = held.routes.is_empty();
    if is_new || held.sources == *allowed {
        plan.now.push(Change::Add(Element::Firewalled(vip)));
    } else {
        plan.waits = true;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use super::*;
    use crate::dataplane::desired::{Affinity, Route};
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
        let [high, low] = n.to_be_bytes();
        Endpoint {
            address: IpAddr::from([10, 128, high, low]),
            port: 8080,
        }
    }

    /// A Service's port in a few numbers.
    #[derive(Clone, Debug)]
    struct Sketch {
        all: BTreeSet<u16>,
        local: BTreeSet<u16>,
        route: Option<Route>,
        timeout: Option<u32>,
        sources: Option<BTreeSet<u8>>,
    }

    fn list(vip: Vip, endpoints: &BTreeSet<u16>, timeout: Option<u32>, number: u32) -> Option<List> {
        let affinity = timeout.map(|timeout| Affinity {
            timeout,
            number,
            siblings: [vip].into(),
        });
        (!endpoints.is_empty()).then(|| List {
            endpoints: endpoints.iter().map(|n| endpoint(*n)).collect(),
            affinity,
        })
    }

    fn frontend(vip: Vip, sketch: &Sketch) -> Frontend {
        let network = |n: &u8| ipnet::IpNet::new(IpAddr::from([192, 0, *n, 0]), 24).unwrap();
        let sources = sketch.sources.as_ref();
        Frontend {
            name: format!("shop/web:{}", sketch.all.len()).into(),
            route: sketch.route,
            all: list(vip, &sketch.all, sketch.timeout, 1),
            local: list(vip, &sketch.local, sketch.timeout, 2),
            sources: sources.map(|sources| Arc::new(sources.iter().map(network).collect())),
            serving: [].into(),
        }
    }

    fn desired(sketches: &BTreeMap<u16, Sketch>) -> Desired {
        let frontends = sketches
            .iter()
            .map(|(port, sketch)| (vip(*port), frontend(vip(*port), sketch)));
        let locals = sketches.values().flat_map(|sketch| &sketch.local);
        Desired {
            frontends: frontends.collect(),
            cluster_ips: sketches
                .keys()
                .map(|n| {
                    (
                        IpAddr::from([10, 96, 0, n.to_be_bytes()[1]]),
                        format!("shop/{n}").into(),
                    )
                })
                .collect(),
            external_ips: sketches
                .keys()
                .map(|n| IpAddr::from([198, 51, 100, n.to_be_bytes()[1]]))
                .collect(),
            hairpins: locals.map(|n| (Protocol::Tcp, endpoint(*n))).collect(),
            ..Desired::default()
        }
    }

    fn plain(endpoints: impl IntoIterator<Item = u16>) -> Sketch {
        Sketch {
            all: endpoints.into_iter().collect(),
            local: BTreeSet::new(),
            route: None,
            timeout: None,
            sources: None,
        }
    }

    fn one(sketch: Sketch) -> Desired {
        desired(&[(80, sketch)].into())
    }

    fn next(desired: &Desired, programmed: &Programmed) -> Vec<Change> {
        diff(desired, programmed, &all_keys(desired, programmed))
    }

    /// The endpoints that a packet would find for a VIP in one of its lists, through the first group that it is in; none if
    /// it is in no group.
    fn reached(programmed: &Programmed, vip: Vip, which: Which) -> Option<BTreeSet<Endpoint>> {
        let list = programmed.vips.get(&vip)?.list(which);
        let plain = list.groups.iter().find(|group| matches!(group, Group::Class(_)));
        let found: BTreeSet<Endpoint> = match plain.or(list.groups.first())? {
            Group::Class(class) => {
                let slots = list.slots.iter().take(usize::from(*class));
                slots.copied().flatten().collect()
            }
            Group::Sticky { class, .. } => {
                let mut drawn = list.tickets.range(..class).peekable();
                // Who has drawn in vain takes the last resort.
                let resort = list.tickets.get(&place::LAST_RESORT).filter(|_| drawn.peek().is_none());
                drawn.map(|(_, endpoint)| endpoint).chain(resort).copied().collect()
            }
        };
        Some(found)
    }

    /// Commits until nothing changes, checking after every commit what a packet may rely on.
    fn settle(programmed: &mut Programmed, desired: &Desired) -> usize {
        for commits in 0..6 {
            let changes = next(desired, programmed);
            if changes.is_empty() {
                for (vip, frontend) in &desired.frontends {
                    for (which, wanted) in [(Which::All, &frontend.all), (Which::Local, &frontend.local)] {
                        let wanted = wanted
                            .iter()
                            .flat_map(|list| list.endpoints.iter().take(most_endpoints(which)));
                        let found = reached(programmed, *vip, which).unwrap_or_default();
                        assert_eq!(found, wanted.copied().collect(), "{vip}");
                    }
                }
                return commits;
            }
            let before: BTreeMap<_, _> = Which::BOTH
                .into_iter()
                .flat_map(|which| desired.frontends.keys().map(move |vip| (*vip, which)))
                .map(|(vip, which)| ((vip, which), reached(programmed, vip, which)))
                .collect();
            programmed.apply(changes);
            for ((vip, which), before) in before {
                let frontend = &desired.frontends[&vip];
                let wanted = match which {
                    Which::All => &frontend.all,
                    Which::Local => &frontend.local,
                };
                let Some(wanted) = wanted else { continue };
                let found = reached(programmed, vip, which).unwrap_or_default();
                let is_open = programmed.vips.get(&vip).is_some_and(|held| !held.firewalled);
                if frontend.sources.is_some() && is_open {
                    // Nobody may find what is new before the VIP is guarded.
                    assert_eq!(found, before.unwrap_or_default(), "{vip}");
                    continue;
                }
                // Of the smaller class that it leaves, the first endpoints; of what it leaves altogether, the old ones.
                let is_wanted = found.iter().all(|endpoint| wanted.endpoints.contains(endpoint));
                assert!(!found.is_empty(), "{vip} reaches nobody");
                assert!(is_wanted || Some(&found) == before.as_ref(), "{vip} reaches {found:?}");
            }
        }
        panic!("the diff does not come to an end");
    }

    #[test]
    fn replacing_an_endpoint_touches_one_slot() {
        let mut programmed = Programmed::default();
        settle(&mut programmed, &one(plain(0..5)));
        let changes = next(&one(plain([0, 1, 9, 3, 4])), &programmed);
        assert_eq!(
            changes,
            [
                Change::Remove(Element::Slot(vip(80), Which::All, 2, endpoint(2))),
                Change::Add(Element::Slot(vip(80), Which::All, 2, endpoint(9)))
            ]
        );
    }

    #[test]
    fn a_change_of_class_leaves_the_old_set_one_commit_later() {
        let mut programmed = Programmed::default();
        settle(&mut programmed, &one(plain(0..3)));
        let wish = one(plain(0..5));
        programmed.apply(next(&wish, &programmed));
        let member = |class| Element::Member(vip(80), Which::All, Group::Class(class));
        assert_eq!(programmed.vips[&vip(80)].all.groups, [Group::Class(3), Group::Class(5)]);
        // The name of the sketch changes nothing here: it stands in no set of a ClusterIP's VIP.
        assert_eq!(next(&wish, &programmed), [Change::Remove(member(3))]);
    }

    #[test]
    fn a_service_that_loses_its_affinity_has_slots_instead_of_tickets_at_once() {
        let mut programmed = Programmed::default();
        let sticky = Sketch {
            timeout: Some(10),
            ..plain(0..3)
        };
        settle(&mut programmed, &one(sticky));
        let wish = one(plain(0..3));
        programmed.apply(next(&wish, &programmed));
        let list = &programmed.vips[&vip(80)].all;
        assert_eq!((list.slots.len(), list.tickets.len(), list.number), (3, 0, None));
        assert_eq!(list.groups, [Group::Class(3)]);
        assert_eq!(next(&wish, &programmed), []);
    }

    #[test]
    fn a_new_vip_of_a_service_has_the_tickets_of_its_siblings() {
        let mut programmed = Programmed::default();
        let siblings: Arc<[Vip]> = [vip(80), vip(81)].into();
        let wish = |ports: &[u16], endpoints: &[u16]| {
            let mut wish = Desired::default();
            for port in ports {
                let sketch = Sketch {
                    timeout: Some(10),
                    ..plain(endpoints.iter().copied())
                };
                let mut frontend = frontend(vip(*port), &sketch);
                let affinity = frontend.all.as_mut().and_then(|list| list.affinity.as_mut());
                affinity.unwrap().siblings = Arc::clone(&siblings);
                wish.frontends.insert(vip(*port), frontend);
            }
            wish
        };
        settle(&mut programmed, &wish(&[80], &[0, 1, 2, 3]));
        settle(&mut programmed, &wish(&[80], &[1, 3]));
        settle(&mut programmed, &wish(&[80, 81], &[1, 3, 5]));
        let tickets = |port| programmed.vips[&vip(port)].all.tickets.clone();
        assert_eq!(tickets(80), tickets(81));
    }

    #[test]
    fn a_vip_is_open_before_its_sources_go() {
        let mut programmed = Programmed::default();
        let guarded = Sketch {
            sources: Some([1, 2].into()),
            ..plain([1])
        };
        settle(&mut programmed, &one(guarded));
        let wish = one(plain([1]));
        assert_eq!(next(&wish, &programmed), [Change::Remove(Element::Firewalled(vip(80)))]);
        assert_eq!(settle(&mut programmed, &wish), 2);
        assert!(programmed.vips[&vip(80)].sources.is_empty());
    }

    #[test]
    fn a_vip_in_use_is_guarded_once_its_sources_are_in_and_a_new_one_at_once() {
        let sketch = |sources: Option<BTreeSet<u8>>| Sketch {
            route: Some(Route::ToAll),
            sources,
            ..plain([1])
        };
        let mut programmed = Programmed::default();
        settle(&mut programmed, &one(sketch(None)));
        let wish = one(sketch(Some([1].into())));
        programmed.apply(next(&wish, &programmed));
        assert!(!programmed.vips[&vip(80)].firewalled);
        assert_eq!(next(&wish, &programmed), [Change::Add(Element::Firewalled(vip(80)))]);
        let mut programmed = Programmed::default();
        programmed.apply(next(&wish, &programmed));
        assert!(programmed.vips[&vip(80)].firewalled);
    }

    #[test]
    fn the_last_endpoint_leaves_nothing_behind() {
        let mut programmed = Programmed::default();
        settle(&mut programmed, &one(plain(0..3)));
        settle(&mut programmed, &one(plain([])));
        assert!(programmed.vips.is_empty());
    }

    #[test]
    fn more_endpoints_than_the_largest_class_holds_are_cut() {
        let mut programmed = Programmed::default();
        let wish = one(plain(0..17_000));
        settle(&mut programmed, &wish);
        assert_eq!(programmed.vips[&vip(80)].all.slots.len(), most_endpoints(Which::All));
        assert_eq!(next(&wish, &programmed), []);
    }

    fn sketch() -> impl Strategy<Value = Sketch> {
        let numbers = || proptest::collection::btree_set(0u16..40, 0..30);
        let route = prop_oneof![
            Just(None),
            Just(Some(Route::ToAll)),
            Just(Some(Route::ToLocal)),
            Just(Some(Route::NoEndpoints)),
            Just(Some(Route::NoLocalEndpoints)),
        ];
        let sources = proptest::option::of(proptest::collection::btree_set(0u8..9, 1..5));
        let timeout = proptest::option::of(10u32..12);
        (numbers(), numbers(), route, timeout, sources).prop_map(|(all, local, route, timeout, sources)| Sketch {
            all,
            local,
            route,
            timeout,
            sources,
        })
    }

    proptest! {
        #[test]
        fn any_history_ends_in_the_desired_state(
            history in proptest::collection::vec(proptest::collection::btree_map(1u16..6, sketch(), 0..5), 1..8)
        ) {
            let mut programmed = Programmed::default();
            for sketches in &history {
                let wish = desired(sketches);
                let commits = settle(&mut programmed, &wish);
                prop_assert!(commits <= 4, "{commits} commits");
                prop_assert_eq!(&programmed.cluster_ips, &wish.cluster_ips);
                prop_assert_eq!(&programmed.external_ips, &wish.external_ips);
                prop_assert_eq!(&programmed.hairpins, &wish.hairpins);
                for (vip, frontend) in &wish.frontends {
                    let held = programmed.vips.get(vip).cloned().unwrap_or_default();
                    prop_assert_eq!(held.routes.keys().copied().collect::<Vec<_>>(), frontend.route.into_iter().collect::<Vec<_>>());
                    prop_assert_eq!(held.firewalled, frontend.sources.is_some());
                    prop_assert_eq!(&held.sources, &frontend.sources.as_deref().cloned().unwrap_or_default());
                    for (which, wanted) in [(Which::All, &frontend.all), (Which::Local, &frontend.local)] {
                        let list = held.list(which);
                        prop_assert_eq!(list.groups.len(), usize::from(wanted.is_some()));
                        let sticky = wanted.as_ref().is_some_and(|list| list.affinity.is_some());
                        prop_assert_eq!(list.number.is_some(), sticky);
                        prop_assert_eq!(list.tickets.is_empty(), !sticky);
                        prop_assert_eq!(list.slots.is_empty(), sticky || wanted.is_none());
                    }
                }
                prop_assert_eq!(programmed.vips.keys().filter(|vip| !wish.frontends.contains_key(vip)).count(), 0);
            }
        }
    }
}
