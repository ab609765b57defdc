//! What a program costs, and what the kernel's memory is.
//!
//! A program is started by a copy of this binary, which does nothing else: the kernel then tells that copy's children's peak
//! memory and processor time, and they are those of the program alone.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nftfleet_tests::netns::Netns;
use nix::sys::resource::{UsageWho, getrusage};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::flags::Child;

/// What one run of a program cost.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Run {
    /// From its start to its end, in seconds.
    pub seconds: f64,
    /// Its largest resident memory, in KiB.
    pub peak_kib: f64,
}

/// Runs `program` in `netns` with `input` on its standard input. Panics with what it complained of when it fails.
pub fn run(netns: &Netns, program: &[&str], input: &str) -> Run {
    // A file and not a pipe: the time is to be the program's, and the pages of a pipe would have to be filled meanwhile.
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(input.as_bytes())
        .expect("a temporary file can be written");
    let path = file.path().to_string_lossy();
    let mut arguments = vec!["child", "program", "--input", &path, "--"];
    arguments.extend(program);
    child(netns, &arguments)
}

/// Starts this binary again in `netns`, and reads what it has to say.
pub fn child<T: DeserializeOwned>(netns: &Netns, arguments: &[&str]) -> T {
    let own = std::env::current_exe().expect("a running program has a path");
    // A process is born in the namespace of the thread that starts it. `ip netns exec` would be one more program to time.
    let output = netns.run(|| {
        let mut command = Command::new(own);
        let command = command.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit());
        command.output().expect("this program can be started again")
    });
    assert!(output.status.success(), "{arguments:?} failed with {}", output.status);
    serde_json::from_slice(&output.stdout).expect("a child answers with one value")
}

/// The child's side of [`run`].
pub fn run_as_child(input: &Path, program: &[String]) -> Run {
    let input = File::open(input).expect("the input can be read");
    let started = Instant::now();
    let status = Command::new(&program[0])
        .args(&program[1..])
        .stdin(input)
        .stdout(Stdio::null())
        .status()
        .unwrap_or_else(|error| panic!("{} does not start: {error}", program[0]));
    let seconds = started.elapsed().as_secs_f64();
    assert!(status.success(), "{program:?} failed with {status}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("a process may know what its children used");
    Run {
        seconds,
        peak_kib: kib(usage.max_rss()),
    }
}

/// Prints what a child of this binary found.
pub fn answer(child: &Child) {
    let text = match child {
        Child::Program { input, program } => serde_json::to_string(&run_as_child(input, program)),
        Child::Engine { services, endpoints } => {
            serde_json::to_string(&crate::programming::engine_peak(*services, *endpoints))
        }
    };
    println!("{}", text.expect("a measurement is a value"));
}

/// The largest resident memory that this process has had, in KiB. Not what `getrusage` says of a process: that has the memory
/// of whoever started it in it.
pub fn own_peak_kib() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse().ok());
    peak.expect("a process with memory")
}

fn kib(number: i64) -> f64 {
    u32::try_from(number).map(f64::from).expect("less than 4 TiB")
}

/// What the kernel keeps for itself, in KiB: slabs that can't be given back, and vmalloc. Pages that it takes in one piece, the
/// larger hash tables of sets among them, are in neither.
pub fn kernel_kib() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let of = |line: &str| -> Option<f64> {
        let (name, value) = line.split_once(':')?;
        let counted = ["SUnreclaim", "VmallocUsed"].contains(&name);
        counted.then(|| value.trim().trim_end_matches(" kB").parse().expect("a number of kB"))
    };
    text.lines().filter_map(of).sum()
}

/// How much the kernel's memory may move within [`STEADY_STEP`] and still pass for steady, in KiB.
const STEADY_KIB: f64 = 256.0;

/// How long a step is.
const STEADY_STEP: Duration = Duration::from_millis(80);

/// How many steps it must be steady.
const STEADY_STEPS: usize = 3;

/// How long a machine that is never quiet is waited for.
const STEADY_WITHIN: Duration = Duration::from_secs(5);

/// Waits until the kernel has cleared away what went before, and gives its memory then. It tears namespaces and tables down in
/// the background, which would be counted to whatever is measured next.
pub fn settled_kernel_kib() -> f64 {
    let started = Instant::now();
    let (mut last, mut steady) = (kernel_kib(), 0);
    while steady < STEADY_STEPS && started.elapsed() < STEADY_WITHIN {
        sleep(STEADY_STEP);
        let now = kernel_kib();
        steady = if (now - last).abs() < STEADY_KIB { steady + 1 } else { 0 };
        last = now;
    }
    last
}
