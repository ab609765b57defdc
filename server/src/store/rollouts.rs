//! Table `rollouts`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use nftfleet_domain::ids::{Generation, RolloutId, RolloutName, StageName, TaskId};
use nftfleet_domain::rollout::{Action, Hold, Plan, RolloutState, Settings, StageState};
use uuid::Uuid;

use super::{Store, StoreError, node_tasks, parsed, read_json, read_name, stages, to_json, to_name};

/// A rollout and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Its identity.
    pub id: RolloutId,
    /// Its name.
    pub name: RolloutName,
    /// What it does to each node.
    pub action: Action,
    /// Its state.
    pub state: RolloutState,
    /// How often it changed.
    pub generation: Generation,
    /// The hash of its plan.
    pub plan_hash: String,
    /// Its limits.
    pub settings: Settings,
    /// Its stages, in order.
    pub stages: Vec<Stage>,
    /// What it waits for.
    pub waiting_on: Vec<Hold>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// A stage and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its name.
    pub name: StageName,
    /// Its state.
    pub state: StageState,
    /// How many of its tasks are in each state, by the state's name.
    pub tasks: BTreeMap<String, u64>,
}

/// What an action on a rollout is checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its state.
    pub state: RolloutState,
    /// Its generation.
    pub generation: Generation,
    /// The hash of its plan.
    pub plan_hash: String,
}

struct Row {
    rollout_id: Uuid,
    generation: i64,
    state: String,
    name: String,
    plan_hash: String,
    action: serde_json::Value,
    settings: serde_json::Value,
    waiting_on: serde_json::Value,
    created_at: jiff_sqlx::Timestamp,
    started_at: Option<jiff_sqlx::Timestamp>,
    ended_at: Option<jiff_sqlx::Timestamp>,
}

impl Row {
    fn with(self, stages: Vec<Stage>) -> Result<Rollout, StoreError> {
        Ok(Rollout {
            id: RolloutId(self.rollout_id),
            name: parsed("rollouts", "name", &self.name)?,
            action: read_json("rollouts", "action", self.action)?,
            state: read_name("rollouts", "state", self.state)?,
            generation: Generation(self.generation),
            plan_hash: self.plan_hash,
            settings: read_json("rollouts", "settings", self.settings)?,
            stages,
            waiting_on: read_json("rollouts", "waiting_on", self.waiting_on)?,
            created_at: self.created_at.to_jiff(),
            started_at: self.started_at.map(jiff_sqlx::Timestamp::to_jiff),
            ended_at: self.ended_at.map(jiff_sqlx::Timestamp::to_jiff),
        })
    }
}

impl Store {
    /// Keeps `plan` as a draft. `new_id` draws an identity for each task.
    pub async fn create_rollout(
        &self,
        id: RolloutId,
        plan: &Plan,
        new_id: impl Fn() -> Uuid + Send,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let tasks: Vec<TaskId> = plan
            .stages
            .iter()
            .flat_map(|s| &s.members)
            .map(|_| TaskId(new_id()))
            .collect();
        let mut transaction = self.pool.begin().await?;
        sqlx::query!(
            "INSERT INTO rollouts
                (rollout_id, state, name, plan, plan_hash, action, settings, waiting_on, created_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            id.0,
            to_name(&RolloutState::Draft),
            plan.name.as_str(),
            to_json(plan),
            plan.hash(),
            to_json(&plan.action),
            to_json(&plan.settings),
            to_json(&[Hold::NotStarted]),
            now.to_sqlx(),
        )
        .execute(&mut *transaction)
        .await?;
        stages::insert(&mut transaction, id, plan, now).await?;
        node_tasks::insert(&mut transaction, id, plan, &tasks, now).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// A rollout, read in one transaction.
    pub async fn rollout(&self, id: RolloutId) -> Result<Option<Rollout>, StoreError> {
        let mut transaction = self.reading().await?;
        let row = sqlx::query_as!(
            Row,
            "SELECT rollout_id, generation, state, name, plan_hash, action, settings, waiting_on, created_at, started_at,
                ended_at
            FROM rollouts WHERE rollout_id = $1",
            id.0,
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let mut stages = stages::with_tasks(&mut transaction, &[id.0]).await?;
        Ok(Some(row.with(stages.remove(&id.0).unwrap_or_default())?))
    }

    /// At most `limit` rollouts, newest first, those older than `after`.
    pub async fn rollouts(&self, after: Option<RolloutId>, limit: u32) -> Result<Vec<Rollout>, StoreError> {
        let mut transaction = self.reading().await?;
        let rows = sqlx::query_as!(
            Row,
            "SELECT rollout_id, generation, state, name, plan_hash, action, settings, waiting_on, created_at, started_at,
                ended_at
            FROM rollouts WHERE rollout_id < $1 ORDER BY rollout_id DESC LIMIT $2",
            after.map_or(Uuid::max(), |id| id.0),
            i64::from(limit),
        )
        .fetch_all(&mut *transaction)
        .await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.rollout_id).collect();
        let mut stages = stages::with_tasks(&mut transaction, &ids).await?;
        rows.into_iter()
            .map(|row| {
                let stages = stages.remove(&row.rollout_id).unwrap_or_default();
                row.with(stages)
            })
            .collect()
    }

    /// What an action on a rollout is checked against.
    pub async fn rollout_head(&self, id: RolloutId) -> Result<Option<Head>, StoreError> {
        let row = sqlx::query!(
            "SELECT state, generation, plan_hash FROM rollouts WHERE rollout_id = $1",
            id.0
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            Ok(Head {
                state: read_name("rollouts", "state", row.state)?,
                generation: Generation(row.generation),
                plan_hash: row.plan_hash,
            })
        })
        .transpose()
    }

    /// The rollouts that a tick can change: those that have not ended, and those with tasks still under way.
    pub async fn rollouts_to_tick(&self) -> Result<Vec<RolloutId>, StoreError> {
        let ids = sqlx::query_scalar!(
            r#"SELECT rollout_id AS "id!" FROM rollouts WHERE ended_at IS NULL
            UNION SELECT rollout_id FROM node_tasks WHERE under_way ORDER BY 1"#
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(ids.into_iter().map(RolloutId).collect())
    }
}
