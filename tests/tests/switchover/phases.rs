//! How long each step of a move takes on a large node: a report, for `make bench-move`.

use std::time::Duration;

use nftfleet_tests::kube_proxy::Mode;
use nftfleet_tests::load::LoadFromEverywhere;
use nftfleet_tests::manifests::{AddressType, Readiness, SERVICE_PROXY, endpoint_slice, service};
use nftfleet_tests::standalone::{NodeStart, Standalone};
use serde_json::Value;

/// kube-proxy's own rules for so many Services take minutes to write.
const LIMIT: Duration = Duration::from_mins(20);

/// How many endpoints a Service has.
const ENDPOINTS: u32 = 10;

/// How many Services there are to be, if a report is wanted: `SERVICES`.
pub fn wanted() -> Option<u32> {
    let text = std::env::var("SERVICES").ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("SERVICES={text} is no number")))
}

/// Moves a node with so many Services more than those of the load, and prints the times of its steps.
pub fn report(services: u32) {
    let mut world = Standalone::new(&[NodeStart {
        mode: Mode::IptablesLegacy,
        ipv6: true,
    }]);
    world.disk(1).grow();
    // kube-proxy has written what the load needs. All the rest takes its writer here a quarter of an hour at 30,000 Services, and
    // makes only the snapshot and the clean-up longer.
    let with_old_rules = std::env::var_os("OLD_RULES").is_some();
    world.kube_proxy(1).hold_sync(true);
    for number in 0..services {
        world.kubernetes.load(objects(number));
    }
    if with_old_rules {
        world.kube_proxy(1).hold_sync(false);
        world.kube_proxy(1).wait_until_in_sync_within(LIMIT);
    }
    let mut arguments = world.agent_arguments(1);
    let (key, value) = SERVICE_PROXY;
    arguments.extend(["--kube-proxy-label".to_owned(), format!("{key}={value}")]);
    arguments.extend(["--stand-by-seconds", "1"].map(str::to_owned));
    world.start_agent_with(1, &arguments, &[]);
    let load = LoadFromEverywhere::start(world.node(1), 20);
    nftfleet_tests::wait::until_blocking("the order to be taken", LIMIT, || {
        let probe = ["--probe", "default/kubernetes:443", "--hold-seconds", "2", "--no-wait"];
        (world.command_on_state(1, "switch", &probe, LIMIT).code == Some(0)).then_some(())
    });
    world.wait_for_position(1, &["moved"], LIMIT);
    let (made, held) = load.stop_without_loss("a large node");
    let log = world.log(1);
    let old = if with_old_rules { "as many" } else { "the load's few" };
    println!("A move at {services} Services x {ENDPOINTS} endpoints, from iptables-legacy with rules for {old}");
    let mut steps = log.lines().filter(|line| line.contains("the move goes on"));
    let mut began = steps.next().map(time).expect("the move began");
    for line in steps {
        let step = line.split("from=\"").nth(1).and_then(|rest| rest.split('"').next());
        let now = time(line);
        println!("| {:<14} | {:>9.3} s |", step.unwrap_or("?"), now - began);
        began = now;
    }
    for line in log.lines().filter(|line| line.contains("the table is awake")) {
        println!("{}", line.split(": ").last().unwrap_or_default());
    }
    println!("{made} new connections and queries, none failed; {held} held open, none lost");
}

/// The seconds of the day at the beginning of a line of the log.
fn time(line: &str) -> f64 {
    let clock = line.split('T').nth(1).and_then(|rest| rest.split('Z').next());
    let parts = clock
        .expect("a time")
        .split(':')
        .map(|part| part.parse::<f64>().expect("a number"));
    parts.fold(0.0, |seconds, part| seconds * 60.0 + part)
}

fn objects(number: u32) -> [Value; 2] {
    let name = format!("s-{number}");
    let [_, a, b, c] = (0x0a61_0000 + number).to_be_bytes();
    let service = service("large", &name)
        .cluster_ips([format!("10.{a}.{b}.{c}").as_str()])
        .port("", "TCP", 80, 8080)
        .object();
    let mut slice = endpoint_slice("large", &name, "a", AddressType::IPv4).port("", "TCP", 8080);
    for endpoint in 0..ENDPOINTS {
        let [_, a, b, c] = (0x0a90_0000 + number * ENDPOINTS + endpoint).to_be_bytes();
        slice = slice.endpoint(&format!("10.{a}.{b}.{c}"), "worker-9", Readiness::READY);
    }
    [service, slice.object()]
}
