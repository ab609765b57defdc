//! How fast the data plane is, beside kube-proxy's: a report, and no test. Needs root.
//!
//! The same Services are written in six shapes into fresh network namespaces: whole, and change by change. Then packets
//! are sent through nodes that stand side by side. Prints tables, and writes a plot and every single measurement.
//! docs/PERFORMANCE.md says how each figure is got.

mod cluster;
mod flags;
mod latency;
mod measure;
mod plan;
mod plot;
mod programming;
mod results;
mod sample;
mod shapes;
mod subjects;
mod table;
mod throughput;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser as _;

use self::flags::{Flags, Part};
use self::plan::Plan;
use self::results::Results;
use self::subjects::Subjects;

fn main() {
    let flags = Flags::parse();
    if let Some(Part::Child(child)) = &flags.child {
        return measure::answer(child);
    }
    assert!(nix::unistd::geteuid().is_root(), "network namespaces need root");
    let plan = match (flags.pair, flags.smoke, flags.quick) {
        (Some(services), ..) => Plan::pair(services),
        (None, true, _) => Plan::smoke(),
        (None, false, true) => Plan::quick(),
        (None, false, false) => Plan::full(),
    };
    let started = Instant::now();
    let mut results = Results::default();
    programming::measure(&plan, &mut results);
    if flags.pair.is_some() {
        println!("\n{}", table::report(&results));
        return;
    }
    let subjects = Subjects::new(&plan.traffic);
    results.latency = latency::measure(&plan.traffic, &subjects);
    results.throughput = throughput::measure(&plan.traffic, &subjects);

    let report = table::report(&results);
    println!("\n{report}");
    let raw = from_root(&flags.raw);
    write(&raw.join("dataplane.md"), &report);
    write(&raw.join("dataplane.json"), &results.to_json().to_string());
    write(&from_root(&flags.plot), &plot::svg(&results));
    eprintln!("took {:.0} s", started.elapsed().as_secs_f64());
}

/// A path as seen from the repository: cargo starts a benchmark in its package's folder.
fn from_root(path: &Path) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("the package lies in the repository").join(path)
}

fn write(path: &Path, text: &str) {
    let written = path
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(path, text));
    written.unwrap_or_else(|error| panic!("{} can't be written: {error}", path.display()));
    eprintln!("wrote {}", path.display());
}
