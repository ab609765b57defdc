//! What the demo prints.

use std::fmt::Write as _;
use std::time::Duration;

use nftfleet_tests::load::Outcome;
use nftfleet_web_api_spec::types::{Fact, Node, Rollout, Task, TaskEvent};

/// A node's line in the final table.
#[derive(Clone, Debug)]
pub struct Row {
    /// The node's name.
    pub node: String,
    /// Its task's last state.
    pub state: String,
    /// Its mode before.
    pub before: String,
    /// Its mode after.
    pub after: String,
    /// How long each phase took.
    pub phases: String,
    /// New connections and queries.
    pub made: u64,
    /// Those that failed.
    pub failed: u64,
    /// Whether its long-lived connections live.
    pub alive: bool,
    /// The longest silence on them, in milliseconds.
    pub worst_gap_ms: u128,
}

impl Row {
    /// A node's line from its task and its clients' traffic.
    pub fn new(task: &Task, before: String, after: String, outcome: &Outcome) -> Self {
        let (made, failed) = outcome.totals();
        for failure in outcome.tcp.failures.iter().chain(&outcome.udp.failures) {
            println!("  lost: {failure:?}");
        }
        Self {
            node: task.node.clone(),
            state: task.state.clone(),
            before,
            after,
            phases: phases(&task.timeline),
            made,
            failed,
            alive: outcome.all_alive(),
            worst_gap_ms: outcome.held.iter().map(|held| held.worst_gap_ms).max().unwrap_or(0),
        }
    }
}

/// The time spent in each state that was left again.
fn phases(timeline: &[TaskEvent]) -> String {
    let mut text = String::new();
    for pair in timeline.windows(2) {
        if pair[0].state == "PENDING" {
            continue;
        }
        let spent = pair[1].at.duration_since(pair[0].at).as_secs_f64();
        let _ = write!(
            text,
            "{}{} {spent:.2}",
            if text.is_empty() { "" } else { ", " },
            pair[0].state.to_lowercase()
        );
    }
    text
}

/// The nodes as the API tells them.
pub fn print_nodes(nodes: &[Node]) {
    for node in nodes {
        let mode = node.proxy_mode.as_ref().map_or("-", |mode| mode.mode.as_str());
        let kernel = match node.report.as_ref().map(|report| &report.kernel) {
            Some(Fact::Known(kernel)) => format!(", kernel {}", kernel.release),
            _ => String::new(),
        };
        println!(
            "  {:<8} mode {mode:<16} {:?}{kernel}",
            node.name, node.readiness.verdict
        );
        for reason in &node.readiness.reasons {
            println!("           {}: {}", reason.code, reason.message);
        }
    }
}

/// A line whenever something has changed since the last.
pub fn print_progress(
    shown: &mut String,
    elapsed: Duration,
    rollout: &Rollout,
    tasks: &[Task],
    made: u64,
    failed: u64,
) {
    let stages: Vec<String> = rollout
        .stages
        .iter()
        .map(|stage| format!("{} {:?}", stage.name, stage.state))
        .collect();
    let nodes: Vec<String> = tasks
        .iter()
        .map(|task| format!("{} {}", task.node, task.state))
        .collect();
    let line = format!("{:?} | {} | {}", rollout.state, stages.join(", "), nodes.join(", "));
    if line != *shown {
        println!(
            "  {:5.1} s  {line} | {made} connections, {failed} failed",
            elapsed.as_secs_f64()
        );
        for reason in tasks.iter().flat_map(|task| &task.reasons) {
            println!("           why: {reason}");
        }
        *shown = line;
    }
}

/// The final table.
pub fn print_rows(rows: &[Row]) {
    println!(
        "{:<8} {:<10} {:<16} {:<13} {:>11} {:>7}  {:<11} {:>8}  seconds in each phase",
        "node", "task", "mode before", "mode after", "connections", "failed", "long-lived", "worst gap"
    );
    for row in rows {
        println!(
            "{:<8} {:<10} {:<16} {:<13} {:>11} {:>7}  {:<11} {:>6} ms  {}",
            row.node,
            row.state,
            row.before,
            row.after,
            row.made,
            row.failed,
            if row.alive { "alive" } else { "DEAD" },
            row.worst_gap_ms,
            row.phases
        );
    }
}
