//! A new process on the same kernel.

use std::time::Duration;

use nftfleet_agent::dataplane::{Dataplane, LayoutSettings};
use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::Protocol;
use nftfleet_tests::traffic::{LongLived, NewConnections, UdpQueries};
use nftfleet_tests::wait;

use crate::recorded::{Commit, Recorded};
use crate::world::{SETTINGS, World, four_vips, target};

/// Streams of both protocols from the client.
fn clients(world: &World) -> (NewConnections, UdpQueries) {
    let of = |protocol| {
        let vips = four_vips().into_iter().filter(move |vip| vip.protocol == protocol);
        vips.map(target).collect::<Vec<_>>()
    };
    let client = &world.node().client;
    let tcp = NewConnections::start(client, of(Protocol::Tcp), 1_000);
    (tcp, UdpQueries::start(client, of(Protocol::Udp), 1_000))
}

fn more((tcp, udp): &(NewConnections, UdpQueries)) {
    let so_far = (tcp.counts().made, udp.counts().made);
    wait::until_blocking("more connections", Duration::from_secs(10), || {
        (tcp.counts().made >= so_far.0 + 30 && udp.counts().made >= so_far.1 + 30).then_some(())
    });
}

fn none_lost(what: &str, (tcp, udp): (NewConnections, UdpQueries)) {
    let (tcp, udp) = (tcp.stop(), udp.stop());
    println!("{what}: {} connections, {} queries", tcp.made, udp.made);
    tcp.assert_no_loss();
    udp.assert_no_loss();
}

#[test]
fn a_restart_adopts_the_table_and_writes_nothing() {
    let world = World::new(3);
    let wish = world.four_services(&[0, 1, 2]);
    world.dataplane().load(&wish, false).unwrap();
    let printed = world.nft(&["-a", "list", "table", "inet", "nftfleet"]);
    let clients = clients(&world);
    let long_lived = LongLived::open(&world.node().client, target(four_vips()[0]));
    for _ in 0..20 {
        let (kernel, record) = Recorded::new(world.netlink());
        let mut second = Dataplane::new(kernel, SETTINGS);
        // Asked for dormant: a table that is there keeps its state.
        assert_eq!(second.load(&wish, true).unwrap(), 0);
        assert_eq!(record.take(), []);
        assert_eq!(second.state().unwrap(), TableState::Active);
        more(&clients);
    }
    none_lost("20 restarts", clients);
    assert!(long_lived.stop().alive);
    // Even the handles are the same.
    assert_eq!(world.nft(&["-a", "list", "table", "inet", "nftfleet"]), printed);
}

#[test]
fn a_restart_writes_only_what_changed_meanwhile() {
    let world = World::new(3);
    world.dataplane().load(&world.four_services(&[0, 1]), true).unwrap();
    let (kernel, record) = Recorded::new(world.netlink());
    let mut second = Dataplane::new(kernel, SETTINGS);
    let wish = world.four_services(&[0, 2]);
    second.load(&wish, false).unwrap();
    let elements = 2 * four_vips().len();
    let only = Commit {
        replaced: false,
        made: false,
        elements,
    };
    assert_eq!(record.take(), [only]);
    assert_eq!(second.state().unwrap(), TableState::Dormant);
    assert_eq!(second.compare(&wish).unwrap(), Vec::<String>::new());
}

#[test]
fn a_table_of_other_settings_gets_new_rules_in_one_transaction_without_loss() {
    let world = World::new(3);
    let wish = world.four_services(&[0, 1, 2]);
    world.dataplane().load(&wish, false).unwrap();
    let clients = clients(&world);
    let long_lived = LongLived::open(&world.node().client, target(four_vips()[2]));
    for round in 0..20 {
        let (kernel, record) = Recorded::new(world.netlink());
        // Not the masquerade bit: a packet that one hook has marked would meet another bit at the next.
        let settings = LayoutSettings {
            masquerade_all: round % 2 == 0,
            ..SETTINGS
        };
        let mut next = Dataplane::new(kernel, settings);
        assert_eq!(next.load(&wish, true).unwrap(), 1);
        // Nothing but rules: a table made anew would lose packets that are on their way through the old one.
        let only_rules = Commit {
            replaced: false,
            made: false,
            elements: 0,
        };
        assert_eq!(record.take(), [only_rules]);
        assert_eq!(next.compare(&wish).unwrap(), Vec::<String>::new());
        assert_eq!(next.state().unwrap(), TableState::Active);
        more(&clients);
    }
    none_lost("20 times other rules", clients);
    assert!(long_lived.stop().alive);
}
