//! The node itself: its files and commands. A trait, so that tests can hand in a node made of texts.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a command may take. The slowest, a listing of every iptables rule of a large node, takes seconds.
const RUN_WITHIN: Duration = Duration::from_mins(1);

/// A command that was run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Whether it ended with status 0.
    pub succeeded: bool,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

/// The node's files and commands.
pub trait Host: Send + Sync {
    /// A file's text.
    ///
    /// # Errors
    /// As the file system says; `NotFound` is told apart from other failures by callers.
    fn read(&self, path: &Path) -> io::Result<String>;

    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// As the file system says.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Runs a command to its end, with `input` on its standard input.
    ///
    /// # Errors
    /// It can't be started or spoken to, or does not end in time; a failing status is no error here.
    fn run(&self, program: &str, arguments: &[&str], input: &str) -> io::Result<Ran>;
}

/// The machine that we run on.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisHost;

impl Host for ThisHost {
    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn run(&self, program: &str, arguments: &[&str], input: &str) -> io::Result<Ran> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        // Written from a thread of its own: a command that prints much before it has read all would block both of us.
        let (ended, end) = mpsc::channel::<()>();
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                if let Some(mut stdin) = stdin {
                    // A command that ends without reading its input says why in its status.
                    let _ = stdin.write_all(input.as_bytes());
                }
            });
            let guard = scope.spawn(move || {
                let is_late = end.recv_timeout(RUN_WITHIN) == Err(mpsc::RecvTimeoutError::Timeout);
                if is_late {
                    // It has not been waited for yet, so the number is still its own.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                is_late
            });
            let output = child.wait_with_output();
            drop(ended);
            if guard.join().unwrap_or(false) {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{program} did not end in time"),
                ));
            }
            output
        })?;
        Ok(Ran {
            succeeded: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
