//! The guard of a node, as anybody of root's may ask it: by lines of JSON on an abstract socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use serde_json::Value;

use crate::netns::Netns;

/// How long a guard may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Where a guard listens, in whatever namespace that is.
pub fn address() -> SocketAddr {
    SocketAddr::from_abstract_name("nftfleet-guard").expect("Linux has abstract sockets")
}

fn connect(netns: &Netns) -> Option<UnixStream> {
    netns.run(|| UnixStream::connect_addr(&address())).ok()
}

/// Asks the guard of this namespace; none if nobody listens, or it ends before it answers.
pub fn ask(netns: &Netns, request: &Value) -> Option<Value> {
    let mut guard = connect(netns)?;
    guard.set_read_timeout(Some(ANSWER_WITHIN)).expect("a limit");
    writeln!(guard, "{request}").ok()?;
    let mut answer = String::new();
    BufReader::new(guard).read_line(&mut answer).ok()?;
    serde_json::from_str(&answer).ok()
}

/// The guard's state, for example `{"armed": {"id": "…", "left_ms": 900}}`; none if nobody listens.
pub fn state(netns: &Netns) -> Option<Value> {
    ask(netns, &Value::from("query")).map(|mut answer| answer["state"].take())
}

/// The process that listens.
pub fn process(netns: &Netns) -> Option<Pid> {
    let guard = connect(netns)?;
    let peer = getsockopt(&guard, PeerCredentials).expect("a peer has credentials");
    Some(Pid::from_raw(peer.pid()))
}

/// Kills the guard with SIGKILL, if there is one but the caller itself.
pub fn kill_it(netns: &Netns) {
    if let Some(pid) = process(netns).filter(|pid| *pid != Pid::this()) {
        // It may have ended in between.
        let _ = kill(pid, Signal::SIGKILL);
    }
}
