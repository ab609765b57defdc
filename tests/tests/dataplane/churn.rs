//! Endpoints that come and go at every commit, as fast as can be, while clients connect all the time.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nftfleet_agent::dataplane::diff::{all_keys, diff};
use nftfleet_agent::dataplane::kernel::{Kernel as _, Transaction};
use nftfleet_agent::dataplane::leaving::Grace;
use nftfleet_agent::dataplane::netlink::wait_for_packets;
use nftfleet_agent::dataplane::programmed::{Change, Element, Group, Programmed, Which};
use nftfleet_agent::dataplane::{Desired, Key, Layout, Netlink};
use nftfleet_domain::service::{Family, Protocol, Vip};
use nftfleet_tests::traffic::{Counts, NewConnections, UdpQueries};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::world::{World, desired, four_vips, layout, target, vip};

/// How many servers there are; all live all the time, endpoints or not.
const SERVERS: u16 = 12;

/// Into the smallest class, an exact one and one with repeated draws.
const SIZES: [usize; 3] = [1, 5, 12];

/// How long endpoints come and go.
const DURATION: Duration = Duration::from_secs(8);

/// Attempts a second of each of four streams.
const RATE: u32 = 1_500;

/// Two Services in both families and protocols.
fn vips() -> Vec<Vip> {
    let second = ["10.96.20.2:443", "[fd00:10:96::2002]:443"];
    let second = second
        .into_iter()
        .flat_map(|at| [vip(at, Protocol::Tcp), vip(at, Protocol::Udp)]);
    four_vips().into_iter().chain(second).collect()
}

/// Each Service with other endpoints.
fn shuffled(world: &World, random: &mut StdRng) -> Desired {
    let mut numbers: Vec<u16> = (0..SERVERS).collect();
    desired(vips().into_iter().map(|vip| {
        numbers.shuffle(random);
        let size = SIZES[random.random_range(0..SIZES.len())];
        let family = Family::of(vip.address);
        let endpoints = numbers[..size].iter().map(|number| world.endpoint(family, *number));
        (vip, endpoints.collect())
    }))
}

/// Every Service with this many endpoints, each beginning at another server.
fn everywhere(world: &World, endpoints: u16) -> Desired {
    desired((0..).zip(vips()).map(|(first, vip)| {
        let family = Family::of(vip.address);
        let numbers = (first..first + endpoints).map(|number| number % SERVERS);
        (vip, numbers.map(|number| world.endpoint(family, number)).collect())
    }))
}

/// Clients of every VIP, outside and in a pod, over both protocols.
struct Clients {
    tcp: Vec<NewConnections>,
    udp: Vec<UdpQueries>,
}

impl Clients {
    fn start(world: &World) -> Self {
        let node = world.node();
        // Queries by the thousand: their connections need not be remembered for half a minute.
        node.netns.sysctl("netfilter/nf_conntrack_udp_timeout", "2");
        let of = |protocol| {
            let vips = vips().into_iter().filter(move |vip| vip.protocol == protocol);
            vips.map(target).collect::<Vec<_>>()
        };
        let from = [&node.client, &node.pod];
        Self {
            tcp: from
                .map(|from| NewConnections::start(from, of(Protocol::Tcp), RATE))
                .into(),
            udp: from.map(|from| UdpQueries::start(from, of(Protocol::Udp), RATE)).into(),
        }
    }

    fn none_refused(&self) -> bool {
        let tcp = self.tcp.iter().map(NewConnections::counts);
        let mut counts = tcp.chain(self.udp.iter().map(UdpQueries::counts));
        counts.all(|counts| counts.failed == 0)
    }

    fn stop(self) -> Vec<Counts> {
        let tcp = self.tcp.into_iter().map(NewConnections::stop);
        tcp.chain(self.udp.into_iter().map(UdpQueries::stop)).collect()
    }
}

fn made(counts: &[Counts]) -> u64 {
    counts.iter().map(|counts| counts.made).sum()
}

/// A thread that waits for packets while changes go on, as the agent has one.
struct Waiting {
    graces: Sender<Grace>,
    over: Receiver<Grace>,
}

impl Waiting {
    fn start() -> Self {
        let (graces, begun) = channel();
        let (tell, over) = channel();
        std::thread::spawn(move || {
            for grace in begun {
                wait_for_packets();
                if tell.send(grace).is_err() {
                    return;
                }
            }
        });
        Self { graces, over }
    }
}

/// Follows the wishes in turn, as fast as can be, while clients connect.
fn no_connection_is_lost(world: &World, what: &str, wishes: &[Desired]) {
    let mut dataplane = world.dataplane();
    dataplane.load(&wishes[0], false).expect("the table follows");
    let clients = Clients::start(world);
    let started = Instant::now();
    let keys = vips().into_iter().map(Key::Vip).collect();
    let waiting = Waiting::start();
    let mut commits = 0;
    for wish in wishes.iter().cycle() {
        if started.elapsed() > DURATION {
            break;
        }
        commits += dataplane.follow(wish, &keys).expect("the table follows");
        if let Some(grace) = dataplane.begin_grace() {
            waiting.graces.send(grace).expect("the thread waits");
        }
        for grace in waiting.over.try_iter() {
            commits += dataplane.leave(wish, grace).expect("the table follows");
        }
    }
    let counts = clients.stop();
    println!("{what}: {commits} commits, {} connections", made(&counts));
    for counts in &counts {
        counts.assert_no_loss();
        assert_eq!(counts.answered.len(), usize::from(SERVERS), "{:?}", counts.answered);
    }
    assert!(made(&counts) > 5_000, "{}", made(&counts));
    assert!(commits > 1_000, "{commits}");
    dataplane.load(&wishes[0], false).expect("the table follows");
    assert_eq!(
        dataplane.compare(&wishes[0]).expect("the table is read"),
        Vec::<String>::new()
    );
}

#[test]
fn endpoints_that_change_at_every_commit_cost_no_connection() {
    let world = World::new(SERVERS);
    let mut random = StdRng::seed_from_u64(5);
    let wishes: Vec<Desired> = (0..97).map(|_| shuffled(&world, &mut random)).collect();
    no_connection_is_lost(&world, "any endpoints", &wishes);
}

#[test]
fn services_that_change_class_at_every_commit_cost_no_connection() {
    let world = World::new(SERVERS);
    let wishes = [everywhere(&world, 1), everywhere(&world, SERVERS)];
    no_connection_is_lost(&world, "1 to 12 and back", &wishes);
}

/// The table without the second look.
fn one_look() -> Layout {
    let mut layout = layout();
    for chain in &mut layout.chains {
        chain
            .rules
            .retain(|rule| rule.comment.is_none_or(|comment| !comment.starts_with("second look")));
    }
    layout
}

/// From one wish to another in one commit: a Service that changes class leaves its old set at once.
fn eager(from: &Desired, to: &Desired) -> Vec<Change> {
    let mut programmed = Programmed::default();
    loop {
        let changes = diff(from, &programmed, &all_keys(from, &programmed));
        if changes.is_empty() {
            break;
        }
        programmed.apply(changes);
    }
    let mut changes = diff(to, &programmed, &all_keys(to, &programmed));
    let left = changes.iter().filter_map(|change| match change {
        Change::Add(Element::Member(vip, which, Group::Class(_))) => {
            let group = *programmed.vips[vip].list(*which).groups.first().expect("a class");
            Some(Change::Remove(Element::Member(*vip, Which::All, group)))
        }
        _ => None,
    });
    let left: Vec<Change> = left.collect();
    changes.extend(left);
    changes
}

/// Makes the table with this layout and these Services.
fn make(kernel: &mut Netlink, layout: &Layout, wish: &Desired) {
    let transaction = Transaction {
        make: true,
        dormant: Some(false),
        sets: &layout.sets.iter().collect::<Vec<_>>(),
        chains: &layout.chains.iter().collect::<Vec<_>>(),
        changes: &diff(wish, &Programmed::default(), &wish.keys()),
        ..Transaction::default()
    };
    kernel.commit(&transaction).expect("a table");
}

/// What the tests above would say of a table with one look and of Services that change class in one commit: this is the
/// race that both cures are there for, and the proof that clients here can see it.
#[test]
fn without_the_second_look_and_the_lazy_move_clients_are_refused() {
    let world = World::new(SERVERS);
    let one_look = one_look();
    assert_ne!(one_look, layout());
    let mut kernel = world.netlink();
    make(&mut kernel, &one_look, &everywhere(&world, 1));
    let (few, many) = (everywhere(&world, 1), everywhere(&world, SERVERS));
    let steps = [eager(&few, &many), eager(&many, &few)];
    let clients = Clients::start(&world);
    let (started, mut commits) = (Instant::now(), 0);
    while clients.none_refused() && started.elapsed() < Duration::from_secs(30) {
        for changes in steps.iter().cycle().take(200) {
            let transaction = Transaction {
                changes,
                ..Transaction::default()
            };
            kernel.commit(&transaction).unwrap();
            commits += 1;
        }
    }
    let took = started.elapsed();
    let counts = clients.stop();
    let failures: Vec<_> = counts.iter().flat_map(|counts| &counts.failures).collect();
    println!(
        "{commits} commits in {took:?}, {} connections, lost: {failures:?}",
        made(&counts)
    );
    assert!(
        failures.iter().any(|failure| failure.error.contains("refused")),
        "{failures:?}"
    );
}
