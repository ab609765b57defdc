//! The agent's release binary on the lab's node, and what the kernel and its metrics tell of it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nftfleet_tests::kube_sim::KubeSim;
use nftfleet_tests::lab::{CONTROL4, Lab};
use nftfleet_tests::netns::Netns;
use nftfleet_tests::process::Process;
use serde_json::json;
use tempfile::TempDir;

use crate::cluster::POD_CIDR;
use crate::server;

/// Where the agent shows its metrics.
const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 168, 50, 1), 8641);

/// The kernel counts processor time in hundredths of a second (`USER_HZ`, the same on every architecture that we ship for).
const TICK: Duration = Duration::from_millis(10);

/// Starts agents of the lab's node, one after another, on one state folder.
pub struct Agents {
    netns: Netns,
    control: Netns,
    folder: TempDir,
}

impl Agents {
    /// With a state folder as a node has it that was moved: its agent makes the table by itself whenever it is missing.
    pub fn new(lab: &Lab, kubernetes: &KubeSim) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("nftfleet-bench-")
            .tempdir()
            .expect("a folder");
        let write =
            |name: &str, text: String| fs::write(folder.path().join(name), text).expect("a file can be written");
        let task = "01890000-0000-7000-8000-000000000001";
        let job = json!({"task": task, "attempt": 1, "confirm_within_seconds": 60, "probe": []});
        let ledger = json!({"version": 1, "position": "moved", "job": job, "trouble": null, "told": true});
        write("ledger.json", ledger.to_string());
        let credential = json!({"nodeId": task, "cluster": "lab", "credential": "of-the-bench"});
        write("credential.json", credential.to_string());
        write("kubeconfig", kubernetes.kubeconfig());
        Self {
            netns: lab.node(1).netns.clone(),
            control: lab.control.clone(),
            folder,
        }
    }

    /// Starts one.
    pub fn start(&self) -> Agent {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let arguments = [
            "--server".to_owned(),
            format!("http://{CONTROL4}:{}", server::PORT),
            "--node".to_owned(),
            "node-1".to_owned(),
            "--state-dir".to_owned(),
            self.folder.path().display().to_string(),
            "--kubeconfig".to_owned(),
            path("kubeconfig"),
            "--cluster-cidr".to_owned(),
            POD_CIDR.to_owned(),
            "--metrics-listen".to_owned(),
            format!("{}:{}", METRICS.0, METRICS.1),
        ];
        let log = self.folder.path().join("agent.log");
        let started = Instant::now();
        let process = Process::start("the agent", &self.netns, "nftfleet-agent", &arguments, &[], &log);
        Agent {
            process,
            started,
            control: self.control.clone(),
        }
    }

    /// What the agents have logged, and a copy of it where `AGENT_LOG` says.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default();
        if let Some(copy) = std::env::var_os("AGENT_LOG") {
            fs::write(copy, &log).expect("the log can be copied");
        }
        log
    }
}

/// A running agent.
pub struct Agent {
    process: Process,
    /// When its process was asked for; `ip netns exec` is in it, some milliseconds.
    pub started: Instant,
    control: Netns,
}

impl Agent {
    /// Its process's number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// A figure of its memory, by the kernel's name for it (`VmHWM`, `VmRSS`).
    pub fn memory(&self, name: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the agent runs");
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("the kernel tells");
        let kib = line.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok());
        format!("{:.1} MiB", kib.expect("a number") / 1024.0)
    }

    /// The processor time of all its threads so far.
    pub fn processor_time(&self) -> Duration {
        let (user, system) = times(Path::new(&format!("/proc/{}/stat", self.id())));
        user + system
    }

    /// The processor time of each thread so far, in words.
    pub fn threads(&self) -> String {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id())).expect("the agent runs");
        let of = |task: fs::DirEntry| {
            let (user, system) = times(&task.path().join("stat"));
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            // What took less than a few ticks is noise.
            let busy = user + system > TICK * 4;
            busy.then(|| format!("{} {:.2}+{:.2}", name.trim(), user.as_secs_f64(), system.as_secs_f64()))
        };
        let mut threads: Vec<String> = tasks.flatten().filter_map(of).collect();
        threads.sort();
        threads.join(", ")
    }

    /// One of its metrics; none while it does not answer.
    pub fn metric(&self, name: &str) -> Option<u64> {
        let text = self.control.run(|| {
            let mut stream = TcpStream::connect_timeout(&METRICS.into(), Duration::from_secs(1)).ok()?;
            let request = "GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        })?;
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("nftfleet_agent_{name} ")))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Fails the bench if anything did not go smoothly.
    pub fn assert_healthy(&self) {
        assert_eq!(self.metric("table_active"), Some(1));
        assert_eq!(self.metric("failures"), Some(0), "see the agent's log");
    }

    /// Ends it, as an upgrade does.
    pub fn end(mut self) {
        self.process.terminate();
    }
}

/// User and system time from a `stat` file of `/proc`.
pub fn times(stat: &Path) -> (Duration, Duration) {
    let text = fs::read_to_string(stat).unwrap_or_default();
    // The name, in parentheses, may hold spaces. utime and stime are fields 14 and 15 (proc_pid_stat(5)).
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let time = |at: usize| fields.get(at - 3).and_then(|ticks| ticks.parse().ok()).unwrap_or(0u32) * TICK;
    (time(14), time(15))
}
