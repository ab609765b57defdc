//! What must hold whenever the data plane is still.

use std::time::{Duration, Instant};

use nftfleet_agent::dataplane::netlink::conntrack::{Conntrack, Flow};
use nftfleet_domain::service::{Family, Protocol, Vip};
use nftfleet_tests::wait;

use crate::churn::Churn;
use crate::clients::Shared;
use crate::world::{Asker, SERVERS, Server, World, port_number};

/// Longer than the cutting off of flows takes on the busiest machine, and than a flow lives of which nobody keeps up.
const FLOWS_LIMIT: Duration = Duration::from_secs(8);

/// The table holds what is desired, `nft` prints it, and no flow of UDP goes to a server that does not serve.
pub fn check(world: &World, churn: &Churn<'_>, shared: &Shared) {
    churn.node().compare();
    let listed = world
        .node()
        .netns
        .command("nft")
        .args(["list", "table", "inet", "nftfleet"])
        .output();
    let listed = listed.expect("nft runs");
    let complaint = String::from_utf8_lossy(&listed.stderr);
    assert!(listed.status.success() && complaint.is_empty(), "nft: {complaint}");
    let mut conntrack = world
        .node()
        .netns
        .run(|| Conntrack::open().expect("connection tracking"));
    let started = Instant::now();
    let left = wait::until_blocking("the flows to be cut off", 2 * FLOWS_LIMIT, || {
        let flows = Family::BOTH
            .into_iter()
            .flat_map(|family| conntrack.udp_flows(family).expect("a listing"));
        let stale: Vec<Flow> = flows.filter(|flow| is_stale(world, flow, shared)).collect();
        (stale.is_empty() || started.elapsed() > FLOWS_LIMIT).then_some(stale)
    });
    let now = Instant::now();
    let timeline = shared.timeline();
    let told = left.iter().map(|flow| {
        format!(
            "{flow:?} is stale: {}",
            timeline.story(vip_of(flow), now, now, Asker::Node)
        )
    });
    let told: Vec<String> = told.collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
}

fn vip_of(flow: &Flow) -> Vip {
    let asked = flow.original.1;
    Vip {
        address: asked.ip(),
        protocol: Protocol::Udp,
        port: asked.port(),
    }
}

/// Whether nobody who serves answers the flow. Without any server a VIP's flows are left alone, as kube-proxy does.
fn is_stale(world: &World, flow: &Flow, shared: &Shared) -> bool {
    let vip = vip_of(flow);
    let timeline = shared.timeline();
    let Some(means) = timeline.present().get(&vip).filter(|means| !means.serving.is_empty()) else {
        return false;
    };
    let family = Family::of(vip.address);
    let mut servers = (0..SERVERS).map(Server::numbered);
    let answers = servers.find(|server| {
        let (address, port) = (world.machine_address(server.machine, family), port_number(server.port));
        (address, port) == (flow.reply_source.ip(), flow.reply_source.port())
    });
    !answers.is_some_and(|server| means.serving.contains(server))
}

/// What the kernels of the lab say of packets that were lost for want of room, in words.
pub fn symptoms(world: &World) -> String {
    let node = world.node();
    let mut told = Vec::new();
    let backends = world.lab.backends.iter().map(|backend| &backend.netns);
    for netns in [&node.netns, &node.client, &node.pod].into_iter().chain(backends) {
        for line in netns.pipe("nstat", &["-az"], "").lines() {
            let mut words = line.split_whitespace();
            let (name, count) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let is_loss = ["Errors", "Discards", "Overflows", "ListenDrops", "NoRoutes", "Fails"];
            if is_loss.iter().any(|end| name.ends_with(end)) && count != "0" {
                told.push(format!("{} {name} {count}", netns.name()));
            }
        }
    }
    told.push(node.netns.pipe("cat", &["/proc/net/stat/nf_conntrack"], ""));
    told.join("\n")
}
