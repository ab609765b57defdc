//! What a Service means to a packet, behaviour by behaviour as kube-proxy's nftables mode has it. Needs root.
//!
//! Each case has a cluster of its own in network namespaces and feeds the agent's data plane with objects as the Kubernetes
//! API prints them; what it claims is judged by packets. `cargo test --test conformance [filter]` runs them side by side
//! and ends with a table of all behaviours; one without a case fails the run.

mod affinity;
mod ask;
mod case;
mod changes;
mod cluster_ip;
mod conntrack;
mod detect_local;
mod dual_stack;
mod health;
mod hints;
mod load_balancer;
mod masquerade;
mod neighbours;
mod node_port;
mod objects;
mod policies;
mod ports;
mod readiness;
mod refusals;
mod report;
mod rig;
mod rows;
mod sctp;
mod source_ranges;
mod upstream;
mod watched;
mod writing;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use case::Case;
use report::Report;

/// Cases wait more than they work: for what must not be answered, above all.
const THREADS_PER_CORE: usize = 2;

fn all() -> Vec<Case> {
    [
        cluster_ip::CASES,
        ports::CASES,
        sctp::CASES,
        masquerade::CASES,
        detect_local::CASES,
        node_port::CASES,
        load_balancer::CASES,
        source_ranges::CASES,
        affinity::CASES,
        policies::CASES,
        readiness::CASES,
        hints::CASES,
        refusals::CASES,
        changes::CASES,
        watched::CASES,
        health::CASES,
        conntrack::CASES,
        dual_stack::CASES,
        writing::CASES,
        neighbours::CASES,
    ]
    .concat()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.test_threads.is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        arguments.test_threads = Some(cores * THREADS_PER_CORE);
    }
    let cases = all();
    let report = Arc::new(Report::default());
    let trials = cases.iter().map(|case| {
        let (case, report) = (*case, Arc::clone(&report));
        Trial::test(case.name, move || {
            report.begins(case.row);
            (case.run)();
            report.passed(case.row);
            Ok(())
        })
        .with_ignored_flag(!(case.possible)())
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if arguments.list {
        return ExitCode::SUCCESS;
    }
    println!("{}", report.table());
    let missing = report::missing(&cases);
    for what in &missing {
        eprintln!("{what}");
    }
    if missing.is_empty() {
        conclusion.exit_code()
    } else {
        ExitCode::FAILURE
    }
}
