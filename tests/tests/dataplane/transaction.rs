//! Transactions that the kernel refuses: nothing of them is done, and the next one starts from what is there.

use nftfleet_agent::dataplane::KernelError;
use nftfleet_agent::dataplane::kernel::{Kernel as _, Transaction};
use nftfleet_domain::inventory::TableState;
use nix::errno::Errno;

use crate::world::{World, answer, four_vips, identity};

/// The kernel's word in an error.
fn refusal(error: &KernelError) -> Option<Errno> {
    match error {
        KernelError::Refused { source, .. } => source.raw_os_error().map(Errno::from_raw),
        _ => None,
    }
}

#[test]
fn a_slot_that_a_stranger_filled_is_refused_and_then_mended() {
    let world = World::new(3);
    let mut dataplane = world.dataplane();
    dataplane.load(&world.four_services(&[0, 1]), false).unwrap();
    // Slot 2 of one VIP, to nobody.
    world.nft_load("add element inet nftfleet endpoints4 { 10.96.20.1 . tcp . 80 . 2 : 10.128.200.99 . 9 }");
    let before = world.nft(&["list", "table", "inet", "nftfleet"]);

    let wish = world.four_services(&[0, 1, 2]);
    let error = dataplane.load(&wish, false).unwrap_err();
    // Kernels of 2025 and later say EEXIST, earlier ones EBUSY.
    assert!(matches!(refusal(&error), Some(Errno::EBUSY | Errno::EEXIST)), "{error}");
    assert!(
        error
            .to_string()
            .contains("elements of endpoints4: 10.96.20.1 tcp 80, slot 2:"),
        "{error}"
    );
    // All or nothing: the other VIPs' new endpoints are not there either.
    assert_eq!(world.nft(&["list", "table", "inet", "nftfleet"]), before);
    for vip in four_vips() {
        answer(&world.node().client, vip);
    }

    assert!(dataplane.load(&wish, false).unwrap() > 0);
    assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
}

#[test]
fn a_removal_of_what_a_stranger_removed_is_refused_and_then_mended() {
    let world = World::new(2);
    let mut dataplane = world.dataplane();
    dataplane.load(&world.four_services(&[0, 1]), false).unwrap();
    world.nft_load("delete element inet nftfleet endpoints6 { fd00:10:96::2001 . udp . 80 . 1 }");
    let before = world.nft(&["list", "table", "inet", "nftfleet"]);
    let wish = world.four_services(&[0]);
    let error = dataplane.load(&wish, false).unwrap_err();
    assert_eq!(refusal(&error), Some(Errno::ENOENT), "{error}");
    assert!(
        error
            .to_string()
            .contains("elements of endpoints6: fd00:10:96::2001 udp 80, slot 1:"),
        "{error}"
    );
    assert_eq!(world.nft(&["list", "table", "inet", "nftfleet"]), before);
    dataplane.load(&wish, false).unwrap();
    assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
    for vip in four_vips() {
        assert_eq!(answer(&world.node().client, vip), identity(0));
    }
}

#[test]
fn a_table_that_a_stranger_deleted_is_made_anew_after_the_refusal() {
    let world = World::new(2);
    let mut dataplane = world.dataplane();
    dataplane.load(&world.four_services(&[0]), false).unwrap();
    world.nft_load("delete table inet nftfleet");
    let wish = world.four_services(&[1]);
    let error = dataplane.load(&wish, false).unwrap_err();
    assert_eq!(refusal(&error), Some(Errno::ENOENT), "{error}");
    assert_eq!(dataplane.state().unwrap(), TableState::Absent);
    dataplane.load(&wish, false).unwrap();
    assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
    for vip in four_vips() {
        assert_eq!(answer(&world.node().client, vip), identity(1));
    }
}

#[test]
fn a_flip_of_a_table_that_is_gone_is_refused_and_known() {
    let world = World::new(1);
    let mut dataplane = world.dataplane();
    dataplane.load(&world.four_services(&[0]), true).unwrap();
    world.nft_load("delete table inet nftfleet");
    let error = dataplane.set_dormant(false).unwrap_err();
    assert!(matches!(error, KernelError::NoTable), "{error}");
    assert_eq!(dataplane.state().unwrap(), TableState::Absent);
    // The same where the table goes between the look and the flip.
    let flip = Transaction {
        dormant: Some(false),
        ..Transaction::default()
    };
    let error = world.netlink().commit(&flip).unwrap_err();
    assert_eq!(refusal(&error), Some(Errno::ENOENT), "{error}");
    assert!(
        !world.nft(&["list", "tables"]).contains("nftfleet"),
        "a flip makes no table"
    );
}

#[test]
fn a_damaged_table_can_be_put_to_sleep_but_not_woken() {
    let world = World::new(1);
    let mut dataplane = world.dataplane();
    let wish = world.four_services(&[0]);
    dataplane.load(&wish, false).unwrap();
    world.nft_load("flush table inet nftfleet; delete set inet nftfleet cluster-ips4");
    dataplane.set_dormant(true).unwrap();
    let error = dataplane.set_dormant(false).unwrap_err();
    assert_eq!(refusal(&error), Some(Errno::ENOENT), "{error}");
    assert_eq!(dataplane.state().unwrap(), TableState::Dormant);
    assert_eq!(dataplane.load(&wish, false).unwrap(), 1);
    dataplane.set_dormant(false).unwrap();
    assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
    for vip in four_vips() {
        assert_eq!(answer(&world.node().client, vip), identity(0));
    }
}
