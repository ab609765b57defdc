//! Table `stages`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use nftfleet_domain::ids::RolloutId;
use nftfleet_domain::rollout::{Plan, StageSnapshot, StageState};
use sqlx::PgConnection;
use uuid::Uuid;

use super::rollouts::Stage;
use super::{StoreError, counted, parsed, read_name, to_name, unsigned};

/// Adds the stages of a new rollout.
pub(super) async fn insert(
    connection: &mut PgConnection,
    rollout: RolloutId,
    plan: &Plan,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let names: Vec<String> = plan.stages.iter().map(|stage| stage.name.to_string()).collect();
    sqlx::query!(
        "INSERT INTO stages (rollout_id, ordinal, name, state, since)
        SELECT $1, place - 1, name, $3, $4 FROM UNNEST($2::text[]) WITH ORDINALITY AS planned (name, place)",
        rollout.0,
        &names,
        to_name(&StageState::Pending),
        now.to_sqlx(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The stages of a rollout, in order.
pub(super) async fn snapshot(
    connection: &mut PgConnection,
    rollout: RolloutId,
) -> Result<Vec<StageSnapshot>, StoreError> {
    let rows = sqlx::query!(
        "SELECT ordinal, state, since FROM stages WHERE rollout_id = $1 ORDER BY ordinal",
        rollout.0,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(StageSnapshot {
                ordinal: unsigned("stages", "ordinal", row.ordinal)?,
                state: read_name("stages", "state", row.state)?,
                since: row.since.to_jiff(),
            })
        })
        .collect()
}

/// Moves stages to new states, by their place in the order.
pub(super) async fn update(
    connection: &mut PgConnection,
    rollout: RolloutId,
    states: &BTreeMap<u32, StageState>,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let ordinals: Vec<i32> = states.keys().map(|o| i32::try_from(*o).unwrap_or(i32::MAX)).collect();
    let names: Vec<String> = states.values().map(to_name).collect();
    sqlx::query!(
        "UPDATE stages SET state = changed.state, since = $4
        FROM UNNEST($2::integer[], $3::text[]) AS changed (ordinal, state)
        WHERE stages.rollout_id = $1 AND stages.ordinal = changed.ordinal",
        rollout.0,
        &ordinals,
        &names,
        now.to_sqlx(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The stages of these rollouts, in order, each with the number of its tasks by state.
pub(super) async fn with_tasks(
    connection: &mut PgConnection,
    rollouts: &[Uuid],
) -> Result<BTreeMap<Uuid, Vec<Stage>>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT s.rollout_id, s.ordinal, s.name, s.state, t.state_name AS "task_state?", count(t.task_id) AS "tasks!"
        FROM stages s LEFT JOIN node_tasks t ON t.rollout_id = s.rollout_id AND t.stage = s.ordinal
        WHERE s.rollout_id = ANY($1)
        GROUP BY s.rollout_id, s.ordinal, t.state_name ORDER BY s.rollout_id, s.ordinal, t.state_name"#,
        rollouts,
    )
    .fetch_all(connection)
    .await?;
    let mut by_rollout = BTreeMap::<Uuid, Vec<Stage>>::new();
    let mut last = None;
    for row in rows {
        let stages = by_rollout.entry(row.rollout_id).or_default();
        if last != Some((row.rollout_id, row.ordinal)) {
            last = Some((row.rollout_id, row.ordinal));
            stages.push(Stage {
                name: parsed("stages", "name", &row.name)?,
                state: read_name("stages", "state", row.state)?,
                tasks: BTreeMap::new(),
            });
        }
        if let (Some(stage), Some(state)) = (stages.last_mut(), row.task_state) {
            stage.tasks.insert(state, counted(row.tasks));
        }
    }
    Ok(by_rollout)
}
