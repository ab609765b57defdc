//! What the kernel says was done to a node's tables, whoever did it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use nftfleet_tests::netns::Netns;
use nftfleet_tests::wait;

/// How long the kernel may take to tell.
const LIMIT: Duration = Duration::from_secs(20);

/// `nft monitor` on a node. It ends on drop.
pub struct Transcript {
    netns: Netns,
    monitor: Child,
    lines: Receiver<String>,
    marks: u32,
}

impl Transcript {
    /// Begins to listen; nothing that is done from now on is missed.
    pub fn start(netns: &Netns) -> Self {
        let mut monitor = netns
            .command("nft")
            .arg("monitor")
            .stdout(Stdio::piped())
            .spawn()
            .expect("nft starts");
        let output = monitor.stdout.take().expect("a piped standard output");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut transcript = Self {
            netns: netns.clone(),
            monitor,
            lines,
            marks: 0,
        };
        // It does not say when it listens: marks are made until it has heard one.
        wait::until_blocking("nft monitor to listen", LIMIT, || {
            transcript.mark();
            let heard = transcript.lines.recv_timeout(Duration::from_millis(50));
            heard.is_ok().then_some(())
        });
        transcript.changes();
        transcript
    }

    /// Makes and takes back a table that nobody else would; gives its name.
    fn mark(&mut self) -> String {
        self.marks += 1;
        let name = format!("mark-{}", self.marks);
        let script = format!("add table inet {name}\ndelete table inet {name}\n");
        self.netns.pipe("nft", &["-f", "-"], &script);
        name
    }

    /// What was done since the last call, one line per object or element, and one for each transaction.
    fn lines(&mut self) -> Vec<String> {
        let end = format!("delete table inet {}", self.mark());
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) if line == end => {
                    // What the mark itself left behind is heard later, and is not of our table.
                    return lines;
                }
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Timeout) => panic!("nft monitor fell silent after {lines:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("nft monitor ended after {lines:?}"),
            }
        }
    }

    /// What was done to our table since the last call: `add element inet nftfleet cluster-ips4 { 10.96.0.1 }` and the like.
    pub fn changes(&mut self) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| line.contains(" inet nftfleet"));
        lines
    }
}

impl Drop for Transcript {
    fn drop(&mut self) {
        // It may have ended by itself; the namespace goes in any case.
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
    }
}
