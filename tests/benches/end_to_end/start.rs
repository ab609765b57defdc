//! How the agent starts, cold and warm, and what it does when nothing happens.

use std::time::{Duration, Instant};

use nftfleet_agent::dataplane::{Kernel as _, Netlink};
use nftfleet_domain::inventory::TableState;
use nftfleet_tests::kube_sim::KubeSim;
use nftfleet_tests::lab::Lab;
use nftfleet_tests::wait::until_blocking;

use crate::agent::{Agent, Agents};
use crate::cluster::{Cluster, newcomer_address};
use crate::lister::processor_time;
use crate::notifications::{Heard, Listener};
use crate::report::{Report, seconds};

/// Longer than any start may take, on a machine that is shared.
const LIMIT: Duration = Duration::from_mins(5);

/// Waits until something is there; good to a hundredth of a second, which is little of any start.
fn wait<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_blocking(what, LIMIT, look)
}

/// When the agent has both lists: it begins to watch then.
fn listed(kubernetes: &KubeSim, before: u64) -> Option<Instant> {
    (watches(kubernetes) >= before + 2).then(Instant::now)
}

fn watches(kubernetes: &KubeSim) -> u64 {
    kubernetes.served("services").watches + kubernetes.served("endpointslices").watches
}

/// From nothing to a table that answers.
pub fn cold(lab: &Lab, kubernetes: &KubeSim, cluster: Cluster, agents: &Agents, report: &mut Report) -> Agent {
    let node = &lab.node(1).netns;
    // Asked, not listened to: for every listener the kernel makes a message for each element, which costs as much as the
    // commit itself.
    let mut kernel = node.run(|| Netlink::open().expect("a netlink socket"));
    let (before, busy) = (watches(kubernetes), processor_time());
    let agent = agents.start();
    let listed = wait("both lists", || listed(kubernetes, before));
    let committed = wait("the kernel's commit", || {
        let state = kernel.state().expect("the state of the table");
        (state == TableState::Active).then(Instant::now)
    });
    let (peak, threads) = (agent.memory("VmHWM"), agent.threads());
    let busy = processor_time().saturating_sub(busy);
    // As `nft` prints the map: its own line with a colon, then one for each element.
    let printed = node.pipe("nft", &["list", "map", "inet", "nftfleet", "endpoints4"], "");
    let came = printed.matches(" : ").count() - 1;
    assert_eq!(
        came,
        cluster.all_endpoints() as usize,
        "endpoints in the kernel's table"
    );

    let since = |moment: Instant| seconds(moment.duration_since(agent.started));
    report.line("cold start: process start to the kernel's commit", since(committed));
    report.line("- process start to both lists read", since(listed));
    let building = committed.duration_since(listed);
    report.line("- from there to the commit", seconds(building));
    report.line(
        "- processor time of the agent's threads so far, user + system, s",
        threads,
    );
    report.line(
        "- processor time of the simulator and of asking the kernel",
        seconds(busy),
    );
    report.line("- endpoints in the kernel's table", came.to_string());
    report.line("peak memory (VmHWM) at the commit", peak);
    // The table is active when it is as complete as the agent knows.
    wait("the agent to know", || {
        (agent.metric("table_active")? == 1).then_some(())
    });
    agent.assert_healthy();
    agent
}

/// Leaves the agent alone.
pub fn idle(agent: &Agent, length: Duration, report: &mut Report) {
    let (before, begin) = (agent.processor_time(), Instant::now());
    std::thread::sleep(length);
    let busy = agent.processor_time().saturating_sub(before);
    let percent = 100.0 * busy.as_secs_f64() / begin.elapsed().as_secs_f64();
    let figure = format!("{percent:.3} % of a core ({busy:?} in {})", seconds(begin.elapsed()));
    report.line("idle", figure);
    report.line("peak memory (VmHWM) until then", agent.memory("VmHWM"));
}

/// A restart that finds the table as it should be. `newcomer` is the number of one that has not been yet.
pub fn warm(lab: &Lab, kubernetes: &KubeSim, cluster: Cluster, agents: &Agents, newcomer: u32, report: &mut Report) {
    let listener = Listener::start(&lab.node(1).netns);
    let before = watches(kubernetes);
    let agent = agents.start();
    let listed = wait("both lists", || listed(kubernetes, before));
    // It knows how many elements the table holds once it has read it and found it right.
    let known = wait("the agent to know the table", || {
        let elements = agent.metric("table_elements")?;
        (elements > u64::from(cluster.all_endpoints()) && agent.metric("table_active")? == 1).then(Instant::now)
    });
    let commits = agent.metric("commits");
    // The kernel tells in order: what should not have been written comes before a change that is made now.
    kubernetes.apply(cluster.slice(0, Some(newcomer)));
    let written = wait("the change after the start", || {
        let is_newcomer = |heard: &Heard| heard.endpoints.contains_key(&newcomer_address(newcomer));
        listener.look(|heard| is_newcomer(heard).then_some(heard.elements))
    });
    let since = |moment: Instant| seconds(moment.duration_since(agent.started));
    report.line(
        "warm restart: process start to the table read and found right",
        since(known),
    );
    report.line("- process start to both lists read", since(listed));
    // The change itself takes an endpoint out and puts one in.
    report.line("- elements written", (written - 2).to_string());
    report.line("- commits", commits.map_or_else(String::new, |n| n.to_string()));
    report.line("- peak memory (VmHWM)", agent.memory("VmHWM"));
    agent.assert_healthy();
    agent.end();
    agents.log();
}
