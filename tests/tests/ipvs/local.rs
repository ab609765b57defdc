//! The node's own connections, whose source is a Service's address as long as `kube-ipvs0` has it.

use std::net::SocketAddr;
use std::time::Duration;

use nftfleet_agent::host::ThisHost;
use nftfleet_agent::ipvs::{Patience, Progress, Takeover};
use nftfleet_tests::wait;

use crate::talks::{Pushing, Talks};
use crate::world::World;

#[test]
fn what_the_node_itself_has_open_is_waited_for() {
    let mut world = World::new();
    let pushing = Pushing::start(&world.lab.backends);
    let netns = world.node().netns.clone();
    let targets: Vec<SocketAddr> = [80, 90].into_iter().flat_map(World::cluster_ips).collect();
    let through_ipvs = Talks::open(&netns, &targets, 2);
    assert!(through_ipvs.all().iter().all(|talk| talk.own.ip() == talk.target.ip()));
    world.flip();
    let through_ours = Talks::open(&netns, &targets, 2);
    assert!(through_ours.all().iter().all(|talk| talk.own.ip() == talk.target.ip()));

    world.remove_chains();
    let remove = |patience| {
        netns.run(|| {
            let mut takeover = Takeover::open(&ThisHost).expect("a conversation");
            takeover.remove(&world.known, patience).expect("it is removed")
        })
    };
    for _ in 0..2 {
        let progress = remove(Patience::Wait);
        assert!(
            matches!(progress, Progress::Draining { sockets: 16, .. }),
            "{progress:?}"
        );
    }
    // The virtual services are gone, and all go on; new ones come from the node's own address.
    through_ipvs.beat_on("without virtual services");
    through_ours.beat_on("without virtual services");
    let after = Talks::open(&netns, &targets, 2);
    let own = world.node_ports(0).map(|node| node.ip());
    assert!(
        after.all().iter().all(|talk| own.contains(&talk.own.ip())),
        "{:?}",
        after.all()
    );

    drop((through_ipvs, through_ours));
    wait::until_blocking("kube-ipvs0 to go", Duration::from_secs(30), || {
        (remove(Patience::Wait) == Progress::Gone).then_some(())
    });
    after.beat_on("without kube-ipvs0");
    let last = Talks::open(&netns, &targets, 1);
    last.beat_on("at the end");
    world.foreign_services_stand();
    drop(pushing);
}

#[test]
fn who_waits_no_longer_gives_them_up() {
    let mut world = World::new();
    let pushing = Pushing::start(&world.lab.backends);
    let netns = world.node().netns.clone();
    let _held = Talks::open(&netns, &World::cluster_ips(90), 1);
    let from_pod = Talks::open(&world.node().pod, &World::cluster_ips(90), 2);
    world.flip();
    world.remove_chains();
    netns.run(|| {
        let mut takeover = Takeover::open(&ThisHost).expect("a conversation");
        let mut remove = |patience| takeover.remove(&world.known, patience).expect("it is removed");
        let progress = remove(Patience::Wait);
        assert!(
            matches!(progress, Progress::Draining { sockets: 2, .. }),
            "{progress:?}"
        );
        assert_eq!(remove(Patience::Now), Progress::Gone);
        assert_eq!(remove(Patience::Wait), Progress::Gone);
    });
    from_pod.beat_on("without kube-ipvs0");
    drop(pushing);
}
