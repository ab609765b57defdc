//! The steps of a move. Each may be repeated without harm: a restart does the step of its ledger's position again.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use nftfleet_domain::inventory::TableState;
use nftfleet_domain::readiness::{Reported, Verdict, assess};

use super::cleanup;
use super::position::{Armed, End, Job, Position};
use crate::clock::Clock;
use crate::dataplane::actor::RequestError;
use crate::dataplane::{Actor, KernelError, Netlink};
use crate::facts::holes::{Hole, taken_away};
use crate::facts::iptables::Backend;
use crate::facts::parse::ipvs_services;
use crate::facts::{self, Paths};
use crate::host::Host;
use crate::kube::Services;
use crate::probe::{describe, probe};

/// Rounds of the probe before a fresh flip counts as proven.
const VERIFY_ROUNDS: usize = 3;

/// Between two rounds of the probe while a flip waits for its confirmation.
const SOAK_ROUND: Duration = Duration::from_millis(500);

/// How long preflight waits for the first lists of Services.
const SERVICES_WITHIN: Duration = Duration::from_secs(30);

/// How often a clean-up is tried before a person is asked. kube-proxy may be writing at the same time.
const CLEANUP_TRIES: usize = 5;

/// Between two tries of the clean-up.
const CLEANUP_PAUSE: Duration = Duration::from_millis(200);

/// What the steps act on.
#[derive(Clone)]
pub struct Tools {
    /// The data plane.
    pub dataplane: Actor,
    /// What the Services mean.
    pub services: Services,
    /// The node.
    pub host: Arc<dyn Host>,
    /// Where its files are.
    pub paths: Paths,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl Tools {
    /// Does the step of `position`, and says where the move stands after it.
    pub async fn step(&self, position: Position) -> Position {
        match position {
            Position::Preflight { job } => self.preflight(job).await,
            Position::Loading { job, baseline } => self.load(job, baseline).await,
            Position::Flipping { job, armed } => self.flip(job, armed).await,
            Position::Verifying { job, armed } => self.verify(job, armed).await,
            Position::Soaking { job, armed } => self.soak(job, armed).await,
            Position::Confirming { job, baseline } => self.confirm(job, baseline).await,
            Position::Reverting { job, why } => self.revert(job, why).await,
            still @ (Position::Idle | Position::Moved { .. } | Position::Ended { .. }) => still,
        }
    }

    /// Waits for the first lists of Services; gives whether they came in time.
    async fn listed(&self) -> bool {
        self.services.listed_within(SERVICES_WITHIN).await
    }

    /// Makes the table hold all Services and active, whatever the kernel holds now.
    ///
    /// # Errors
    /// Why not, in words: the Services are not known, or the kernel refused.
    pub async fn restore(&self) -> Result<(), String> {
        if !self.listed().await {
            return Err("the Services are not known yet".to_owned());
        }
        self.dataplane.load_active().await.map_err(|error| error.to_string())
    }

    /// Nothing is touched: the node's own readiness, the Services' demands, and whether the old rules answer.
    async fn preflight(&self, job: Job) -> Position {
        let rejected = |job, blockers| Position::Ended {
            job,
            end: End::Rejected(blockers),
            told: false,
        };
        if let Ok(TableState::Active) = self.dataplane.state().await {
            // A ledger was lost in the middle of a move. Whether the old rules still stand, only a person can tell.
            let why = "the table is active, and the ledger knows of no move".to_owned();
            return Position::Ended {
                job,
                end: End::NeedsAttention(why),
                told: false,
            };
        }
        if !self.listed().await {
            let seconds = SERVICES_WITHIN.as_secs();
            return rejected(
                job,
                vec![format!(
                    "services-unknown: the Kubernetes API gave no lists in {seconds} s"
                )],
            );
        }
        let mut blockers = self.node_blockers().await;
        let host = Arc::clone(&self.host);
        match tokio::task::spawn_blocking(move || closed_forward_chains(&*host)).await {
            Ok(closed) => blockers.extend(closed),
            Err(error) => blockers.push(format!("forward-unknown: looking at FORWARD panicked: {error}")),
        }
        let too_long = self.services.index().too_long();
        if !too_long.is_empty() {
            let shown: Vec<&str> = too_long.iter().take(5).map(String::as_str).collect();
            let count = too_long.len();
            blockers.push(format!(
                "services-unsupported: {count} uses of what this data plane does not do: {}",
                shown.join(", ")
            ));
        }
        let mut baseline = Vec::new();
        for target in &job.probe {
            let addresses = self.services.addresses(target);
            let silent = probe(&addresses).await;
            let answering = addresses.iter().filter(|a| !silent.iter().any(|s| s.address == **a));
            let before = baseline.len();
            baseline.extend(answering.copied());
            if addresses.is_empty() {
                blockers.push(format!(
                    "probe-unknown: there is no TCP port {} of a Service {}/{}",
                    target.port, target.namespace, target.name
                ));
            } else if baseline.len() == before {
                blockers.push(format!(
                    "probe-silent: not answered through the old rules: {}",
                    describe(&silent)
                ));
            }
        }
        if blockers.is_empty() {
            Position::Loading { job, baseline }
        } else {
            rejected(job, blockers)
        }
    }

    /// What the readiness checks say of the node as it is at this moment.
    async fn node_blockers(&self) -> Vec<String> {
        let (host, paths, now) = (Arc::clone(&self.host), self.paths.clone(), self.clock.now());
        let collected = tokio::task::spawn_blocking(move || facts::collect(&*host, &paths, now)).await;
        let Ok(report) = collected else {
            return vec!["facts-unknown: collecting the facts panicked".to_owned()];
        };
        let reported = Reported {
            report,
            reported_at: now,
            moved_at: None,
            last_seen_at: now,
        };
        match assess(Some(&reported), &nftfleet_domain::readiness::Policy::default(), now) {
            Verdict::Ready => vec![],
            Verdict::Blocked(reasons) | Verdict::Unknown(reasons) => reasons
                .iter()
                .map(|reason| format!("{}: {}", reason.code, reason.message))
                .collect(),
        }
    }

    /// Loads the table dormant, reads it back and compares. The dead-man's switch is armed before the flip: the deadline goes
    /// to the ledger first.
    async fn load(&self, job: Job, baseline: Vec<SocketAddr>) -> Position {
        if !self.listed().await {
            return Position::Reverting {
                job,
                why: "the Services are not known".to_owned(),
            };
        }
        let loaded = match self.dataplane.load().await {
            Ok(()) => self.dataplane.compare().await,
            Err(error) => Err(error),
        };
        match loaded {
            Ok(()) => {
                let within = SignedDuration::from_secs(i64::from(job.confirm_within_seconds));
                let deadline = self.clock.now().saturating_add(within).unwrap_or(jiff::Timestamp::MAX);
                Position::Flipping {
                    job,
                    armed: Armed { baseline, deadline },
                }
            }
            Err(error) => Position::Reverting {
                job,
                why: format!("the table could not be loaded: {error}"),
            },
        }
    }

    /// Makes the table active, unless it is so already. A restart may lie between the loading and this: what is woken must be
    /// what the Services mean now.
    async fn flip(&self, job: Job, armed: Armed) -> Position {
        match self.wake().await {
            Ok(()) => Position::Verifying { job, armed },
            Err(why) => Position::Reverting {
                job,
                why: format!("the table could not be made active: {why}"),
            },
        }
    }

    async fn wake(&self) -> Result<(), String> {
        let told = |error: RequestError| error.to_string();
        match self.dataplane.state().await.map_err(told)? {
            TableState::Active => return Ok(()),
            TableState::Dormant => {}
            // After a reboot the table is gone: then the old rules are what the node has, and that is where it goes.
            TableState::Absent => return Err("it is gone".to_owned()),
        }
        if !self.listed().await {
            return Err("the Services are not known".to_owned());
        }
        self.dataplane.load().await.map_err(told)?;
        self.dataplane.compare().await.map_err(told)?;
        self.dataplane.set_dormant(false).await.map_err(told)
    }

    async fn verify(&self, job: Job, armed: Armed) -> Position {
        for _ in 0..VERIFY_ROUNDS {
            if let Err(why) = self.proven(&armed.baseline).await {
                return Position::Reverting { job, why };
            }
        }
        Position::Soaking { job, armed }
    }

    async fn soak(&self, job: Job, armed: Armed) -> Position {
        match self.proven(&armed.baseline).await {
            Ok(()) => {
                tokio::time::sleep(SOAK_ROUND).await;
                Position::Soaking { job, armed }
            }
            Err(why) => Position::Reverting { job, why },
        }
    }

    /// The kernel shows the table active, and everything that answered before answers through it.
    async fn proven(&self, baseline: &[SocketAddr]) -> Result<(), String> {
        match self.dataplane.state().await {
            Ok(TableState::Active) => {}
            Ok(_) => return Err("the table is not active any more".to_owned()),
            Err(error) => return Err(format!("it can't be told whether the table is active: {error}")),
        }
        let silent = probe(baseline).await;
        if silent.is_empty() {
            Ok(())
        } else {
            Err(format!("the probe failed: {}", describe(&silent)))
        }
    }

    /// Removes kube-proxy's rules from both backends, and proves once more that the Services answer. Before that the kernel must
    /// show the table active and whole: it may be gone after a reboot, and then it is made anew.
    async fn confirm(&self, job: Job, baseline: Vec<SocketAddr>) -> Position {
        let ready = match self.restore().await {
            Ok(()) => self.dataplane.compare().await.map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        if let Err(why) = ready {
            tracing::error!(
                why,
                "the table is not as it must be; kube-proxy's rules stay until it is"
            );
            tokio::time::sleep(SOAK_ROUND).await;
            return Position::Confirming { job, baseline };
        }
        let host = Arc::clone(&self.host);
        let cleaned = tokio::task::spawn_blocking(move || remove_kube_proxys(&*host)).await;
        let cleaned = cleaned.unwrap_or_else(|error| Err(error.to_string()));
        let trouble = match cleaned {
            Err(why) => Some(format!(
                "kube-proxy's rules could not all be removed, they stay behind ours: {why}"
            )),
            Ok(()) => self
                .proven(&baseline)
                .await
                .err()
                .map(|why| format!("after the move {why}")),
        };
        Position::Moved {
            job,
            trouble,
            told: false,
        }
    }

    /// Puts the old rules back in charge. Retried for ever: nothing else may happen before this is done.
    async fn revert(&self, job: Job, why: String) -> Position {
        match self.dataplane.set_dormant(true).await {
            Ok(()) => Position::Ended {
                job,
                end: End::Reverted(why),
                told: false,
            },
            Err(error) => {
                tracing::error!(%error, "the table could not be made dormant; trying again");
                tokio::time::sleep(SOAK_ROUND).await;
                Position::Reverting { job, why }
            }
        }
    }
}

/// What of the node's firewall lets packets pass by kube-proxy's leave alone, which the move takes away.
fn closed_forward_chains(host: &dyn Host) -> Vec<String> {
    let mut blockers = Vec::new();
    // Where it can't be read the readiness checks have said so.
    let servers = host.read(Path::new("/proc/net/ip_vs")).unwrap_or_default();
    let ipvs = ipvs_services(&servers) > 0;
    for (save, _) in Backend::BOTH.into_iter().flat_map(Backend::commands) {
        match saved(host, save) {
            Ok(text) => blockers.extend(taken_away(&text, ipvs).into_iter().map(|hole| {
                let (code, meaning) = hole.words();
                format!("{code}: {save} shows {meaning}")
            })),
            Err(why) => blockers.push(format!("forward-unknown: {why}")),
        }
    }
    if ipvs {
        let closed = Netlink::open().map_err(KernelError::from);
        match closed.and_then(|mut netlink| netlink.closed_forward_chains()) {
            Ok(closed) => blockers.extend(closed.into_iter().map(|chain| {
                let (code, meaning) = Hole::Detour.words();
                format!("{code}: nft shows {chain}, {meaning}")
            })),
            Err(error) => blockers.push(format!("forward-unknown: {error}")),
        }
    }
    blockers
}

/// Removes what is kube-proxy's from both backends and families.
///
/// # Errors
/// What could not be read or removed, in words, after some tries.
fn remove_kube_proxys(host: &dyn Host) -> Result<(), String> {
    let mut failure = String::new();
    for _ in 0..CLEANUP_TRIES {
        match remove_once(host) {
            Ok(()) => return Ok(()),
            Err(why) => failure = why,
        }
        std::thread::sleep(CLEANUP_PAUSE);
    }
    Err(failure)
}

fn remove_once(host: &dyn Host) -> Result<(), String> {
    for (save, restore) in Backend::BOTH.into_iter().flat_map(Backend::commands) {
        let Some(script) = cleanup::script(&saved(host, save)?) else {
            continue;
        };
        let restored = host
            .run(restore, &["--noflush", "-w", "5"], &script)
            .map_err(|error| format!("{restore}: {error}"))?;
        if !restored.succeeded {
            return Err(format!("{restore}: {}", restored.stderr.trim()));
        }
        // Done means observed.
        if cleanup::script(&saved(host, save)?).is_some() {
            return Err(format!(
                "{save} still shows rules of kube-proxy's: does it run, and write them again?"
            ));
        }
    }
    Ok(())
}

/// What a `save` command prints.
///
/// # Errors
/// It failed, or could not show everything, in words.
fn saved(host: &dyn Host, save: &str) -> Result<String, String> {
    let ran = host.run(save, &[], "").map_err(|error| format!("{save}: {error}"))?;
    if !ran.succeeded {
        return Err(format!("{save}: {}", ran.stderr.trim()));
    }
    // iptables-nft-save says so in a comment, with status 0, when a table holds what only nft can show.
    if ran.stdout.contains("is incompatible, use 'nft' tool") {
        return Err(format!(
            "{save} can't show all rules: a table holds rules that only nft can show"
        ));
    }
    Ok(ran.stdout)
}
