//! A program of ours as its shipped binary, running in a namespace, with its log in a file.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Netns;
use crate::wait;

/// How long a program may take to end after SIGTERM.
const END_WITHIN: Duration = Duration::from_secs(20);

/// A binary of the workspace, from the folder that this test or demo was built into.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a path");
    let folder = own.ancestors().nth(1).expect("a program lies in a folder");
    // Tests lie one folder deeper than programs.
    let folder = if folder.ends_with("deps") {
        folder.parent().expect("deps has a parent")
    } else {
        folder
    };
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --workspace` first",
        path.display()
    );
    path
}

/// What a program that was run to its end has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its exit status; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Ran {
    /// Panics with what it said unless it succeeded.
    #[must_use]
    pub fn expect_success(self, what: &str) -> Self {
        assert_eq!(self.code, Some(0), "{what}: {self:#?}");
        self
    }
}

/// Runs `program` in `netns` to its end. Kills it and panics when `limit` has passed.
pub fn run<A: AsRef<OsStr>>(
    netns: &Netns,
    program: &str,
    arguments: &[A],
    environment: &[(&str, &str)],
    limit: Duration,
) -> Ran {
    // Files, since a pipe that nobody reads meanwhile would block it.
    let mut outputs = [(); 2].map(|()| tempfile::tempfile().expect("a file for an output"));
    let [stdout, stderr] = outputs
        .each_ref()
        .map(|file| file.try_clone().expect("a file handle can be copied"));
    let child = netns
        .command(&binary(program).to_string_lossy())
        .args(arguments)
        .envs(environment.iter().copied())
        .env_remove("KUBECONFIG")
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    let mut process = Process {
        name: program.to_owned(),
        child,
    };
    let what = format!("{program} to end");
    let status = wait::until_blocking(&what, limit, || process.child.try_wait().expect("a child can be asked"));
    let [stdout, stderr] = outputs.each_mut().map(|file| {
        let mut text = Vec::new();
        file.rewind().expect("a file can be read again");
        file.read_to_end(&mut text).expect("a file can be read");
        String::from_utf8_lossy(&text).into_owned()
    });
    Ran {
        code: status.code(),
        stdout,
        stderr,
    }
}

/// A running program. It is killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts `program` in `netns`; what it logs is appended to `log`.
    pub fn start<A: AsRef<OsStr>>(
        name: &str,
        netns: &Netns,
        program: &str,
        arguments: &[A],
        environment: &[(&str, &str)],
        log: &Path,
    ) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log file can be written");
        let child = netns
            .command(&binary(program).to_string_lossy())
            .args(arguments)
            .envs(environment.iter().copied())
            .env_remove("DATABASE_URL")
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle can be copied"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self {
            name: name.to_owned(),
            child,
        }
    }

    /// Its number, by which `/proc` knows it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_some()
    }

    /// Waits until it ends by itself, as after a rehearsed crash.
    pub fn wait_until_ended(&mut self, limit: Duration) {
        let what = format!("{} to end", self.name);
        wait::until_blocking(&what, limit, || self.has_ended().then_some(()));
    }

    /// SIGKILL: no last words.
    pub fn kill(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        self.child.wait().expect("a child can be waited for");
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) {
        if self.has_ended() {
            return;
        }
        self.signal(Signal::SIGTERM);
        self.wait_until_ended(END_WITHIN);
    }

    /// Holds it where it is (SIGSTOP) while something is done.
    pub fn frozen<T>(&self, work: impl FnOnce() -> T) -> T {
        self.signal(Signal::SIGSTOP);
        let done = work();
        self.signal(Signal::SIGCONT);
        done
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid is small"));
        kill(pid, signal).expect("a child of ours can be signalled");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
