//! The move of a node, from every mode that kube-proxy has here, through everything that may happen on the way: the shipped
//! agent, a living kube-proxy, a Kubernetes API over HTTP, real rules and real packets. Needs root.
//!
//! A cell of the matrix is a mode and a situation; clients outside, in a pod and on the node connect all the time in both
//! families, and hold connections open. `cargo test --test switchover [filter]` runs them side by side and ends with the matrix.
//! kube-proxy's IPVS mode needs a kernel that has it: `make test-vm`.

mod cell;
mod flips;
mod phases;
mod report;
mod situation;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use nftfleet_tests::kube_proxy::Mode;

use report::Report;
use situation::Situation;

/// Cells wait more than they work.
const THREADS_PER_CORE: usize = 3;

/// Those that this kernel can have.
fn modes() -> Vec<Mode> {
    let mut modes = Mode::ALL.to_vec();
    if std::path::Path::new("/proc/net/ip_vs").exists() {
        modes.push(Mode::Ipvs);
    }
    modes
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.test_threads.is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        arguments.test_threads = Some(cores * THREADS_PER_CORE);
    }
    let report = Arc::new(Report::default());
    let mut trials = Vec::new();
    for mode in modes() {
        for situation in Situation::all() {
            let report = Arc::clone(&report);
            // A filter is one word.
            let name = format!("{mode:?}::{}", situation.name().replace(' ', "-"));
            trials.push(Trial::test(name, move || {
                let counted = cell::run(mode, situation);
                report.passed(mode, situation, counted);
                Ok(())
            }));
        }
    }
    trials.push(Trial::test("flips::a_thousand_each_way", || {
        flips::a_thousand_times();
        Ok(())
    }));
    if let Some(services) = phases::wanted() {
        trials.push(Trial::test("phases::of_a_large_node", move || {
            phases::report(services);
            Ok(())
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        println!("{}", report.table());
    }
    conclusion.exit_code()
}
