//! Thousands of Services: one commit, read back whole, and changes that cost what they change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use nftfleet_agent::dataplane::{Dataplane, Desired, Key};
use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};

use crate::recorded::{Commit, Recorded};
use crate::world::{SETTINGS, World, answer, desired, identity, serve, vip};

const SERVICES: u16 = 2_000;
const ENDPOINTS: u16 = 10;

/// Half of them IPv6; nobody lives behind them.
pub fn many() -> Desired {
    desired((0..SERVICES).map(|service| {
        let v6 = service % 2 == 1;
        let [high, low] = service.to_be_bytes();
        let address: IpAddr = if v6 {
            Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 1, service).into()
        } else {
            Ipv4Addr::new(10, 97, high, low).into()
        };
        let endpoint = |number: u16| Endpoint {
            address: if v6 {
                Ipv6Addr::new(0xfd00, 0x128, 9, service, 0, 0, 0, number).into()
            } else {
                let [high, low] = (service * ENDPOINTS + number).to_be_bytes();
                Ipv4Addr::new(10, 129, high, low).into()
            },
            port: 8080,
        };
        let vip = Vip {
            address,
            protocol: Protocol::Tcp,
            port: 80,
        };
        (vip, (0..ENDPOINTS).map(endpoint).collect())
    }))
}

#[test]
fn two_thousand_services_are_one_commit_and_one_endpoint_is_two_elements() {
    let world = World::new(1);
    let (kernel, record) = Recorded::new(world.netlink());
    let mut dataplane = Dataplane::new(kernel, SETTINGS);
    let mut wish = many();
    // One that can be asked, among them.
    let known = vip("10.96.20.1:80", Protocol::Tcp);
    serve(&mut wish, known, [world.endpoint(Family::V4, 0)]);

    let started = Instant::now();
    assert_eq!(dataplane.load(&wish, false).unwrap(), 1);
    println!(
        "{SERVICES} Services of {ENDPOINTS} endpoints loaded in {:?}",
        started.elapsed()
    );
    let elements = usize::from(SERVICES) * (usize::from(ENDPOINTS) + 2) + 3;
    assert_eq!(dataplane.elements(), elements);
    assert_eq!(
        record.take(),
        [Commit {
            replaced: false,
            made: true,
            elements
        }]
    );
    let started = Instant::now();
    assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
    println!("read back and compared in {:?}", started.elapsed());
    assert_eq!(answer(&world.node().client, known), identity(0));

    let changed = vip("10.97.1.0:80", Protocol::Tcp);
    let list = wish.frontends[&changed].all.clone().unwrap();
    let other = Endpoint {
        address: Ipv4Addr::new(10, 200, 0, 1).into(),
        port: 1,
    };
    serve(
        &mut wish,
        changed,
        list.endpoints.iter().skip(1).copied().chain([other]),
    );
    let started = Instant::now();
    assert_eq!(dataplane.follow(&wish, &[Key::Vip(changed)].into()).unwrap(), 1);
    println!("one endpoint changed in {:?}", started.elapsed());
    let two_elements = Commit {
        replaced: false,
        made: false,
        elements: 2,
    };
    assert_eq!(record.take(), [two_elements]);
    assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());

    dataplane.load(&Desired::default(), false).unwrap();
    assert_eq!(dataplane.elements(), 0);
    assert_eq!(dataplane.compare(&Desired::default()).unwrap(), Vec::<String>::new());
}
