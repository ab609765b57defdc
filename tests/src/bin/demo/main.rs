//! `make demo`: a staged rollout moves three nodes under load from kube-proxy's iptables rules to nftables; then a fourth,
//! whose probe is made to fail, goes back by itself. Ends with a table, and with failure if anything was lost.

mod forward;
mod report;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use nftfleet_tests::fault;
use nftfleet_tests::kube_proxy::Backend;
use nftfleet_tests::load::Load;
use nftfleet_tests::wait;
use nftfleet_tests::world::{CLUSTER, NodeSpec, OPERATOR_TOKEN, World, probe};
use nftfleet_web_api_spec::types::{
    NewRollout, Rollout, RolloutAction, RolloutSettings, RolloutState, StageSize, StageSpec, Task,
};

use self::forward::Forward;
use self::report::{Row, print_nodes, print_progress, print_rows};

/// The three nodes of the first rollout, and the one that joins later.
const NODES: [NodeSpec; 4] = [
    NodeSpec {
        backend: Backend::Legacy,
        ipv6: false,
    },
    NodeSpec {
        backend: Backend::Nft,
        ipv6: false,
    },
    NodeSpec {
        backend: Backend::Nft,
        ipv6: true,
    },
    NodeSpec {
        backend: Backend::Nft,
        ipv6: false,
    },
];

/// New TCP connections a second through each node.
const RATE: u32 = 500;

/// How many new connections the first rollout must have met, so that "none failed" means something.
const LEAST_CONNECTIONS: u64 = 10_000;

/// How long a rollout may take.
const LIMIT: Duration = Duration::from_mins(2);

/// Shows a staged rollout on a lab of network namespaces. Needs root.
#[derive(Parser)]
struct Flags {
    /// Leave everything running at the end, reachable from this machine, until Ctrl-C.
    #[arg(long, env = "KEEP", value_parser = clap::builder::FalseyValueParser::new())]
    keep: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let started = Instant::now();
    // Bound here, before this thread moves into the lab.
    let forward = flags.keep.then(Forward::bind);

    println!("Building a lab: 4 nodes, each with its own client; kube-proxy's iptables rules carry the traffic.");
    let mut world = World::new(&NODES);
    for number in 1..=3 {
        world.start_agent(number, &[]);
    }
    for number in 1..=3 {
        world.wait_until_reported(number);
    }
    println!(
        "\nThe server on its own Postgres, and three agents, after {:.1} s. GET /v1/nodes says:",
        seconds(started)
    );
    let before = [1, 2, 3].map(|number| mode(&mut world, number));
    print_nodes(&world.run(async |api| api.nodes(CLUSTER).await.expect("nodes can be listed")));

    println!("\nClients open {RATE} TCP connections a second through every node, and hold one open. Rollout \"move\":");
    let loads: Vec<Load> = (1..=3)
        .map(|number| Load::start(world.lab.node(number), RATE))
        .collect();
    let moved = follow(&mut world, &wish("move", &["node-1", "node-2", "node-3"]), &loads);
    wait::until_blocking("enough connections to judge by", LIMIT, || {
        (loads.iter().map(|load| load.so_far().0).sum::<u64>() >= LEAST_CONNECTIONS).then_some(())
    });
    let mut rows = Vec::new();
    for ((number, load), before) in (1..).zip(loads).zip(before) {
        let after = settled_mode(&mut world, number, "NFTFLEET");
        rows.push(Row::new(&moved.1[number - 1], before, after, &load.stop()));
    }

    println!(
        "\nA fourth node joins. Its agent's masquerade mark is one that kubelet's firewall drops: the probe will fail"
    );
    println!("once its table is active. Rollout \"one-that-fails\":");
    fault::drop_marked(&world.lab.node(4).netns, NODES[3].backend);
    world.start_agent(4, &[("NFTFLEET_MASQUERADE_BIT", fault::CLASHING_BIT)]);
    world.wait_until_reported(4);
    let before = mode(&mut world, 4);
    let load = vec![Load::start(world.lab.node(4), RATE)];
    let reverted = follow(&mut world, &wish("one-that-fails", &["node-4"]), &load);
    let after = settled_mode(&mut world, 4, "IPTABLES_NFT");
    for load in load {
        rows.push(Row::new(&reverted.1[0], before.clone(), after.clone(), &load.stop()));
    }

    println!();
    print_rows(&rows);
    let faults = judge(&rows, moved.0.state, reverted.0.state);
    println!(
        "\n`ip netns exec {} nft list table inet nftfleet` shows a switched node.",
        world.lab.node(1).netns.name()
    );
    println!("Wall time {:.1} s.", seconds(started));
    if let Some(forward) = forward {
        forward.serve();
        explain_what_runs(&world, &forward);
        world.run(async |_| tokio::signal::ctrl_c().await.expect("Ctrl-C can be waited for"));
    }
    if faults.is_empty() {
        println!("Nothing was lost.");
        ExitCode::SUCCESS
    } else {
        for fault in faults {
            println!("FAILED: {fault}");
        }
        ExitCode::FAILURE
    }
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

fn mode(world: &mut World, number: usize) -> String {
    world.node(number).proxy_mode.map(|mode| mode.mode).unwrap_or_default()
}

/// The mode that a node reports, once it reports `wanted`; what it reports at the limit otherwise.
fn settled_mode(world: &mut World, number: usize, wanted: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    wait::until_blocking("the node's report", LIMIT, || {
        let found = mode(world, number);
        (found == wanted || Instant::now() > deadline).then_some(found)
    })
}

fn wish(name: &str, nodes: &[&str]) -> NewRollout {
    let mut stages = vec![StageSpec {
        name: "canary".to_owned(),
        size: StageSize::Count(1),
    }];
    if nodes.len() > 1 {
        stages.push(StageSpec {
            name: "rest".to_owned(),
            size: StageSize::Rest,
        });
    }
    NewRollout {
        name: name.to_owned(),
        action: RolloutAction::MoveToNftfleet,
        clusters: vec![CLUSTER.to_owned()],
        nodes: Some(nodes.iter().map(|node| (*node).to_owned()).collect()),
        stages,
        settings: RolloutSettings {
            max_concurrent: Some(2),
            node_soak_seconds: Some(3),
            probe: Some(vec![
                probe("default", "kubernetes", 443),
                probe("shop", "web", 80),
                probe("shop", "db", 5432),
            ]),
            ..RolloutSettings::default()
        },
    }
}

/// Starts a rollout through the API and prints every change until its end.
fn follow(world: &mut World, wish: &NewRollout, loads: &[Load]) -> (Rollout, Vec<Task>) {
    println!(
        "  POST /v1/rollouts {}",
        serde_json::to_string(wish).expect("a wish is JSON")
    );
    let began = Instant::now();
    let rollout = world.start_rollout(wish);
    println!(
        "  POST /v1/rollouts/{}/start {{\"planHash\":\"{}…\"}}",
        rollout.id,
        &rollout.plan_hash[..12]
    );
    let mut shown = String::new();
    wait::until_blocking("the rollout to end", LIMIT, || {
        let (found, tasks) = world.run(async |api| {
            let found = api.rollout(rollout.id).await.expect("the rollout can be read");
            (found, api.tasks(rollout.id).await.expect("its tasks can be read"))
        });
        let (made, failed) = loads
            .iter()
            .map(Load::so_far)
            .fold((0, 0), |sum, load| (sum.0 + load.0, sum.1 + load.1));
        print_progress(&mut shown, began.elapsed(), &found, &tasks, made, failed);
        (!matches!(found.state, RolloutState::Draft | RolloutState::Running)).then_some(())
    });
    world.wait_for_end(rollout.id, LIMIT)
}

/// What did not go as it must.
fn judge(rows: &[Row], moved: RolloutState, reverted: RolloutState) -> Vec<String> {
    let mut faults = Vec::new();
    if moved != RolloutState::Succeeded {
        faults.push(format!("the first rollout ended {moved:?}"));
    }
    if reverted != RolloutState::Failed {
        faults.push(format!(
            "the second rollout ended {reverted:?}, although its node's probe must fail"
        ));
    }
    for row in rows {
        let (state, mode) = if row.node == "node-4" {
            ("REVERTED", "IPTABLES_NFT")
        } else {
            ("CONFIRMED", "NFTFLEET")
        };
        if row.state != state || row.after != mode {
            faults.push(format!("{} ended {} in mode {}", row.node, row.state, row.after));
        }
        if row.failed > 0 || row.made == 0 {
            faults.push(format!(
                "{}: {} of {} new connections failed",
                row.node, row.failed, row.made
            ));
        }
        if !row.alive {
            faults.push(format!("{} lost a long-lived connection", row.node));
        }
    }
    let made: u64 = rows.iter().filter(|row| row.node != "node-4").map(|row| row.made).sum();
    if made < LEAST_CONNECTIONS {
        faults.push(format!("only {made} connections were tried during the first rollout"));
    }
    faults
}

fn explain_what_runs(world: &World, forward: &Forward) {
    let base = forward.base();
    println!("\nEverything is left running until Ctrl-C:");
    println!("  {base}/docs          the API, to read and to try");
    println!("  {base}/openapi.json  the OpenAPI document");
    println!("  curl -s -H 'Authorization: Bearer {OPERATOR_TOKEN}' {base}/v1/nodes | jq");
    println!("  curl -s -H 'Authorization: Bearer {OPERATOR_TOKEN}' {base}/v1/rollouts | jq");
    println!("  curl -s {base}/metrics");
    for node in &world.lab.nodes {
        println!(
            "  ip netns exec {} nft list table inet nftfleet   # {}",
            node.netns.name(),
            node.name
        );
    }
    println!("  logs and ledgers: {}", world.folder().display());
}
