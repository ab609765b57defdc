//! A thousand flips each way, while everybody connects.

use std::time::{Duration, Instant};

use nftfleet_agent::dataplane::{Dataplane, LayoutSettings, Netlink};
use nftfleet_tests::kube_proxy::Mode;
use nftfleet_tests::load::{LoadFromEverywhere, sockets};
use nftfleet_tests::standalone::{NodeStart, Standalone};
use nftfleet_tests::traffic::tcp_identity;
use nftfleet_tests::wait;
use serde_json::json;

/// shop/db, which has one endpoint, in both families.
const DB: [&str; 2] = ["10.96.10.3:5432", "[fd00:10:96::a03]:5432"];

/// Where our table leads those who ask for it, and where kube-proxy's rules do.
const OURS: &str = "backend-2";
const KUBE_PROXYS: &str = "backend-3";

/// How often it becomes active, and as often dormant.
const FLIPS: u32 = 1000;

/// New connections a second from each of three places: some fall into every flip.
const RATE: u32 = 100;

/// Far above what any of it takes.
const LIMIT: Duration = Duration::from_mins(1);

/// Flips, and prints how long a flip takes. Nothing may be lost, and after each flip the other rules must be those that answer.
pub fn a_thousand_times() {
    let mut world = Standalone::new(&[NodeStart {
        mode: Mode::IptablesNft,
        ipv6: true,
    }]);
    // The agent loads the table, and a person's move stops before the flip; then the test has the table for itself.
    let arguments = world.agent_arguments(1);
    world.start_agent_with(1, &arguments, &[("NFTFLEET_REHEARSE", "flipping:before")]);
    wait::until_blocking("the order to be taken", LIMIT, || {
        let ran = world.command_on_state(1, "switch", &["--no-wait"], LIMIT);
        (ran.code == Some(0)).then_some(())
    });
    world.agent(1).wait_until_ended(LIMIT);
    move_db(&world);
    let node = world.node(1).clone();
    let db = sockets(&DB);
    let load = LoadFromEverywhere::start(&node, RATE);
    load.wait_for_more(20);
    let layout = LayoutSettings {
        masquerade_bit: 14,
        masquerade_all: false,
    };
    let kernel = node.netns.run(|| Netlink::open().expect("a netlink socket"));
    let mut dataplane = Dataplane::new(kernel, layout);
    let mut took = Vec::new();
    let mut made = load.so_far().0;
    for round in 0..FLIPS {
        for dormant in [false, true] {
            let began = Instant::now();
            dataplane.set_dormant(dormant).expect("the kernel takes the flip");
            took.push(began.elapsed());
            // The families in turn.
            let asked = db[round as usize % db.len()];
            let answered = tcp_identity(&node.client, asked, LIMIT)
                .unwrap_or_else(|error| panic!("{asked} after {} flips: {error}", took.len()));
            let expected = if dormant { KUBE_PROXYS } else { OURS };
            assert_eq!(answered, expected, "{asked} after {} flips", took.len());
            // Somebody else connects between two flips, too.
            wait::until_blocking("a new connection", LIMIT, || {
                let now = load.so_far().0;
                (now > made).then(|| made = now)
            });
        }
    }
    let (connections, held) = load.stop_without_loss("a thousand flips each way");
    took.sort_unstable();
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    println!(
        "{} flips under {connections} new connections and queries, none failed; {held} held open, none lost; a flip took p50 {:?}, \
         p99 {:?}, at most {:?}",
        took.len(),
        at(50),
        at(99),
        at(100)
    );
    assert!(
        connections > u64::from(FLIPS),
        "{connections} connections for {FLIPS} flips each way"
    );
}

/// Gives shop/db another endpoint. No agent runs: kube-proxy's rules follow, our table keeps what it has, and so an answer
/// tells which of them led to it.
fn move_db(world: &Standalone) {
    let objects = world.kubernetes.objects();
    for mut slice in objects.all("EndpointSlice") {
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] == "db" {
            let address = if slice["addressType"] == "IPv6" {
                "fd00:128:200::3"
            } else {
                "10.128.200.3"
            };
            slice["endpoints"][0]["addresses"] = json!([address]);
            world.kubernetes.apply(slice);
        }
    }
    world.kube_proxy(1).wait_until_in_sync();
}
