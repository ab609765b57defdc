//! The Postgres process: start, stop, and what an earlier server left behind.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::binaries::Binaries;
use super::folder::Folder;
use super::{EmbeddedError, PORT};

/// How long a fast shutdown may take; it writes a checkpoint.
const STOP_WITHIN: Duration = Duration::from_mins(1);
/// How often is looked whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A Postgres that this process started.
#[derive(Debug)]
pub(super) struct Postgres {
    child: Child,
    log: PathBuf,
    ended: bool,
}

impl Postgres {
    pub(super) fn start(binaries: &Binaries, folder: &Folder, settings: &[&str]) -> Result<Self, EmbeddedError> {
        let log = folder.log();
        let file = |what| {
            let log = log.clone();
            move |source| EmbeddedError::File {
                what,
                path: log,
                source,
            }
        };
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(file("open"))?;
        let err = out.try_clone().map_err(file("open"))?;
        let program = binaries.postgres();
        let mut command = folder.command(&program);
        command
            .arg("-D")
            .arg(folder.data())
            .arg("-p")
            .arg(PORT.to_string())
            .args(["-c", "listen_addresses="])
            .arg("-c")
            .arg(format!("unix_socket_directories={}", quoted(folder)))
            .args(["-c", "unix_socket_permissions=0700"])
            .args(settings.iter().flat_map(|s| ["-c", *s]))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            // Ctrl-C in a terminal goes to the whole foreground group: Postgres must outlive the server's last requests.
            .process_group(0);
        let child = command
            .spawn()
            .map_err(|source| EmbeddedError::Start { program, source })?;
        Ok(Self {
            child,
            log,
            ended: false,
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// An error with the end of the log, if the process has ended.
    pub(super) fn check_alive(&mut self) -> Result<(), EmbeddedError> {
        match self.child.try_wait() {
            Ok(Some(status)) => {
                self.ended = true;
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                Err(EmbeddedError::Ended {
                    status: status.to_string(),
                    log: self.log.clone(),
                    tail: lines[lines.len().saturating_sub(5)..].join(" | "),
                })
            }
            _ => Ok(()),
        }
    }

    /// Fast shutdown, and an immediate one if that takes too long: the next start then recovers from the log.
    pub(super) async fn stop(&mut self) {
        for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGKILL] {
            self.signal(signal);
            let mut left = STOP_WITHIN;
            while !left.is_zero() {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    self.ended = true;
                    return;
                }
                tokio::time::sleep(LOOK_EVERY).await;
                left = left.saturating_sub(LOOK_EVERY);
            }
            tracing::warn!(%signal, "Postgres does not stop");
        }
    }

    fn signal(&self, signal: Signal) {
        if let (false, Ok(id)) = (self.ended, i32::try_from(self.child.id())) {
            // It may have ended already.
            let _ = kill(Pid::from_raw(id), signal);
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.signal(Signal::SIGINT);
    }
}

/// `unix_socket_directories` is a list: a name with a comma or a space must be quoted.
fn quoted(folder: &Folder) -> String {
    format!("\"{}\"", folder.sockets().display().to_string().replace('"', "\"\""))
}

/// Stops the Postgres of an earlier server that was killed, and removes a `postmaster.pid` that names a process which is
/// something else by now.
pub(super) async fn stop_orphan(folder: &Folder) -> Result<(), EmbeddedError> {
    let path = folder.data().join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&path) else {
        return Ok(());
    };
    let id = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok());
    let Some(id) = id.filter(|id| *id > 1 && is_postgres_of(*id, folder)) else {
        return fs::remove_file(&path).map_err(|source| EmbeddedError::File {
            what: "remove the stale",
            path,
            source,
        });
    };
    tracing::warn!(process = id, "stopping the Postgres that an earlier server left behind");
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        // It may have ended already.
        let _ = kill(Pid::from_raw(id), signal);
        let mut left = STOP_WITHIN;
        while !left.is_zero() {
            if !is_postgres_of(id, folder) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
            left = left.saturating_sub(LOOK_EVERY);
        }
    }
    Err(EmbeddedError::OrphanStays(id))
}

/// Postgres's working folder is its data folder.
fn is_postgres_of(id: i32, folder: &Folder) -> bool {
    fs::read_link(format!("/proc/{id}/cwd")).is_ok_and(|cwd| cwd == folder.data())
}
