//! Scenarios, and what holds in every one of them.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::assignment::{AgentPhase, Heard, Progress};
use crate::ids::{Generation, RolloutId};
use crate::readiness::Reason;
use crate::rollout::Settings;

/// A rollout with everything around it that a tick sees.
#[derive(Clone, Debug)]
struct Run {
    snapshot: Snapshot,
    now: Timestamp,
    grants: BTreeMap<TaskId, u32>,
}

fn reason() -> BTreeSet<Reason> {
    BTreeSet::from([Reason {
        code: "kernel-too-old".to_owned(),
        message: "the kernel is 4.19".to_owned(),
        remedy: "upgrade".to_owned(),
    }])
}

fn settings() -> Settings {
    Settings {
        max_concurrent: 10,
        ..Settings::default()
    }
}

impl Run {
    /// A draft with as many ready nodes per stage as `stages` says, asked to start.
    fn new(stages: &[u32], settings: Settings) -> Self {
        let now = Timestamp::UNIX_EPOCH;
        let mut tasks = Vec::new();
        for (ordinal, count) in (0..).zip(stages) {
            for _ in 0..*count {
                let n = tasks.len();
                tasks.push(TaskSnapshot {
                    id: TaskId(Uuid::from_u128(n as u128)),
                    generation: Generation(1),
                    stage: ordinal,
                    node: format!("n{n}").parse().unwrap(),
                    state: TaskState::Pending,
                    attempts: Attempt(0),
                    readiness: Verdict::Ready,
                    mode: Some(ProxyMode::IptablesNft),
                    busy_elsewhere: false,
                });
            }
        }
        let stage = |ordinal| StageSnapshot {
            ordinal,
            state: StageState::Pending,
            since: now,
        };
        let count = u32::try_from(stages.len()).unwrap();
        Self {
            snapshot: Snapshot {
                id: RolloutId(Uuid::nil()),
                generation: Generation(1),
                state: RolloutState::Draft,
                settings,
                requests: vec![Request::Start],
                stages: (0..count).map(stage).collect(),
                tasks,
            },
            now,
            grants: BTreeMap::new(),
        }
    }

    /// Ticks once and makes what the tick wants, as the store does.
    fn tick(&mut self) -> Tick {
        let tick = tick(&self.snapshot, self.now);
        for command in &tick.commands {
            match command {
                Command::Rollout(state) => self.snapshot.state = *state,
                Command::Stage(ordinal, state) => {
                    let stages = self.snapshot.stages.iter_mut();
                    for stage in stages.filter(|stage| stage.ordinal == *ordinal) {
                        stage.state = *state;
                        stage.since = self.now;
                    }
                }
                Command::Task(id, state) => {
                    let task = self.snapshot.tasks.iter_mut().find(|task| task.id == *id).unwrap();
                    if let TaskState::UnderWay { attempt, phase, .. } = state
                        && *phase == Phase::Offered
                    {
                        task.attempts = *attempt;
                        *self.grants.entry(*id).or_default() += 1;
                    }
                    task.state = state.clone();
                }
                Command::RequestsDone => self.snapshot.requests.clear(),
            }
        }
        tick
    }

    fn ask(&mut self, request: Request) {
        self.snapshot.requests.push(request);
    }

    fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// The agent of node `n` says something; what is refused changes nothing.
    fn says(&mut self, n: usize, progress: &Progress) {
        let task = &mut self.snapshot.tasks[n];
        if let Ok(Heard::Moved(state)) = task.state.hear(task.attempts, progress, self.now) {
            task.state = state;
        }
    }

    fn soaks(&mut self, n: usize) {
        let phase = AgentPhase::Soaking;
        self.says(n, &Progress::In { phase });
    }

    fn reverts(&mut self, n: usize) {
        let why = "the probe failed".to_owned();
        self.says(n, &Progress::Reverted { why });
    }

    /// Node `n` goes all the way.
    fn moves(&mut self, n: usize) {
        self.soaks(n);
        self.pass(self.snapshot.settings.node_soak_seconds.into());
        self.tick();
        self.says(n, &Progress::Confirmed);
        self.tick();
    }

    fn states(&self) -> Vec<&'static str> {
        self.snapshot.tasks.iter().map(|task| task.state.name()).collect()
    }

    fn stages(&self) -> Vec<StageState> {
        self.snapshot.stages.iter().map(|stage| stage.state).collect()
    }

    fn failures(&self) -> usize {
        self.snapshot
            .tasks
            .iter()
            .filter(|task| task.state.is_failure())
            .count()
    }
}

#[test]
fn a_draft_waits_for_its_start() {
    let mut run = Run::new(&[1], settings());
    run.snapshot.requests.clear();
    let tick = run.tick();
    assert_eq!(tick.commands, []);
    assert_eq!(tick.waiting_on, [Hold::NotStarted]);
}

#[test]
fn stages_open_one_after_another_until_the_rollout_succeeds() {
    let mut run = Run::new(&[1, 2], settings());
    run.tick();
    assert_eq!(run.states(), ["OFFERED", "PENDING", "PENDING"]);
    run.moves(0);
    assert_eq!(run.stages(), [StageState::Passed, StageState::Running]);
    assert_eq!(run.states(), ["CONFIRMED", "OFFERED", "OFFERED"]);
    run.moves(1);
    run.moves(2);
    assert_eq!(run.snapshot.state, RolloutState::Succeeded);
    assert_eq!(run.tick(), Tick::default());
}

#[test]
fn a_canary_that_fails_ends_the_rollout_and_skips_the_rest() {
    let mut run = Run::new(&[1, 2], settings());
    run.tick();
    run.reverts(0);
    run.tick();
    assert_eq!(run.snapshot.state, RolloutState::Failed);
    assert_eq!(run.states(), ["REVERTED", "SKIPPED", "SKIPPED"]);
    assert_eq!(run.stages(), [StageState::Failed, StageState::Skipped]);
}

#[test]
fn failures_within_the_limit_are_reported_at_the_end_and_count_over_all_stages() {
    let limit = Settings {
        max_failures: 1,
        ..settings()
    };
    let mut run = Run::new(&[1, 1], limit.clone());
    run.tick();
    run.reverts(0);
    run.tick();
    assert_eq!(run.states(), ["REVERTED", "OFFERED"]);
    run.moves(1);
    assert_eq!(run.snapshot.state, RolloutState::SucceededWithFailures);

    let mut run = Run::new(&[1, 1, 1], limit);
    run.tick();
    run.reverts(0);
    run.tick();
    run.reverts(1);
    run.tick();
    assert_eq!(run.snapshot.state, RolloutState::Failed);
    assert_eq!(run.states(), ["REVERTED", "REVERTED", "SKIPPED"]);
}

#[test]
fn nodes_under_way_go_on_to_their_end_after_a_failure() {
    let mut run = Run::new(&[2], settings());
    run.tick();
    run.soaks(1);
    run.reverts(0);
    run.tick();
    assert_eq!(run.snapshot.state, RolloutState::Failed);
    run.pass(30);
    run.tick();
    assert_eq!(run.states(), ["REVERTED", "CONFIRMING"]);
}

#[test]
fn no_more_nodes_are_under_way_than_allowed() {
    let two = Settings {
        max_concurrent: 2,
        ..settings()
    };
    let mut run = Run::new(&[3], two);
    let tick = run.tick();
    assert_eq!(run.states(), ["OFFERED", "OFFERED", "PENDING"]);
    assert_eq!(tick.waiting_on.last(), Some(&Hold::Capacity { max_concurrent: 2 }));
    run.moves(0);
    assert_eq!(run.states(), ["CONFIRMED", "OFFERED", "OFFERED"]);
}

#[test]
fn a_pause_grants_none_and_still_confirms() {
    let one = Settings {
        max_concurrent: 1,
        ..settings()
    };
    let mut run = Run::new(&[2], one);
    run.tick();
    run.ask(Request::Pause);
    run.tick();
    assert_eq!(run.snapshot.state, RolloutState::Paused);
    run.moves(0);
    assert_eq!(run.states(), ["CONFIRMED", "PENDING"]);
    run.ask(Request::Resume);
    run.tick();
    assert_eq!(run.states(), ["CONFIRMED", "OFFERED"]);
}

#[test]
fn a_failure_during_a_pause_ends_the_rollout() {
    let mut run = Run::new(&[1, 1], settings());
    run.tick();
    run.ask(Request::Pause);
    run.reverts(0);
    run.tick();
    assert_eq!(run.snapshot.state, RolloutState::Failed);
    assert_eq!(run.states(), ["REVERTED", "SKIPPED"]);
}

#[test]
fn an_abort_lets_nodes_end_or_takes_them_back() {
    for (underway, state) in [(Underway::Finish, "VERIFYING"), (Underway::Revert, "REVERTING")] {
        let mut run = Run::new(&[1, 1], settings());
        run.tick();
        let phase = AgentPhase::Verifying;
        run.says(0, &Progress::In { phase });
        run.ask(Request::Abort(underway));
        run.tick();
        assert_eq!(run.snapshot.state, RolloutState::Aborting);
        assert_eq!(run.states(), [state, "SKIPPED"]);
        run.reverts(0);
        run.tick();
        assert_eq!(run.snapshot.state, RolloutState::Aborted);
    }
}

#[test]
fn a_draft_can_be_aborted_and_ends_at_once() {
    let mut run = Run::new(&[1], settings());
    run.snapshot.requests = vec![Request::Abort(Underway::Revert)];
    run.tick();
    assert_eq!(run.snapshot.state, RolloutState::Aborted);
    assert_eq!(run.states(), ["SKIPPED"]);
}

#[test]
fn requests_that_come_too_late_are_passed_over() {
    let mut run = Run::new(&[1], settings());
    run.tick();
    run.ask(Request::Start);
    run.ask(Request::Resume);
    let tick = run.tick();
    assert_eq!(tick.commands, [Command::RequestsDone]);
}

#[test]
fn a_blocked_node_is_rejected_with_its_reasons_and_counts_as_a_failure() {
    let mut run = Run::new(&[1, 1], settings());
    run.snapshot.tasks[0].readiness = Verdict::Blocked(reason());
    run.tick();
    assert_eq!(run.states(), ["REJECTED", "SKIPPED"]);
    assert_eq!(run.snapshot.state, RolloutState::Failed);
    // Within one stage too: what comes after the rejection is not begun.
    let mut run = Run::new(&[2], settings());
    run.snapshot.tasks[0].readiness = Verdict::Blocked(reason());
    run.tick();
    assert_eq!(run.states(), ["REJECTED", "SKIPPED"]);
    let blockers = vec!["kernel-too-old: the kernel is 4.19".to_owned()];
    assert_eq!(run.snapshot.tasks[0].state, TaskState::Rejected { blockers });
}

#[test]
fn unknown_and_busy_nodes_wait_without_blocking_the_others() {
    let mut run = Run::new(&[3], settings());
    run.snapshot.tasks[0].readiness = Verdict::Unknown(reason());
    run.snapshot.tasks[1].busy_elsewhere = true;
    let tick = run.tick();
    assert_eq!(run.states(), ["PENDING", "PENDING", "OFFERED"]);
    assert!(matches!(tick.waiting_on[0], Hold::NodeUnknown { .. }));
    assert!(matches!(tick.waiting_on[1], Hold::NodeBusy { .. }));
    run.moves(2);
    assert_eq!(run.snapshot.state, RolloutState::Running);
    run.snapshot.tasks[0].readiness = Verdict::Ready;
    run.snapshot.tasks[1].busy_elsewhere = false;
    run.tick();
    assert_eq!(run.states(), ["OFFERED", "OFFERED", "CONFIRMED"]);
}

#[test]
fn a_node_that_is_there_already_is_done_but_only_if_that_is_known() {
    let mut run = Run::new(&[2], settings());
    for task in &mut run.snapshot.tasks {
        task.mode = Some(ProxyMode::Nftfleet);
    }
    run.snapshot.tasks[1].readiness = Verdict::Unknown(reason());
    run.tick();
    assert_eq!(run.states(), ["ALREADY_DONE", "PENDING"]);
    run.snapshot.tasks[1].readiness = Verdict::Ready;
    run.tick();
    assert_eq!(run.snapshot.state, RolloutState::Succeeded);
}

#[test]
fn a_node_without_an_end_times_out_and_frees_its_place() {
    let one = Settings {
        max_concurrent: 1,
        max_failures: 1,
        ..settings()
    };
    let mut run = Run::new(&[2], one);
    run.tick();
    let phase = AgentPhase::Applying;
    run.says(0, &Progress::In { phase });
    run.pass(600);
    run.tick();
    assert_eq!(run.states(), ["APPLYING", "PENDING"]);
    run.pass(1);
    run.tick();
    assert_eq!(run.states(), ["TIMED_OUT", "OFFERED"]);
}

#[test]
fn a_soak_that_has_ended_is_confirmed_and_a_regression_is_not() {
    let mut run = Run::new(&[2], settings());
    run.tick();
    run.soaks(0);
    run.soaks(1);
    run.pass(29);
    let until = run.now + SignedDuration::from_secs(1);
    let node = run.snapshot.tasks[0].node.clone();
    assert_eq!(run.tick().waiting_on[0], Hold::NodeSoak { node, until });
    let phase = AgentPhase::Reverting;
    run.says(1, &Progress::In { phase });
    run.pass(1);
    run.tick();
    assert_eq!(run.states(), ["CONFIRMING", "REVERTING"]);
}

#[test]
fn a_stage_soaks_before_the_next_one_opens() {
    let soak = Settings {
        stage_soak_seconds: 60,
        ..settings()
    };
    let mut run = Run::new(&[1, 1], soak);
    run.tick();
    run.moves(0);
    assert_eq!(run.stages(), [StageState::Soaking, StageState::Pending]);
    let until = run.now + SignedDuration::from_secs(60);
    assert_eq!(run.tick().waiting_on, [Hold::StageSoak { until }]);
    run.pass(59);
    assert_eq!(run.tick().commands, []);
    run.pass(1);
    run.tick();
    assert_eq!(run.stages(), [StageState::Passed, StageState::Running]);
}

/// Something that happens between two ticks.
#[derive(Clone, Debug)]
enum Event {
    Pass(i64),
    Says(usize, Progress),
    Ask(Request),
    Becomes(usize, Verdict),
    Mode(usize, ProxyMode),
    Busy(usize, bool),
}

fn progress() -> impl Strategy<Value = Progress> {
    let why = || "why".to_owned();
    let phase = prop::sample::select(vec![
        AgentPhase::Preflight,
        AgentPhase::Applying,
        AgentPhase::Verifying,
        AgentPhase::Soaking,
        AgentPhase::Reverting,
    ]);
    prop_oneof![
        4 => phase.prop_map(|phase| Progress::In { phase }),
        4 => Just(Progress::Confirmed),
        1 => Just(Progress::Reverted { why: why() }),
        1 => Just(Progress::Rejected { blockers: vec![why()] }),
        1 => Just(Progress::NeedsAttention { why: why() }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let node = 0usize..12;
    let verdict = prop::sample::select(vec![
        Verdict::Ready,
        Verdict::Ready,
        Verdict::Unknown(reason()),
        Verdict::Blocked(reason()),
    ]);
    let mode = prop::sample::select(vec![ProxyMode::IptablesNft, ProxyMode::Nftfleet]);
    let request = prop::sample::select(vec![
        Request::Start,
        Request::Pause,
        Request::Resume,
        Request::Resume,
        Request::Abort(Underway::Finish),
        Request::Abort(Underway::Revert),
    ]);
    prop_oneof![
        4 => (0i64..200).prop_map(Event::Pass),
        12 => (node.clone(), progress()).prop_map(|(n, progress)| Event::Says(n, progress)),
        1 => request.prop_map(Event::Ask),
        1 => (node.clone(), verdict).prop_map(|(n, verdict)| Event::Becomes(n, verdict)),
        1 => (node.clone(), mode).prop_map(|(n, mode)| Event::Mode(n, mode)),
        1 => (node, any::<bool>()).prop_map(|(n, busy)| Event::Busy(n, busy)),
    ]
}

impl Run {
    fn happens(&mut self, event: Event) {
        let count = self.snapshot.tasks.len();
        match event {
            Event::Pass(seconds) => self.pass(seconds),
            Event::Says(n, progress) => self.says(n % count, &progress),
            Event::Ask(request) => self.ask(request),
            Event::Becomes(n, verdict) => self.snapshot.tasks[n % count].readiness = verdict,
            Event::Mode(n, mode) => self.snapshot.tasks[n % count].mode = Some(mode),
            Event::Busy(n, busy) => self.snapshot.tasks[n % count].busy_elsewhere = busy,
        }
    }

    /// Ticks, and checks all that holds for every tick.
    fn checked_tick(&mut self) -> Result<(), TestCaseError> {
        let before = self.clone();
        let limit = self.snapshot.settings.max_failures as usize;
        let tick = self.tick();
        prop_assert_eq!(&tick, &super::tick(&before.snapshot, before.now), "deterministic");
        let under_way = self.snapshot.tasks.iter().filter(|task| task.state.is_under_way());
        prop_assert!(
            under_way.count() <= self.snapshot.settings.max_concurrent as usize,
            "the cap"
        );
        prop_assert!(self.grants.values().all(|grants| *grants == 1), "granted twice");
        let mut failures = before.failures();
        for command in &tick.commands {
            if let Command::Task(_, state) = command {
                let granted = state.name() == "OFFERED";
                prop_assert!(!granted || failures <= limit, "granted past the limit");
                failures += usize::from(state.is_failure());
            }
        }
        if self.failures() > limit {
            let goes_on = matches!(self.snapshot.state, RolloutState::Running | RolloutState::Paused);
            prop_assert!(!goes_on, "goes on past the limit");
        }
        prop_assert!(
            !before.snapshot.state.is_ended() || self.snapshot.state == before.snapshot.state,
            "no way back"
        );
        for (was, is) in before.snapshot.tasks.iter().zip(&self.snapshot.tasks) {
            prop_assert!(!was.state.is_ended() || was.state == is.state, "an ended task changed");
        }
        if self.snapshot.state.is_ended() {
            prop_assert!(
                self.snapshot.tasks.iter().all(|task| task.state != TaskState::Pending),
                "left behind"
            );
            prop_assert!(
                self.snapshot.stages.iter().all(|stage| stage.state.is_ended()),
                "left open"
            );
        } else {
            prop_assert!(!tick.waiting_on.is_empty(), "waits without saying for what");
        }
        let again = super::tick(&self.snapshot, self.now);
        prop_assert_eq!(&again.commands, &vec![], "comes to rest at once");
        // A rollout that has just moved may word its wait anew, but only once.
        prop_assert!(!tick.commands.is_empty() || again == tick);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_happens_the_limits_hold_and_every_run_ends(
        stages in prop::collection::vec(1u32..4, 1..4),
        max_concurrent in 1u32..4,
        max_failures in 0u32..4,
        node_soak_seconds in prop::sample::select(vec![0u32, 30]),
        stage_soak_seconds in prop::sample::select(vec![0u32, 60]),
        events in prop::collection::vec((event(), any::<bool>()), 0..80),
    ) {
        let settings = Settings {
            max_concurrent, max_failures, node_soak_seconds, stage_soak_seconds, ..Settings::default()
        };
        let mut run = Run::new(&stages, settings);
        run.checked_tick()?;
        for (event, ticks) in events {
            run.happens(event);
            if ticks {
                run.checked_tick()?;
            }
        }
        // From here on nobody stands in the way: every agent does what it is told, and nobody pauses.
        run.ask(Request::Resume);
        for task in &mut run.snapshot.tasks {
            task.readiness = Verdict::Ready;
            task.busy_elsewhere = false;
        }
        // Each node needs three rounds, each stage two.
        for _ in 0..60 {
            run.checked_tick()?;
            for n in 0..run.snapshot.tasks.len() {
                match run.snapshot.tasks[n].state {
                    TaskState::UnderWay { phase: Phase::Confirming, .. } => run.says(n, &Progress::Confirmed),
                    TaskState::UnderWay { phase: Phase::Reverting, .. } => run.reverts(n),
                    _ => run.soaks(n),
                }
            }
            run.pass(60);
        }
        prop_assert!(run.snapshot.state.is_ended(), "{:?} {:?}", run.snapshot.state, run.states());
        prop_assert!(run.snapshot.tasks.iter().all(|task| task.state.is_ended()), "{:?}", run.states());
    }

    #[test]
    fn silent_agents_do_not_keep_a_run_from_ending(nodes in 1u32..6, max_failures in 0u32..6) {
        let mut run = Run::new(&[nodes], Settings { max_failures, max_concurrent: 1, ..Settings::default() });
        for _ in 0..=nodes {
            run.checked_tick()?;
            run.pass(601);
        }
        run.checked_tick()?;
        prop_assert!(run.snapshot.state.is_ended());
        prop_assert!(run.snapshot.tasks.iter().all(|task| task.state.is_ended()));
    }
}
