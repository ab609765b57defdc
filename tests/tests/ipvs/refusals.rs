//! What must not be moved, and what must not be done too early.

use nftfleet_agent::host::ThisHost;
use nftfleet_agent::ipvs::{Blocker, IpvsError, Known, Patience, Takeover};
use nftfleet_tests::kube_proxy::virtual_service_list;

use crate::world::{VIPS, World};

fn codes(world: &World, known: &Known) -> Vec<&'static str> {
    let blockers = world.node().netns.run(|| {
        let mut takeover = Takeover::open(&ThisHost).expect("a conversation");
        takeover.blockers(known).expect("an answer")
    });
    blockers.iter().map(Blocker::code).collect()
}

#[test]
fn a_node_without_its_preconditions_is_refused() {
    let world = World::new();
    let node = &world.node().netns;
    let nothing: [&str; 0] = [];
    // Among the foreign services are some that tunnel: these are nobody's business.
    assert_eq!(codes(&world, &world.known), nothing);
    for (parameter, code) in [
        ("ipv4/vs/conntrack", "ipvs-conntrack-off"),
        ("ipv4/vs/expire_nodest_conn", "ipvs-expire-nodest-off"),
        ("netfilter/nf_conntrack_tcp_loose", "ipvs-conntrack-strict"),
    ] {
        node.sysctl(parameter, "0");
        assert_eq!(codes(&world, &world.known), [code]);
        node.sysctl(parameter, "1");
    }
    let homeless = Known {
        source6: None,
        ..world.known.clone()
    };
    assert_eq!(codes(&world, &homeless), ["ipvs-no-node-address"]);

    let tunnel = format!("-a -t {}:80 -r 198.51.100.1:80 -i\n", VIPS[0]);
    node.pipe("ipvsadm", &["--restore"], &tunnel);
    assert_eq!(codes(&world, &world.known), ["ipvs-not-masqueraded"]);
}

#[test]
fn nothing_is_taken_away_before_our_table_answers() {
    let mut world = World::new();
    let node = &world.node().netns.clone();
    let before = virtual_service_list(node);
    node.run(|| {
        let mut takeover = Takeover::open(&ThisHost).expect("a conversation");
        let refused = |error| matches!(error, IpvsError::NotActive);
        assert!(refused(takeover.hand_over(&world.known).expect_err("too early")));
        assert!(refused(
            takeover.remove(&world.known, Patience::Now).expect_err("too early")
        ));
        assert!(refused(takeover.settle(Patience::Now).expect_err("too early")));
        // Rules look into them.
        let kept = takeover.remove_sets().expect("an answer");
        assert!(kept.contains(&"KUBE-CLUSTER-IP".to_owned()), "{kept:?}");
    });
    // It answers, and kube-proxy's rules could still reject what is picked up.
    world.flip();
    node.run(|| {
        let mut takeover = Takeover::open(&ThisHost).expect("a conversation");
        let refused = takeover.remove(&world.known, Patience::Now).expect_err("too early");
        assert!(matches!(refused, IpvsError::ChainsStand), "{refused}");
    });
    assert_eq!(virtual_service_list(node), before);
    assert!(node.pipe("ip", &["-br", "link"], "").contains("kube-ipvs0"));
}
