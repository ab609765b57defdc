//! The shipped agent from end to end at scale: a Kubernetes API (the simulator, in this process) with many Services, a node
//! in a network namespace of its own that has been moved already, and the agent's release binary.
//!
//! Printed are the time from the process's start to the kernel's commit, memory, the processor time of an idle minute, a restart
//! with the table as it should be, and how long an endpoint's change takes from the API's event to the kernel's own
//! notification of it. `QUICK=1` takes 3,000 Services; `SERVICES`, `ENDPOINTS`, `CHANGES`, `RATE` and `IDLE_SECONDS` set each.

mod agent;
mod cluster;
mod latency;
mod lister;
mod notifications;
mod report;
mod server;
mod start;

use std::time::Duration;

use nftfleet_tests::kube_sim::KubeSim;
use nftfleet_tests::lab::{CONTROL4, Lab, LabSpec};

use agent::Agents;
use cluster::Cluster;
use report::{Report, load_average};

/// What to measure.
#[derive(Clone, Copy, Debug)]
struct Options {
    services: u32,
    /// Of each Service.
    endpoints: u32,
    /// How many endpoint changes.
    changes: u32,
    /// So many a second.
    rate: u32,
    /// How long the agent is left alone.
    idle: Duration,
}

impl Options {
    fn of_environment() -> Self {
        let number = |name: &str| -> Option<u32> {
            let text = std::env::var(name).ok()?;
            Some(
                text.parse()
                    .unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")),
            )
        };
        let quick = std::env::var_os("QUICK").is_some();
        Self {
            services: number("SERVICES").unwrap_or(if quick { 3_000 } else { 30_000 }),
            endpoints: number("ENDPOINTS").unwrap_or(10),
            changes: number("CHANGES").unwrap_or(if quick { 250 } else { 1_000 }),
            rate: number("RATE").unwrap_or(50),
            idle: Duration::from_secs(number("IDLE_SECONDS").unwrap_or(if quick { 10 } else { 60 }).into()),
        }
    }
}

fn main() {
    let options = Options::of_environment();
    let mut report = Report::default();
    report.line(
        "Services x endpoints",
        format!("{} x {}", options.services, options.endpoints),
    );
    report.line("load average before", load_average());

    let lab = Lab::new(&LabSpec::dual_stack(1, 1));
    let kubernetes = KubeSim::start_in(&lab.control, (CONTROL4, 6443).into());
    let cluster = Cluster::new(options.services, options.endpoints);
    kubernetes.load(cluster.objects());
    server::start(&lab.control);

    lister::measure(&lab, &kubernetes, &mut report);
    let agents = Agents::new(&lab, &kubernetes);
    let agent = start::cold(&lab, &kubernetes, cluster, &agents, &mut report);
    // What the start needed and gives back is given back by then.
    std::thread::sleep(Duration::from_secs(5));
    report.line("steady memory (VmRSS), 5 s after the start", agent.memory("VmRSS"));
    start::idle(&agent, options.idle, &mut report);
    latency::measure(&lab, &kubernetes, cluster, options.changes, options.rate, &mut report);
    report.line("memory after the changes (VmRSS)", agent.memory("VmRSS"));
    agent.assert_healthy();
    agent.end();
    start::warm(&lab, &kubernetes, cluster, &agents, options.changes, &mut report);
    report.line("load average after", load_average());
    report.print();
}
