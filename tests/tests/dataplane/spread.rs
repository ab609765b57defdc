//! Every endpoint gets its share, also where slots are empty.

use std::collections::BTreeMap;
use std::time::Duration;

use nftfleet_domain::service::{Family, Protocol};
use nftfleet_tests::traffic::{Counts, NewConnections, UdpQueries};
use nftfleet_tests::wait;

use crate::world::{World, desired, identity, target, vip};

/// Connections for each number of endpoints.
const SAMPLE: u64 = 2_500;

/// Attempts a second: one server's queue of connections must outlast a busy machine's pauses.
const RATE: u32 = 1_200;

/// How many endpoints, and the chi-square that chance exceeds once in a million.
const CASES: [(u16, f64); 6] = [(1, 0.0), (2, 23.93), (3, 27.63), (5, 33.38), (9, 42.70), (17, 58.32)];

/// The distance of the answers from an even spread.
fn chi_square(answered: &BTreeMap<String, u64>, endpoints: u16) -> f64 {
    let answers = |number| {
        let answers = answered.get(&identity(number)).copied().unwrap_or_default();
        f64::from(u32::try_from(answers).expect("few answers"))
    };
    let all: f64 = (0..endpoints).map(answers).sum();
    let expected = all / f64::from(endpoints);
    (0..endpoints)
        .map(|number| (answers(number) - expected).powi(2) / expected)
        .sum()
}

fn is_even(what: &str, counts: &Counts, endpoints: u16, bound: f64) {
    counts.assert_no_loss();
    let found = chi_square(&counts.answered, endpoints);
    let answers = counts.answered.values();
    println!(
        "{what}, {endpoints} endpoints: {} connections, {} to {} each, chi-square {found:.1} of {bound}",
        counts.made,
        answers.clone().min().expect("an answer"),
        answers.max().expect("an answer"),
    );
    assert_eq!(counts.answered.len(), usize::from(endpoints), "{:?}", counts.answered);
    assert!(
        found <= bound,
        "{what}, {endpoints} endpoints: {found} in {:?}",
        counts.answered
    );
}

#[test]
fn every_number_of_endpoints_is_spread_evenly() {
    let (most, _) = CASES[CASES.len() - 1];
    let world = World::new(most);
    let node = world.node();
    // Source ports come again within half a minute; each is to draw anew.
    node.netns.sysctl("netfilter/nf_conntrack_udp_timeout", "1");
    let tcp4 = vip("10.96.20.1:80", Protocol::Tcp);
    let udp6 = vip("[fd00:10:96::2001]:80", Protocol::Udp);
    let mut dataplane = world.dataplane();
    for (endpoints, bound) in CASES {
        let of = |family| (0..endpoints).map(|number| world.endpoint(family, number)).collect();
        let wish = desired([(tcp4, of(Family::V4)), (udp6, of(Family::V6))]);
        dataplane.load(&wish, false).unwrap();
        let tcp = NewConnections::start(&node.client, vec![target(tcp4)], RATE);
        let udp = UdpQueries::start(&node.client, vec![target(udp6)], RATE);
        wait::until_blocking("enough connections", Duration::from_secs(30), || {
            (tcp.counts().made >= SAMPLE && udp.counts().made >= SAMPLE).then_some(())
        });
        is_even("TCP over IPv4", &tcp.stop(), endpoints, bound);
        is_even("UDP over IPv6", &udp.stop(), endpoints, bound);
        assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
    }
}
