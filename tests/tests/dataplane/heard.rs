//! What the agent's listener hears of, and what it need not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nftfleet_agent::dataplane::{Dataplane, Desired, Listener};

use crate::scale::many;
use crate::world::{SETTINGS, World};

/// Far above what the kernel takes to tell.
const LIMIT: Duration = Duration::from_secs(20);

/// A data plane of the node, and a word for each foreign edit that is heard of.
fn heard(world: &World) -> (Dataplane<nftfleet_agent::dataplane::Netlink>, Receiver<()>) {
    let mut kernel = world.netlink();
    let mut listener = world
        .node()
        .netns
        .run(|| Listener::open(&mut kernel).expect("a subscription"));
    let (tell, edits) = channel();
    std::thread::spawn(move || while listener.foreign_edit().is_ok() && tell.send(()).is_ok() {});
    (Dataplane::new(kernel, SETTINGS), edits)
}

#[test]
fn a_large_load_is_unheard_and_a_strangers_edit_after_it_is_heard() {
    let world = World::new(1);
    let (mut dataplane, edits) = heard(&world);
    dataplane.load(&many(), false).unwrap();
    let written = dataplane.take_written();
    assert!(written.bytes > 1 << 20 && !written.disturbed, "{written:?}");
    dataplane.load(&Desired::default(), false).unwrap();
    assert!(!dataplane.take_written().disturbed);
    world.nft_load("add element inet nftfleet cluster-ips4 { 192.0.2.1 }");
    edits.recv_timeout(LIMIT).expect("the stranger is heard");
    // Of 48,000 own elements nothing was heard, or there would be a word for that as well.
    assert!(edits.try_recv().is_err());
}

#[test]
fn who_writes_during_a_large_load_is_noticed() {
    let world = World::new(1);
    let (mut dataplane, _edits) = heard(&world);
    let stop = Arc::new(AtomicBool::new(false));
    let stranger = {
        let stop = Arc::clone(&stop);
        let netns = world.node().netns.clone();
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                netns.pipe("nft", &["-f", "-"], "add table ip stranger\ndelete table ip stranger\n");
            }
        })
    };
    // The stranger's transactions come every few milliseconds, and a load takes longer.
    let wishes = [many(), Desired::default()];
    let noticed = wishes.iter().cycle().take(20).any(|wish| {
        dataplane.load(wish, false).unwrap();
        dataplane.take_written().disturbed
    });
    stop.store(true, Ordering::Relaxed);
    stranger.join().unwrap();
    assert!(noticed);
}
