//! The store's rules, on a real Postgres.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use nftfleet_domain::assignment::{AgentPhase, Heard, Phase, Progress, TaskState};
use nftfleet_domain::ids::{Attempt, ClusterId, ClusterName, Generation, NodeId, RolloutId};
use nftfleet_domain::readiness::Policy;
use nftfleet_domain::rollout::{
    Action, Plan, PlanRequest, Request, RolloutState, Settings, StageRequest, StageSize, Tick, tick,
};
use uuid::Uuid;

use super::*;
use crate::clock::{Clock, Ids};
use crate::embedded::testing;
use crate::secret::SecretHash;
use crate::testing::{TestClock, TestIds, ready_report};

struct Fleet {
    store: Store,
    clock: TestClock,
    ids: TestIds,
    nodes: Vec<NodeId>,
}

fn cluster() -> ClusterName {
    "demo".parse().unwrap()
}

/// A cluster of `count` nodes that are ready.
async fn fleet(count: usize) -> Fleet {
    let database = testing::database().await;
    let (store, clock, ids) = (Store::new(database.pool), TestClock::new(), TestIds::default());
    let now = clock.now();
    store
        .create_cluster(ClusterId(ids.id()), &cluster(), now)
        .await
        .unwrap();
    let token = SecretHash::of("token");
    let expires = now + SignedDuration::from_hours(1);
    assert!(
        store
            .create_enrolment_token(&cluster(), token, now, expires)
            .await
            .unwrap()
    );
    let mut nodes = Vec::new();
    for n in 0..count {
        let agent = NewAgent {
            node: format!("node-{n:03}").parse().unwrap(),
            id_if_new: NodeId(ids.id()),
            version: "0.1.0".to_owned(),
            credential: SecretHash::of(&format!("credential {n}")),
        };
        let (node, _) = store.enrol(token, &agent, now).await.unwrap();
        assert_eq!(
            store.record_report(node, 1, &ready_report(), now).await.unwrap(),
            Recorded::New
        );
        nodes.push(node);
    }
    Fleet {
        store,
        clock,
        ids,
        nodes,
    }
}

impl Fleet {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn rollout(&self, settings: Settings) -> RolloutId {
        let request = PlanRequest {
            name: "r".parse().unwrap(),
            action: Action::MoveToNftfleet,
            clusters: vec![cluster()],
            nodes: None,
            stages: vec![StageRequest {
                name: "all".parse().unwrap(),
                size: StageSize::Rest,
            }],
            settings,
        };
        let plan = Plan::resolve(&request, &self.store.fleet(&[cluster()]).await.unwrap()).unwrap();
        let id = RolloutId(self.ids.id());
        self.store
            .create_rollout(id, &plan, || self.ids.id(), self.now())
            .await
            .unwrap();
        id
    }

    async fn read(&self, id: RolloutId) -> Read {
        self.store
            .snapshot(id, &Policy::default(), self.now())
            .await
            .unwrap()
            .unwrap()
    }

    async fn ask(&self, id: RolloutId, request: Request) {
        let head = self.store.rollout_head(id).await.unwrap().unwrap();
        let added = self
            .store
            .add_request(id, head.generation, request, "why", self.now())
            .await;
        assert_eq!(added.unwrap(), Applied::Yes);
    }

    async fn tick(&self, id: RolloutId) -> (Tick, Applied) {
        let read = self.read(id).await;
        let tick = tick(&read.snapshot, self.now());
        let applied = self.store.apply(&read, &tick, self.now()).await.unwrap();
        (tick, applied)
    }

    async fn states(&self, id: RolloutId) -> Vec<String> {
        let tasks = self.store.tasks(id, None, 1000).await.unwrap();
        tasks.iter().map(|task| task.state.name().to_owned()).collect()
    }
}

#[tokio::test]
async fn a_report_is_kept_only_if_its_sequence_is_newer() {
    let fleet = fleet(1).await;
    let (node, now) = (fleet.nodes[0], fleet.now());
    let mut newer = ready_report();
    newer.agent_version = "0.2.0".to_owned();
    let record = |sequence, report| {
        let store = fleet.store.clone();
        async move { store.record_report(node, sequence, &report, now).await.unwrap() }
    };
    assert_eq!(record(1, newer.clone()).await, Recorded::Duplicate);
    assert_eq!(record(5, newer.clone()).await, Recorded::New);
    assert_eq!(record(4, ready_report()).await, Recorded::Stale(5));
    let stored = fleet.store.nodes(None, None, 10).await.unwrap();
    assert_eq!(stored[0].report.as_ref(), Some(&newer));
    assert_eq!(fleet.store.agents(None, None, 10).await.unwrap()[0].version, "0.2.0");
}

#[tokio::test]
async fn enrolling_again_keeps_the_node_and_replaces_the_credential() {
    let fleet = fleet(1).await;
    let now = fleet.now();
    let again = |token: &'static str, now| {
        let agent = NewAgent {
            node: "node-000".parse().unwrap(),
            id_if_new: NodeId(fleet.ids.id()),
            version: "0.1.1".to_owned(),
            credential: SecretHash::of("another"),
        };
        let store = fleet.store.clone();
        async move { store.enrol(SecretHash::of(token), &agent, now).await }
    };
    let (node, _) = again("token", now).await.unwrap();
    assert_eq!(node, fleet.nodes[0]);
    let whose = |secret: &'static str| fleet.store.credential(SecretHash::of(secret));
    assert_eq!(whose("credential 0").await.unwrap(), None);
    assert_eq!(whose("another").await.unwrap().unwrap().node, node);
    assert!(matches!(again("rubbish", now).await, Err(EnrolError::Refused)));
    let late = now + SignedDuration::from_hours(1);
    assert!(matches!(again("token", late).await, Err(EnrolError::Refused)));
    assert_eq!(fleet.store.delete_expired_tokens(now).await.unwrap(), 0);
    assert_eq!(fleet.store.delete_expired_tokens(late).await.unwrap(), 1);
}

#[tokio::test]
async fn a_heartbeat_is_written_at_most_so_often_and_never_goes_back() {
    let fleet = fleet(1).await;
    let (node, begun) = (fleet.nodes[0], fleet.now());
    let ten = SignedDuration::from_secs(10);
    let mut seen = Vec::new();
    for seconds in [9, 10, 5] {
        let at = begun + SignedDuration::from_secs(seconds);
        fleet.store.heard_of(node, at, ten).await.unwrap();
        let nodes = fleet.store.nodes(None, None, 1).await.unwrap();
        seen.push(nodes[0].last_seen_at.duration_since(begun).as_secs());
    }
    assert_eq!(seen, [0, 10, 10]);
}

#[tokio::test]
async fn of_two_ticks_on_one_snapshot_one_wins_and_a_node_is_granted_once() {
    let fleet = fleet(3).await;
    let id = fleet
        .rollout(Settings {
            max_concurrent: 2,
            ..Settings::default()
        })
        .await;
    fleet.ask(id, Request::Start).await;
    let read = fleet.read(id).await;
    let decided = tick(&read.snapshot, fleet.now());
    let (one, two) = tokio::join!(
        fleet.store.apply(&read, &decided, fleet.now()),
        fleet.store.apply(&read, &decided, fleet.now())
    );
    let mut applied = [one.unwrap(), two.unwrap()];
    applied.sort_by_key(|applied| *applied == Applied::Stale);
    assert_eq!(applied, [Applied::Yes, Applied::Stale]);
    assert_eq!(fleet.states(id).await, ["OFFERED", "OFFERED", "PENDING"]);
    let tasks = fleet.store.tasks(id, None, 10).await.unwrap();
    let seen: Vec<usize> = tasks.iter().map(|task| task.timeline.len()).collect();
    assert_eq!(seen, [2, 2, 1]);
    assert_eq!(tasks[0].attempts, Attempt(1));
}

#[tokio::test]
async fn a_tick_that_touches_no_task_loses_against_another_one_too() {
    let fleet = fleet(1).await;
    let id = fleet.rollout(Settings::default()).await;
    fleet.ask(id, Request::Start).await;
    fleet.tick(id).await;
    fleet.ask(id, Request::Pause).await;
    let read = fleet.read(id).await;
    let pauses = tick(&read.snapshot, fleet.now());
    assert_eq!(
        fleet.store.apply(&read, &pauses, fleet.now()).await.unwrap(),
        Applied::Yes
    );
    fleet.ask(id, Request::Resume).await;
    fleet.tick(id).await;
    assert_eq!(
        fleet.store.apply(&read, &pauses, fleet.now()).await.unwrap(),
        Applied::Stale
    );
    let rollout = fleet.store.rollout(id).await.unwrap().unwrap();
    assert_eq!(rollout.state, RolloutState::Running);
}

#[tokio::test]
async fn a_tick_loses_against_a_task_that_moved_since_the_snapshot() {
    let fleet = fleet(1).await;
    let settings = Settings {
        node_soak_seconds: 0,
        ..Settings::default()
    };
    let id = fleet.rollout(settings).await;
    fleet.ask(id, Request::Start).await;
    fleet.tick(id).await;
    let task = fleet.store.assigned(fleet.nodes[0]).await.unwrap().work.unwrap().task;
    let mut found = fleet.store.task_of(fleet.nodes[0], task).await.unwrap().unwrap();
    let soaking = Progress::In {
        phase: AgentPhase::Soaking,
    };
    let Ok(Heard::Moved(state)) = found.state.hear(Attempt(1), &soaking, fleet.now()) else {
        panic!("a granted task can soak")
    };
    assert_eq!(
        fleet.store.move_task(&found, &state, fleet.now()).await.unwrap(),
        Applied::Yes
    );
    assert_eq!(
        fleet.store.move_task(&found, &state, fleet.now()).await.unwrap(),
        Applied::Stale
    );
    // The tick would confirm it, but it fails first.
    let read = fleet.read(id).await;
    let confirms = tick(&read.snapshot, fleet.now());
    found = fleet.store.task_of(fleet.nodes[0], task).await.unwrap().unwrap();
    let failed = TaskState::NeedsAttention {
        attempt: Attempt(1),
        why: "x".to_owned(),
    };
    assert_eq!(
        fleet.store.move_task(&found, &failed, fleet.now()).await.unwrap(),
        Applied::Yes
    );
    let before = fleet.store.rollout(id).await.unwrap();
    let applied = fleet.store.apply(&read, &confirms, fleet.now()).await.unwrap();
    assert_eq!(applied, Applied::Stale);
    assert_eq!(
        fleet.store.rollout(id).await.unwrap(),
        before,
        "nothing of a stale tick stays"
    );
    assert_eq!(fleet.states(id).await, ["NEEDS_ATTENTION"]);
}

#[tokio::test]
async fn two_rollouts_never_have_the_same_node_under_way() {
    let fleet = fleet(1).await;
    let (one, two) = (
        fleet.rollout(Settings::default()).await,
        fleet.rollout(Settings::default()).await,
    );
    fleet.ask(one, Request::Start).await;
    fleet.ask(two, Request::Start).await;
    // Both see the node free.
    let (read_one, read_two) = (fleet.read(one).await, fleet.read(two).await);
    let now = fleet.now();
    let tick_one = tick(&read_one.snapshot, now);
    let tick_two = tick(&read_two.snapshot, now);
    assert_eq!(
        fleet.store.apply(&read_one, &tick_one, now).await.unwrap(),
        Applied::Yes
    );
    assert_eq!(
        fleet.store.apply(&read_two, &tick_two, now).await.unwrap(),
        Applied::Stale
    );
    let (again, applied) = fleet.tick(two).await;
    assert_eq!(applied, Applied::Yes);
    assert!(fleet.read(two).await.snapshot.tasks[0].busy_elsewhere);
    assert!(matches!(
        again.waiting_on[..],
        [nftfleet_domain::rollout::Hold::NodeBusy { .. }]
    ));
    assert_eq!(fleet.states(two).await, ["PENDING"]);
}

#[tokio::test]
async fn a_request_that_came_after_the_snapshot_stays_open() {
    let fleet = fleet(1).await;
    let id = fleet.rollout(Settings::default()).await;
    fleet.ask(id, Request::Start).await;
    let read = fleet.read(id).await;
    fleet
        .ask(id, Request::Abort(nftfleet_domain::rollout::Underway::Revert))
        .await;
    let decided = tick(&read.snapshot, fleet.now());
    assert_eq!(
        fleet.store.apply(&read, &decided, fleet.now()).await.unwrap(),
        Applied::Yes
    );
    assert_eq!(fleet.read(id).await.snapshot.requests.len(), 1);
    fleet.tick(id).await;
    assert_eq!(fleet.states(id).await, ["REVERTING"]);
    let stale = fleet
        .store
        .add_request(id, Generation(1), Request::Start, "", fleet.now())
        .await;
    assert_eq!(stale.unwrap(), Applied::Stale);
}

#[tokio::test]
async fn a_tick_with_nothing_to_do_changes_no_generation() {
    let fleet = fleet(1).await;
    let id = fleet.rollout(Settings::default()).await;
    fleet.ask(id, Request::Start).await;
    fleet.tick(id).await;
    let before = fleet.store.rollout(id).await.unwrap().unwrap();
    let (decided, applied) = fleet.tick(id).await;
    assert!(decided.commands.is_empty());
    assert_eq!(applied, Applied::Yes);
    assert_eq!(fleet.store.rollout(id).await.unwrap().unwrap(), before);
    // A change of what it waits for is written without a new generation.
    let read = fleet.read(id).await;
    let other = Tick {
        commands: vec![],
        waiting_on: vec![],
    };
    assert_eq!(
        fleet.store.apply(&read, &other, fleet.now()).await.unwrap(),
        Applied::Yes
    );
    let after = fleet.store.rollout(id).await.unwrap().unwrap();
    assert!(after.waiting_on.is_empty());
    assert_eq!(after.generation, before.generation);
}

#[tokio::test]
async fn every_change_of_a_task_raises_the_assignments_generation() {
    let fleet = fleet(1).await;
    let id = fleet.rollout(Settings::default()).await;
    let before = fleet.store.assigned(fleet.nodes[0]).await.unwrap();
    assert_eq!(before.work, None);
    fleet.ask(id, Request::Start).await;
    fleet.tick(id).await;
    let granted = fleet.store.assigned(fleet.nodes[0]).await.unwrap();
    assert!(granted.generation > before.generation);
    let state = granted.work.unwrap().state;
    assert!(matches!(
        state,
        TaskState::UnderWay {
            phase: Phase::Offered,
            attempt: Attempt(1),
            ..
        }
    ));
}

#[tokio::test]
async fn the_database_names_states_as_the_domain_does() {
    let fleet = fleet(1).await;
    let id = fleet.rollout(Settings::default()).await;
    let task = fleet.store.tasks(id, None, 1).await.unwrap()[0].id;
    let under_way = |phase| TaskState::UnderWay {
        attempt: Attempt(1),
        phase,
        since: fleet.now(),
        deadline: fleet.now(),
    };
    let why = || "why".to_owned();
    let mut states: Vec<TaskState> = Phase::ALL.into_iter().map(under_way).collect();
    states.extend([
        TaskState::Confirmed { attempt: Attempt(1) },
        TaskState::AlreadyDone,
        TaskState::Reverted {
            attempt: Attempt(1),
            why: why(),
        },
        TaskState::Rejected { blockers: vec![why()] },
        TaskState::TimedOut {
            attempt: Attempt(1),
            phase: Phase::Soaking,
        },
        TaskState::NeedsAttention {
            attempt: Attempt(1),
            why: why(),
        },
        TaskState::Skipped,
        TaskState::Pending,
    ]);
    for state in states {
        let found = fleet.store.task_of(fleet.nodes[0], task).await.unwrap().unwrap();
        assert_eq!(
            fleet.store.move_task(&found, &state, fleet.now()).await.unwrap(),
            Applied::Yes
        );
        let counts = fleet.store.count_tasks().await.unwrap();
        assert_eq!(counts, BTreeMap::from([(state.name().to_owned(), 1)]));
        let work = fleet.store.assigned(fleet.nodes[0]).await.unwrap().work;
        assert_eq!(work.is_some(), state.is_under_way(), "{state:?}");
    }
}

#[tokio::test]
async fn rollouts_that_ended_are_ticked_while_a_node_is_under_way() {
    let fleet = fleet(2).await;
    let id = fleet
        .rollout(Settings {
            max_concurrent: 2,
            ..Settings::default()
        })
        .await;
    assert_eq!(fleet.store.rollouts_to_tick().await.unwrap(), [id]);
    fleet.ask(id, Request::Start).await;
    fleet.tick(id).await;
    let task = fleet.store.assigned(fleet.nodes[0]).await.unwrap().work.unwrap().task;
    let found = fleet.store.task_of(fleet.nodes[0], task).await.unwrap().unwrap();
    let failed = TaskState::Reverted {
        attempt: Attempt(1),
        why: "x".to_owned(),
    };
    fleet.store.move_task(&found, &failed, fleet.now()).await.unwrap();
    fleet.tick(id).await;
    let rollout = fleet.store.rollout(id).await.unwrap().unwrap();
    assert_eq!(rollout.state, RolloutState::Failed);
    assert_eq!(rollout.ended_at, Some(fleet.now()));
    assert_eq!(
        fleet.store.rollouts_to_tick().await.unwrap(),
        [id],
        "node-001 is under way"
    );
    fleet.clock.advance(601);
    fleet.tick(id).await;
    assert_eq!(fleet.states(id).await, ["REVERTED", "TIMED_OUT"]);
    assert!(fleet.store.rollouts_to_tick().await.unwrap().is_empty());
    assert_eq!(
        fleet.store.rollout(id).await.unwrap().unwrap().ended_at,
        rollout.ended_at
    );
}

#[tokio::test]
async fn a_lease_has_one_holder_until_it_runs_out() {
    let fleet = fleet(0).await;
    let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let ten = SignedDuration::from_secs(10);
    let hold = |holder| fleet.store.hold_lease("tick", holder, fleet.now(), ten);
    assert!(hold(one).await.unwrap());
    assert!(!hold(two).await.unwrap());
    fleet.clock.advance(9);
    assert!(hold(one).await.unwrap(), "it is renewed");
    fleet.clock.advance(9);
    assert!(!hold(two).await.unwrap());
    fleet.clock.advance(1);
    assert!(hold(two).await.unwrap());
    assert!(!hold(one).await.unwrap());
}

#[tokio::test]
async fn lists_go_on_after_a_key_in_byte_order() {
    let fleet = fleet(5).await;
    let keys: Vec<String> = {
        let first = fleet.store.nodes(Some(&cluster()), None, 2).await.unwrap();
        let rest = fleet.store.nodes(None, Some(&first[1].key), 10).await.unwrap();
        first
            .iter()
            .chain(&rest)
            .map(|node| node.key.node.to_string())
            .collect()
    };
    assert_eq!(keys, ["node-000", "node-001", "node-002", "node-003", "node-004"]);
    for name in ["a-b", "a.b", "ab"] {
        let id = ClusterId(fleet.ids.id());
        fleet
            .store
            .create_cluster(id, &name.parse().unwrap(), fleet.now())
            .await
            .unwrap();
    }
    let after: ClusterName = "a-b".parse().unwrap();
    let clusters = fleet.store.clusters(Some(&after), 2).await.unwrap();
    let names: Vec<&str> = clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    assert_eq!(names, ["a.b", "ab"]);
    let taken = fleet
        .store
        .create_cluster(ClusterId(fleet.ids.id()), &after, fleet.now())
        .await;
    assert!(matches!(taken, Err(CreateClusterError::Exists(name)) if name == after));
}
