//! Makes a tick's changes: all of them in one transaction, or none if anything has changed since the snapshot.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use nftfleet_domain::assignment::TaskState;
use nftfleet_domain::ids::TaskId;
use nftfleet_domain::rollout::{Command, RolloutState, StageState, Tick};

use super::node_tasks::{self, Change};
use super::{Applied, Read, Store, StoreError, nodes, rollout_requests, stages, to_json, to_name};

/// A tick's commands, folded: what each thing becomes in the end, and every state a task goes through.
#[derive(Default)]
struct Outcome {
    state: Option<RolloutState>,
    started: bool,
    stages: BTreeMap<u32, StageState>,
    tasks: BTreeMap<TaskId, TaskState>,
    events: Vec<(TaskId, TaskState)>,
    requests_done: bool,
}

impl Outcome {
    fn of(commands: &[Command]) -> Self {
        let mut outcome = Self::default();
        for command in commands {
            match command {
                Command::Rollout(state) => {
                    outcome.started |= *state == RolloutState::Running;
                    outcome.state = Some(*state);
                }
                Command::Stage(ordinal, state) => {
                    outcome.stages.insert(*ordinal, *state);
                }
                Command::Task(id, state) => {
                    outcome.tasks.insert(*id, state.clone());
                    outcome.events.push((*id, state.clone()));
                }
                Command::RequestsDone => outcome.requests_done = true,
            }
        }
        outcome
    }

    fn changes(&self, read: &Read) -> Vec<Change> {
        let changed = |task: &nftfleet_domain::rollout::TaskSnapshot| {
            let state = self.tasks.get(&task.id)?.clone();
            let attempts = match &state {
                TaskState::UnderWay { attempt, .. } => *attempt.max(&task.attempts),
                _ => task.attempts,
            };
            Some(Change {
                id: task.id,
                read_at: task.generation,
                state,
                attempts,
            })
        };
        read.snapshot.tasks.iter().filter_map(changed).collect()
    }
}

impl Store {
    /// Applies `tick` to the rollout that `read` is of, if nothing in it has changed since. A tick without commands
    /// changes no generation, and writes only if the rollout waits for something else than before.
    pub async fn apply(&self, read: &Read, tick: &Tick, now: Timestamp) -> Result<Applied, StoreError> {
        if tick.commands.is_empty() {
            return self.wait_on(read, tick).await;
        }
        match self.try_apply(read, tick, now).await {
            Err(StoreError::Query(sqlx::Error::Database(error)))
                if error.constraint() == Some("node_tasks_one_under_way_per_node")
                    || error.code().is_some_and(|code| code == "40P01") =>
            {
                // Another rollout was granted the node in between (the next snapshot shows it), or a deadlock was broken.
                Ok(Applied::Stale)
            }
            other => other,
        }
    }

    async fn try_apply(&self, read: &Read, tick: &Tick, now: Timestamp) -> Result<Applied, StoreError> {
        let outcome = Outcome::of(&tick.commands);
        let state = outcome.state.unwrap_or(read.snapshot.state);
        let ended = state.is_ended() && !read.snapshot.state.is_ended();
        // Dropped without a commit, the transaction is rolled back.
        let mut transaction = self.pool.begin().await?;
        let done = sqlx::query!(
            "UPDATE rollouts SET generation = generation + 1, state = $3, waiting_on = $4,
                started_at = CASE WHEN $5 THEN COALESCE(started_at, $7) ELSE started_at END,
                ended_at = CASE WHEN $6 THEN $7 ELSE ended_at END
            WHERE rollout_id = $1 AND generation = $2",
            read.snapshot.id.0,
            read.snapshot.generation.0,
            to_name(&state),
            to_json(&tick.waiting_on),
            outcome.started,
            ended,
            now.to_sqlx(),
        )
        .execute(&mut *transaction)
        .await?;
        if done.rows_affected() != 1 {
            return Ok(Applied::Stale);
        }
        if !outcome.stages.is_empty() {
            stages::update(&mut transaction, read.snapshot.id, &outcome.stages, now).await?;
        }
        if outcome.requests_done {
            rollout_requests::acted_on(&mut transaction, &read.requests, now).await?;
        }
        if !outcome.tasks.is_empty() {
            let changes = outcome.changes(read);
            let nodes_of = node_tasks::update(&mut transaction, &changes).await?;
            if nodes_of.len() != outcome.tasks.len() {
                return Ok(Applied::Stale);
            }
            node_tasks::add_events(&mut transaction, &outcome.events, now).await?;
            nodes::assignments_changed(&mut transaction, &nodes_of).await?;
        }
        node_tasks::notify_rollout(&mut transaction, read.snapshot.id).await?;
        transaction.commit().await?;
        Ok(Applied::Yes)
    }

    async fn wait_on(&self, read: &Read, tick: &Tick) -> Result<Applied, StoreError> {
        if tick.waiting_on == read.waiting_on {
            return Ok(Applied::Yes);
        }
        let done = sqlx::query!(
            "UPDATE rollouts SET waiting_on = $3 WHERE rollout_id = $1 AND generation = $2",
            read.snapshot.id.0,
            read.snapshot.generation.0,
            to_json(&tick.waiting_on),
        )
        .execute(&self.pool)
        .await?;
        Ok(if done.rows_affected() == 1 {
            Applied::Yes
        } else {
            Applied::Stale
        })
    }
}
