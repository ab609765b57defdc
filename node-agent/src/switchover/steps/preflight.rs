//! Whether the node can be moved. Nothing is touched.

use std::net::SocketAddr;
use std::path::Path;

use nftfleet_domain::inventory::TableState;
use nftfleet_domain::readiness::{Policy, Reported, Verdict, assess};

use super::{SERVICES_WITHIN, Tools, rejected};
use crate::dataplane::{KernelError, Netlink};
use crate::facts;
use crate::facts::holes::{Hole, taken_away};
use crate::facts::iptables::Backend;
use crate::facts::parse::ipvs_services;
use crate::host::Host;
use crate::ipvs::sets;
use crate::probe::{Answered, How, Question, Silent, ask, describe, sample};
use crate::switchover::cleanup::saved;
use crate::switchover::position::{End, Job, Position};

impl Tools {
    /// The node's own readiness, the Services' demands, and whether the old rules answer.
    pub(super) async fn preflight(&self, job: Job) -> Position {
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
        match self.beside(closed_forward_chains).await {
            Ok(closed) => blockers.extend(closed),
            Err(error) => blockers.push(format!("forward-unknown: looking at FORWARD panicked: {error}")),
        }
        blockers.extend(self.ipvs_blockers().await);
        let too_long = self.services.index().too_long();
        if !too_long.is_empty() {
            let shown: Vec<&str> = too_long.iter().take(5).map(String::as_str).collect();
            let count = too_long.len();
            blockers.push(format!(
                "services-unsupported: {count} uses of what this data plane does not do: {}",
                shown.join(", ")
            ));
        }
        let baseline = self.baseline(&job, &mut blockers).await;
        if blockers.is_empty() {
            Position::Snapshotting { job, baseline }
        } else {
            rejected(job, blockers)
        }
    }

    /// What the readiness checks say of the node as it is at this moment.
    async fn node_blockers(&self) -> Vec<String> {
        let (paths, now) = (self.paths.clone(), self.clock.now());
        let collected = self.beside(move |host| facts::collect(host, &paths, now)).await;
        let Ok(report) = collected else {
            return vec!["facts-unknown: collecting the facts panicked".to_owned()];
        };
        let reported = Reported {
            report,
            reported_at: now,
            moved_at: None,
            last_seen_at: now,
        };
        match assess(Some(&reported), &Policy::default(), now) {
            Verdict::Ready => vec![],
            Verdict::Blocked(reasons) | Verdict::Unknown(reasons) => reasons
                .iter()
                .map(|reason| format!("{}: {}", reason.code, reason.message))
                .collect(),
        }
    }

    /// Asks what the work names, which must answer, and a sample of everything else, of which counts what does.
    async fn baseline(&self, job: &Job, blockers: &mut Vec<String>) -> Vec<Answered> {
        let connect = |address: SocketAddr| Question {
            address,
            how: How::Connect,
        };
        let mut baseline = Vec::new();
        for target in &job.probe {
            let questions: Vec<Question> = self.services.addresses(target).into_iter().map(connect).collect();
            let (answered, silent) = answers(&questions, true).await;
            if questions.is_empty() {
                blockers.push(format!(
                    "probe-unknown: there is no TCP port {} of a Service {}/{}",
                    target.port, target.namespace, target.name
                ));
            } else if answered.is_empty() {
                blockers.push(format!(
                    "probe-silent: not answered through the old rules: {}",
                    describe(&silent)
                ));
            }
            baseline.extend(answered);
        }
        let mut sampled = match self.dataplane.desired().await {
            Ok(desired) => sample(&desired.frontends),
            Err(error) => {
                blockers.push(format!("services-unknown: {error}"));
                return baseline;
            }
        };
        sampled.retain(|question| !baseline.iter().any(|named| named.question() == *question));
        let (answered, silent) = answers(&sampled, false).await;
        if !silent.is_empty() {
            tracing::info!(
                silent = describe(&silent),
                "part of the sample does not answer through the old rules, and does not count"
            );
        }
        baseline.extend(answered);
        if baseline.is_empty() && blockers.is_empty() {
            blockers.push(
                "probe-silent: no Service answers through the old rules, so it could not be told whether any does through ours"
                    .to_owned(),
            );
        }
        baseline
    }
}

async fn answers(questions: &[Question], named: bool) -> (Vec<Answered>, Vec<Silent>) {
    let (mut answered, mut silent) = (Vec::new(), Vec::new());
    for (question, answer) in questions.iter().zip(ask(questions).await) {
        match answer {
            Ok(took) => answered.push(Answered {
                address: question.address,
                how: question.how,
                named,
                micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            }),
            Err(what) => silent.push(what),
        }
    }
    (answered, silent)
}

/// What of the node's firewall lets packets pass by kube-proxy's leave alone, which the move takes away.
fn closed_forward_chains(host: &dyn Host) -> Vec<String> {
    let mut blockers = Vec::new();
    // Where it can't be read the readiness checks have said so.
    let servers = host.read(Path::new("/proc/net/ip_vs")).unwrap_or_default();
    let ipvs = ipvs_services(&servers) > 0;
    // In IPVS mode the hole for health checks stands on every node, and lets through what is in these sets.
    let is_empty = |hole: &Hole| ipvs && *hole == Hole::HealthChecks && sets::are_without_health_checks(host);
    for (save, _) in Backend::BOTH.into_iter().flat_map(Backend::commands) {
        match saved(host, save) {
            Ok(text) => blockers.extend(taken_away(&text, ipvs).into_iter().filter(|hole| !is_empty(hole)).map(
                |hole| {
                    let (code, meaning) = hole.words();
                    format!("{code}: {save} shows {meaning}")
                },
            )),
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
