//! The guard by itself: the shipped binary in a namespace with a table, and nobody else.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nftfleet_tests::guard::{ask, process, state};
use nftfleet_tests::netns::{Netns, Prefix};
use nftfleet_tests::process::{Process, binary};
use nftfleet_tests::wait;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);

const TABLE: &str = "table inet nftfleet {\nchain out {\ntype nat hook output priority -110;\n}\n}";

struct Alone {
    guard: Process,
    node: Netns,
    folder: TempDir,
}

fn alone() -> Alone {
    let node = Netns::create(&Prefix::unique(), "node");
    let folder = tempfile::tempdir().expect("a folder");
    let guard = start(&node, &folder);
    wait::until_blocking("the guard to listen", LIMIT, || state(&node));
    Alone { guard, node, folder }
}

fn start(node: &Netns, folder: &TempDir) -> Process {
    Process::start(
        "the guard",
        node,
        "nftfleet-agent",
        &["guard"],
        &[],
        &folder.path().join("log"),
    )
}

impl Alone {
    fn ask(&self, request: &Value) -> Value {
        ask(&self.node, request).expect("an answer")
    }

    fn arm(&self, id: &str, left_ms: u64) -> Value {
        self.ask(&json!({"arm": {"id": id, "left_ms": left_ms}}))
    }

    fn nft(&self, script: &str) {
        self.node.pipe("nft", &["-f", "-"], script);
    }

    fn is_asleep(&self) -> bool {
        let listed = self.node.pipe("nft", &["list", "table", "inet", "nftfleet"], "");
        listed.contains("flags dormant")
    }

    fn wait_until_asleep(&self) {
        wait::until_blocking("the table to sleep", LIMIT, || self.is_asleep().then_some(()));
    }
}

#[test]
fn a_table_that_nobody_speaks_for_in_time_goes_to_sleep_and_is_kept_so() {
    let alone = alone();
    alone.nft(TABLE);
    let begun = Instant::now();
    let armed = alone.arm("a/1", 1000);
    assert_eq!(armed["state"]["armed"]["id"], "a/1", "{armed}");
    assert!(!alone.is_asleep());
    alone.wait_until_asleep();
    assert!(begun.elapsed() >= Duration::from_secs(1), "not before its time");
    let fired = json!({"fired": {"id": "a/1", "asleep": true}});
    wait::until_blocking("the guard to say so", LIMIT, || {
        (state(&alone.node)? == fired).then_some(())
    });
    // As an agent that was killed in the middle of its flip may leave it behind.
    alone.nft("add table inet nftfleet");
    alone.wait_until_asleep();
    assert_eq!(alone.arm("a/1", 1000)["refused"], "fired");
    // An agent that has taken over is left alone, and the next attempt is a new one.
    assert_eq!(alone.ask(&json!({"disarm": {"id": "a/1"}}))["state"], fired);
    assert_eq!(alone.arm("a/2", 60_000)["state"]["armed"]["id"], "a/2");
}

#[test]
fn a_guard_that_is_armed_is_not_ended_by_sigterm_and_one_that_is_not_is() {
    let mut alone = alone();
    alone.nft(TABLE);
    alone.arm("a/1", 60_000);
    let pid = process(&alone.node).expect("a guard listens");
    kill(pid, Signal::SIGTERM).expect("it can be signalled");
    let log = alone.folder.path().join("log");
    wait::until_blocking("the guard to say why it goes on", LIMIT, || {
        let text = std::fs::read_to_string(&log).ok()?;
        text.contains("asked to end; going on").then_some(())
    });
    assert_eq!(state(&alone.node).expect("it goes on")["armed"]["id"], "a/1");
    let refused = alone.ask(&json!({"disarm": {"id": "a/2"}}));
    assert_eq!(refused["refused"]["other"]["id"], "a/1");
    assert_eq!(alone.ask(&json!({"disarm": {"id": "a/1"}}))["state"], "idle");
    alone.guard.wait_until_ended(LIMIT);
    assert!(!alone.is_asleep());
}

#[test]
fn another_guard_waits_until_the_first_is_gone() {
    let mut alone = alone();
    let mut second = start(&alone.node, &alone.folder);
    let log = alone.folder.path().join("log");
    wait::until_blocking("the second to wait", LIMIT, || {
        let text = std::fs::read_to_string(&log).ok()?;
        text.contains("another guard listens").then_some(())
    });
    alone.guard.kill();
    wait::until_blocking("the second to listen", LIMIT, || {
        let pid = process(&alone.node)?;
        (u32::try_from(pid.as_raw()) == Ok(second.id())).then_some(())
    });
    second.terminate();
}

#[test]
fn it_is_asked_by_hand_and_hears_nobody_but_root() {
    let alone = alone();
    let program = binary("nftfleet-agent").display().to_string();
    let by_hand = |arguments: &[&str]| alone.node.pipe(&program, &[&["guard"], arguments].concat(), "");
    assert_eq!(by_hand(&["--query"]), "\"idle\"\n");
    alone.arm("a/1", 60_000);
    assert!(by_hand(&["--query"]).starts_with("{\"armed\":{\"id\":\"a/1\",\"left_ms\":"));
    by_hand(&["--disarm", "a/1"]);
    assert_eq!(state(&alone.node), Some(Value::from("idle")));

    let script = r#"use Socket; $SIG{PIPE} = "IGNORE"; socket(S, PF_UNIX, SOCK_STREAM, 0) or die;
        connect(S, pack_sockaddr_un("\0nftfleet-guard")) or die;
        syswrite(S, "\"query\"\n"); sysread(S, $said, 1000); print "heard: $said""#;
    let asked = |user: &str| {
        let setpriv = ["--reuid", user, "--clear-groups", "perl", "-e", script];
        alone.node.pipe("setpriv", &setpriv, "")
    };
    assert_eq!(asked("0"), "heard: {\"state\":\"idle\"}\n");
    assert_eq!(asked("65534"), "heard: ");
}

#[test]
fn a_name_that_somebody_else_has_taken_is_not_believed() {
    let node = Netns::create(&Prefix::unique(), "node");
    let script = r#"use Socket; $SIG{PIPE} = "IGNORE"; socket(S, PF_UNIX, SOCK_STREAM, 0) or die;
        bind(S, pack_sockaddr_un("\0nftfleet-guard")) or die; listen(S, 5) or die;
        while (accept(C, S)) { syswrite(C, "{\"state\":\"idle\"}\n") }"#;
    let mut taken = node.command("setpriv");
    let taken = taken.args(["--reuid", "65534", "--clear-groups", "perl", "-e", script]);
    let _taken = Killed(taken.spawn().expect("it starts"));
    wait::until_blocking("somebody to listen", LIMIT, || process(&node));
    let asked = node
        .command(&binary("nftfleet-agent").to_string_lossy())
        .args(["guard", "--query"])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(
        said.contains("a process of user 65534 listens in the guard's place"),
        "{said}"
    );
    assert!(asked.stdout.is_empty());
}

/// A child that is killed at the end, however the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The log of a container may be a pipe that nobody reads.
#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let node = Netns::create(&Prefix::unique(), "node");
    let mut command = node.command(&binary("nftfleet-agent").to_string_lossy());
    let command = command.arg("guard").stdout(Stdio::null()).stderr(Stdio::piped());
    let _guard = Killed(command.spawn().expect("it starts"));
    wait::until_blocking("the guard to listen", LIMIT, || state(&node));
    // Each is worth a line of some 150 bytes; a pipe takes 64 KiB.
    for _ in 0..1000 {
        let refused = ask(&node, &json!("nonsense")).expect("an answer");
        assert!(refused["refused"]["unread"]["why"].is_string());
    }
    node.pipe("nft", &["-f", "-"], TABLE);
    ask(&node, &json!({"arm": {"id": "a/1", "left_ms": 100}})).expect("an answer");
    wait::until_blocking("the table to sleep", LIMIT, || {
        let listed = node.pipe("nft", &["list", "table", "inet", "nftfleet"], "");
        listed.contains("flags dormant").then_some(())
    });
}
