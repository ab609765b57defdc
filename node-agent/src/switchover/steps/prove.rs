//! Whether the Services answer through our table as they did before.

use std::net::SocketAddr;
use std::time::Duration;

use nftfleet_domain::inventory::TableState;

use super::{ROUND, Tools, reverting};
use crate::probe::{Answered, Question, Silent, ask, describe, endpoints, probe, slower};
use crate::switchover::position::{Armed, Job, Position};

/// Rounds of the probe before a fresh flip counts as proven.
const VERIFY_ROUNDS: usize = 3;

/// Slow rounds in a row that count.
const SLOW_ROUNDS: usize = 5;

impl Tools {
    pub(super) async fn verify(&self, job: Job, armed: Armed) -> Position {
        for _ in 0..VERIFY_ROUNDS {
            if let Err(why) = self.guarded_and_proven(&job, &armed).await {
                return reverting(job, why);
            }
        }
        Position::Soaking { job, armed }
    }

    pub(super) async fn soak(&self, job: Job, armed: Armed) -> Position {
        match self.guarded_and_proven(&job, &armed).await {
            Ok(()) => {
                tokio::time::sleep(ROUND).await;
                Position::Soaking { job, armed }
            }
            Err(why) => reverting(job, why),
        }
    }

    /// The kernel shows the table active, everything that answered before answers through it, and about as fast. A round that is
    /// slow is repeated: for a moment anything may hold up a busy node.
    pub(in crate::switchover) async fn proven(&self, baseline: &[Answered]) -> Result<(), String> {
        let mut slow = None;
        for _ in 0..SLOW_ROUNDS {
            slow = self.round(baseline).await?;
            if slow.is_none() {
                return Ok(());
            }
            tokio::time::sleep(ROUND).await;
        }
        slow.map_or(Ok(()), |why| {
            Err(format!("the probe is slow, {SLOW_ROUNDS} rounds in a row: {why}"))
        })
    }

    /// One round; gives whether it was slow, in words.
    async fn round(&self, baseline: &[Answered]) -> Result<Option<String>, String> {
        match self.dataplane.state().await {
            Ok(TableState::Active) => {}
            Ok(_) => return Err("the table is not active any more".to_owned()),
            Err(error) => return Err(format!("it can't be told whether the table is active: {error}")),
        }
        let questions: Vec<Question> = baseline.iter().map(Answered::question).collect();
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let (mut silent, mut doubtful) = (Vec::new(), Vec::new());
        for (answered, answer) in baseline.iter().zip(ask(&questions).await) {
            match answer {
                Ok(took) => {
                    before.push(Duration::from_micros(answered.micros));
                    after.push(took);
                }
                Err(what) if answered.named => silent.push(what),
                Err(what) => doubtful.push((answered.question(), what)),
            }
        }
        silent.extend(self.our_fault(doubtful).await?);
        if silent.is_empty() {
            Ok(slower(&before, &after))
        } else {
            Err(format!("the probe failed: {}", describe(&silent)))
        }
    }

    /// Of what the sample does not hear any more, what is not its Service's own doing: an endpoint answers this node directly.
    async fn our_fault(&self, doubtful: Vec<(Question, Silent)>) -> Result<Vec<Silent>, String> {
        if doubtful.is_empty() {
            return Ok(vec![]);
        }
        for (_, silent) in &doubtful {
            tracing::warn!(address = %silent.address, why = silent.why, "part of the sample does not answer any more");
        }
        if !self.listed().await {
            // Nobody can tell whose fault it is; what the work names answers.
            return Ok(vec![]);
        }
        let desired = self.dataplane.desired().await.map_err(|error| error.to_string())?;
        let mut ours = Vec::new();
        for (question, what) in doubtful {
            let direct: Vec<SocketAddr> = endpoints(&desired.frontends, question)
                .into_iter()
                .map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port))
                .collect();
            let quiet = probe(&direct).await;
            if quiet.len() < direct.len() {
                ours.push(what);
            }
        }
        Ok(ours)
    }
}
