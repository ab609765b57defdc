//! Tables `node_tasks` and `task_events`: one node's piece of work, and every state that it has been in.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use nftfleet_domain::assignment::TaskState;
use nftfleet_domain::ids::{Attempt, ClusterName, Generation, NodeId, NodeName, RolloutId, StageName, TaskId};
use nftfleet_domain::rollout::{Action, Plan, Settings};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Applied, Store, StoreError, counted, nodes, parsed, read_json, to_json, unsigned};

/// A task as an agent's report of progress finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTask {
    /// Its identity.
    pub id: TaskId,
    /// Its rollout.
    pub rollout: RolloutId,
    /// Its node.
    pub node: NodeId,
    /// Its generation.
    pub generation: Generation,
    /// Its state.
    pub state: TaskState,
}

/// What the server wants of a node, and the generation of that wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Rises with every change.
    pub generation: Generation,
    /// The work under way, if there is any.
    pub work: Option<UnderWay>,
}

/// A node's work under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderWay {
    /// The task.
    pub task: TaskId,
    /// Its rollout.
    pub rollout: RolloutId,
    /// Its state.
    pub state: TaskState,
    /// What the rollout does.
    pub action: Action,
    /// The rollout's limits.
    pub settings: Settings,
}

/// A task as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedTask {
    /// Its identity.
    pub id: TaskId,
    /// Its place in the plan, from 0.
    pub position: u32,
    /// Its stage.
    pub stage: StageName,
    /// Its node's cluster.
    pub cluster: ClusterName,
    /// Its node.
    pub node: NodeName,
    /// Its state.
    pub state: TaskState,
    /// The attempts that were granted so far.
    pub attempts: Attempt,
    /// Every state it has been in, oldest first.
    pub timeline: Vec<(Timestamp, TaskState)>,
}

impl Store {
    /// What the server wants of `node`.
    pub async fn assigned(&self, node: NodeId) -> Result<Assigned, StoreError> {
        // The index node_tasks_one_under_way_per_node makes it one row.
        let row = sqlx::query!(
            r#"SELECT n.assignment_generation, t.task_id AS "task_id?", t.rollout_id AS "rollout_id?", t.state AS "state?",
                r.action AS "action?", r.settings AS "settings?"
            FROM nodes n
            LEFT JOIN node_tasks t ON t.node_id = n.node_id AND t.under_way
            LEFT JOIN rollouts r ON r.rollout_id = t.rollout_id
            WHERE n.node_id = $1"#,
            node.0,
        )
        .fetch_one(&self.pool)
        .await?;
        let work = match (row.task_id, row.rollout_id, row.state, row.action, row.settings) {
            (Some(task), Some(rollout), Some(state), Some(action), Some(settings)) => Some(UnderWay {
                task: TaskId(task),
                rollout: RolloutId(rollout),
                state: read_json("node_tasks", "state", state)?,
                action: read_json("rollouts", "action", action)?,
                settings: read_json("rollouts", "settings", settings)?,
            }),
            _ => None,
        };
        Ok(Assigned {
            generation: Generation(row.assignment_generation),
            work,
        })
    }

    /// A task, if it is one of `node`.
    pub async fn task_of(&self, node: NodeId, task: TaskId) -> Result<Option<NodeTask>, StoreError> {
        let row = sqlx::query!(
            "SELECT rollout_id, generation, state FROM node_tasks WHERE task_id = $1 AND node_id = $2",
            task.0,
            node.0,
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            Ok(NodeTask {
                id: task,
                rollout: RolloutId(row.rollout_id),
                node,
                generation: Generation(row.generation),
                state: read_json("node_tasks", "state", row.state)?,
            })
        })
        .transpose()
    }

    /// Moves a task to `state`, if it is still as it was read, and wakes who waits for it.
    pub async fn move_task(&self, task: &NodeTask, state: &TaskState, now: Timestamp) -> Result<Applied, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let done = sqlx::query!(
            "UPDATE node_tasks SET state = $3, generation = generation + 1 WHERE task_id = $1 AND generation = $2",
            task.id.0,
            task.generation.0,
            to_json(state),
        )
        .execute(&mut *transaction)
        .await?;
        if done.rows_affected() != 1 {
            return Ok(Applied::Stale);
        }
        add_events(&mut transaction, &[(task.id, state.clone())], now).await?;
        nodes::assignments_changed(&mut transaction, &[task.node.0]).await?;
        notify_rollout(&mut transaction, task.rollout).await?;
        transaction.commit().await?;
        Ok(Applied::Yes)
    }

    /// At most `limit` tasks of a rollout by stage, cluster and node, those after the place `after`.
    pub async fn tasks(
        &self,
        rollout: RolloutId,
        after: Option<u32>,
        limit: u32,
    ) -> Result<Vec<ListedTask>, StoreError> {
        let mut transaction = self.reading().await?;
        let after = after.map_or(-1, |place| i32::try_from(place).unwrap_or(i32::MAX));
        let rows = sqlx::query!(
            "SELECT t.task_id, t.position, s.name AS stage, c.name AS cluster, n.name AS node, t.state, t.attempts
            FROM node_tasks t
            JOIN stages s ON s.rollout_id = t.rollout_id AND s.ordinal = t.stage
            JOIN nodes n USING (node_id) JOIN clusters c USING (cluster_id)
            WHERE t.rollout_id = $1 AND t.position > $2 ORDER BY t.position LIMIT $3",
            rollout.0,
            after,
            i64::from(limit),
        )
        .fetch_all(&mut *transaction)
        .await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.task_id).collect();
        let mut timelines = timelines(&mut transaction, &ids).await?;
        rows.into_iter()
            .map(|row| {
                Ok(ListedTask {
                    id: TaskId(row.task_id),
                    position: unsigned("node_tasks", "position", row.position)?,
                    stage: parsed("stages", "name", &row.stage)?,
                    cluster: parsed("clusters", "name", &row.cluster)?,
                    node: parsed("nodes", "name", &row.node)?,
                    state: read_json("node_tasks", "state", row.state)?,
                    attempts: Attempt(unsigned("node_tasks", "attempts", row.attempts)?),
                    timeline: timelines.remove(&row.task_id).unwrap_or_default(),
                })
            })
            .collect()
    }

    /// How many tasks of all rollouts are in each state, by the state's name.
    pub async fn count_tasks(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        let rows = sqlx::query!(r#"SELECT state_name, count(*) AS "tasks!" FROM node_tasks GROUP BY state_name"#)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows
            .into_iter()
            .map(|row| (row.state_name, counted(row.tasks)))
            .collect())
    }
}

async fn timelines(
    connection: &mut PgConnection,
    tasks: &[Uuid],
) -> Result<BTreeMap<Uuid, Vec<(Timestamp, TaskState)>>, StoreError> {
    let rows = sqlx::query!(
        "SELECT task_id, at, state FROM task_events WHERE task_id = ANY($1) ORDER BY task_id, event_id",
        tasks,
    )
    .fetch_all(connection)
    .await?;
    let mut timelines = BTreeMap::<Uuid, Vec<(Timestamp, TaskState)>>::new();
    for row in rows {
        let state = read_json("task_events", "state", row.state)?;
        timelines
            .entry(row.task_id)
            .or_default()
            .push((row.at.to_jiff(), state));
    }
    Ok(timelines)
}

/// Adds the tasks of a new rollout, by stage, cluster and node; `ids` has as many identities as the plan has members.
pub(super) async fn insert(
    connection: &mut PgConnection,
    rollout: RolloutId,
    plan: &Plan,
    ids: &[TaskId],
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let members = plan.stages.iter().zip(0_i32..).flat_map(|(stage, ordinal)| {
        let ids = stage.members.iter().map(|member| member.id.0);
        ids.map(move |node| (node, ordinal))
    });
    let (nodes, stages): (Vec<Uuid>, Vec<i32>) = members.unzip();
    let tasks: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    sqlx::query!(
        "INSERT INTO node_tasks (task_id, rollout_id, stage, position, node_id, state)
        SELECT task_id, $1, stage, place - 1, node_id, $5
        FROM UNNEST($2::uuid[], $3::integer[], $4::uuid[]) WITH ORDINALITY AS planned (task_id, stage, node_id, place)",
        rollout.0,
        &tasks,
        &stages,
        &nodes,
        to_json(&TaskState::Pending),
    )
    .execute(&mut *connection)
    .await?;
    let events: Vec<_> = ids.iter().map(|id| (*id, TaskState::Pending)).collect();
    add_events(connection, &events, now).await
}

/// A change of a task: what was read, and what it becomes.
pub(super) struct Change {
    pub(super) id: TaskId,
    pub(super) read_at: Generation,
    pub(super) state: TaskState,
    pub(super) attempts: Attempt,
}

/// Moves tasks to new states. Gives the nodes of those that were still as they had been read.
pub(super) async fn update(connection: &mut PgConnection, changes: &[Change]) -> Result<Vec<Uuid>, sqlx::Error> {
    let ids: Vec<Uuid> = changes.iter().map(|change| change.id.0).collect();
    let generations: Vec<i64> = changes.iter().map(|change| change.read_at.0).collect();
    let states: Vec<serde_json::Value> = changes.iter().map(|change| to_json(&change.state)).collect();
    let attempts: Vec<i32> = changes
        .iter()
        .map(|change| i32::try_from(change.attempts.0).unwrap_or(i32::MAX))
        .collect();
    sqlx::query_scalar!(
        "UPDATE node_tasks t SET state = changed.state, attempts = changed.attempts, generation = t.generation + 1
        FROM UNNEST($1::uuid[], $2::bigint[], $3::jsonb[], $4::integer[])
            AS changed (task_id, generation, state, attempts)
        WHERE t.task_id = changed.task_id AND t.generation = changed.generation
        RETURNING t.node_id",
        &ids,
        &generations,
        &states,
        &attempts,
    )
    .fetch_all(connection)
    .await
}

/// Adds to the tasks' timelines, in this order.
pub(super) async fn add_events(
    connection: &mut PgConnection,
    events: &[(TaskId, TaskState)],
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let ids: Vec<Uuid> = events.iter().map(|(id, _)| id.0).collect();
    let states: Vec<serde_json::Value> = events.iter().map(|(_, state)| to_json(state)).collect();
    sqlx::query!(
        "INSERT INTO task_events (task_id, at, state)
        SELECT task_id, $3, state
        FROM UNNEST($1::uuid[], $2::jsonb[]) WITH ORDINALITY AS happened (task_id, state, place) ORDER BY place",
        &ids,
        &states,
        now.to_sqlx(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Tells every server that a rollout has something to look at.
pub(super) async fn notify_rollout(connection: &mut PgConnection, rollout: RolloutId) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT pg_notify('nftfleet_rollout', $1::uuid::text)", rollout.0)
        .execute(connection)
        .await?;
    Ok(())
}
