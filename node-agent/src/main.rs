//! `nftfleet-agent`: makes the outside world and wires the parts together.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nftfleet_agent::clock::Clock;
use nftfleet_agent::config::{Config, ExplainArguments, GuardArguments, Question, Task};
use nftfleet_agent::control::Client;
use nftfleet_agent::control::session::{Identity, Link, Session};
use nftfleet_agent::dataplane::actor::Surroundings;
use nftfleet_agent::dataplane::explain;
use nftfleet_agent::dataplane::netlink::conntrack::Conntrack;
use nftfleet_agent::dataplane::netlink::wait_for_packets;
use nftfleet_agent::dataplane::{Actor, Dataplane, LayoutSettings, Listener, Netlink, flows};
use nftfleet_agent::disk;
use nftfleet_agent::facts::Paths;
use nftfleet_agent::guard::client::Client as GuardClient;
use nftfleet_agent::guard::lines::Lines;
use nftfleet_agent::guard::{self, Guard};
use nftfleet_agent::health::{self, HealthInput};
use nftfleet_agent::host::{Host, ThisHost};
use nftfleet_agent::kube::kube_proxy::KubeProxy;
use nftfleet_agent::kube::watch::{Asked, Hearers};
use nftfleet_agent::kube::{Index, IndexSettings, LocalTraffic, Services, watch as kube_watch};
use nftfleet_agent::local::serve::{Desk, Known};
use nftfleet_agent::local::{self, ask, protocol};
use nftfleet_agent::memory;
use nftfleet_agent::node_addresses;
use nftfleet_agent::switchover::run::{Switchover, ledger_of, read_ledger};
use nftfleet_agent::switchover::steps::Tools;
use nftfleet_agent::telemetry::{self, Telemetry};
use nftfleet_domain::inventory::TableState;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// The machine's clock.
struct WallClock;

impl Clock for WallClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one real clock of the agent")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

fn main() -> ExitCode {
    match Task::try_parse_from(std::env::args_os()) {
        Ok(Task::Run(config)) => run_agent(*config),
        Ok(Task::Answer(question)) => match answer(&question) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => error.exit(),
    }
}

fn answer(question: &Question) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match question {
        Question::Explain(asked) => explain_packet(asked).map(|()| ExitCode::SUCCESS),
        Question::Guard(asked) => be_or_ask_guard(asked).map(|()| ExitCode::SUCCESS),
        Question::Status(asked) => {
            let (status, by_agent) = ask::look(&asked.state_dir)?;
            if asked.json {
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                println!("{}", ask::describe(&status));
                if !by_agent {
                    println!("  no agent runs here: this is what the ledger and the kernel say");
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Question::Switch(asked) => {
            let order = protocol::Question::Switch {
                task: new_task(),
                hold_seconds: asked.hold_seconds,
                probe: asked.probe.clone(),
            };
            ask::order(&asked.state_dir, &order)?;
            if asked.no_wait {
                return Ok(ExitCode::SUCCESS);
            }
            tell_until_rest(&asked.state_dir, |end| end.moved && end.end.is_none())
        }
        Question::Rollback(asked) => {
            let is_served = ask::look(&asked.state_dir)?.1;
            ask::order(&asked.state_dir, &protocol::Question::Rollback { now: asked.now })?;
            if asked.no_wait || !is_served {
                return Ok(ExitCode::SUCCESS);
            }
            tell_until_rest(&asked.state_dir, |end| end.end.as_deref() == Some("reverted"))
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a person's order gets its number here")]
fn new_task() -> Uuid {
    Uuid::new_v4()
}

/// Tells of every step until nothing is under way. The status says whether it ended as it was wanted.
fn tell_until_rest(
    state_dir: &Path,
    is_wanted: impl Fn(&protocol::Status) -> bool,
) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let end = ask::follow(state_dir, |status| println!("{}", ask::describe(status)))?;
    Ok(if is_wanted(&end) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The program that runs here, also when its file was replaced or removed meanwhile.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Guards, or asks the guard of this network namespace. Without a runtime: a guard is one thread.
fn be_or_ask_guard(asked: &GuardArguments) -> Result<(), Box<dyn std::error::Error>> {
    let client = GuardClient::new(THIS_PROGRAM.into());
    if let Some(attempt) = &asked.disarm {
        return Ok(client.disarm(attempt)?);
    }
    if asked.query {
        let state = client.query()?.ok_or("no guard listens in this network namespace")?;
        let text = serde_json::to_string(&state)? + "\n";
        return Ok(std::io::stdout().write_all(text.as_bytes())?);
    }
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter(log_filter())
        .with_writer(|| Lines)
        .init();
    memory::give_back();
    Ok(guard::process::run(asked.spawned)?)
}

fn log_filter() -> tracing_subscriber::EnvFilter {
    tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"))
}

/// Explains what would become of a packet, from what the kernel holds now.
fn explain_packet(asked: &ExplainArguments) -> Result<(), Box<dyn std::error::Error>> {
    let packet = asked.packet()?;
    let snapshot = Netlink::open()?.snapshot(&packet, node_addresses::list()?)?;
    let explanation = explain::explain(&snapshot, &packet);
    let text = if asked.json {
        serde_json::to_string_pretty(&explanation)? + "\n"
    } else {
        explanation.to_string()
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn run_agent(config: Config) -> ExitCode {
    tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(log_filter())
        .with_writer(std::io::stderr)
        .init();
    memory::give_back();
    // One worker is enough for a node's agent, and keeps its memory small.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let done = runtime
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(run(config)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| "another TLS provider is installed already")?;
    let local_traffic = config.local_traffic()?;
    // Two agents on one node would pull its table to and fro.
    let _only_one = disk::lock(&config.state_dir.join("lock"))?;
    // A kernel that can't be spoken to ends the start. Nothing else may: a node under way must go on, or go back, and a node that
    // has moved needs its table in step whatever the ledger is worth.
    let ledger = ledger_of(&config.state_dir);
    let position = read_ledger(&ledger);
    let clock: Arc<dyn Clock> = Arc::new(WallClock);
    let telemetry = Arc::new(Telemetry::default());
    let dataplane = start_dataplane(config.layout(), &clock, &telemetry)?;
    let Watching { services, asked, tasks } = watch_kubernetes(&config, local_traffic, &dataplane, &clock, &telemetry);
    let [watching, watching_addresses] = tasks;
    let (publish_health, health) = watch::channel(HealthInput::default());
    let serving_health = tokio::spawn(health::serve(
        health,
        Some(config.healthz_listen),
        Arc::clone(&clock),
        Arc::clone(&telemetry),
    ));
    let telling_health = tokio::spawn(tell_health(dataplane.clone(), asked, publish_health));

    let link = Arc::new(Link::default());
    let host: Arc<dyn Host> = Arc::new(ThisHost);
    let paths = Paths {
        os_release: config.os_release,
        cni: config.cni_dir,
        kube_proxy: config.kube_proxy_metrics,
    };
    let order = Arc::new(watch::channel(None).0);
    let (publish_known, known) = watch::channel(Known::default());
    let desk = Desk {
        order: Arc::clone(&order),
        known,
        dataplane: dataplane.clone(),
    };
    let switchover = Switchover {
        tools: Tools {
            dataplane: dataplane.clone(),
            guard: Guard::new(THIS_PROGRAM.into()),
            services,
            host: Arc::clone(&host),
            paths: paths.clone(),
            clock: Arc::clone(&clock),
            kube_proxy: config.kube_proxy_label.map(|label| KubeProxy {
                kubeconfig: config.kubeconfig,
                node: config.node.to_string(),
                label,
            }),
            stand_by: Duration::from_secs(config.stand_by_seconds.into()),
            ipvs_drain: Duration::from_secs(config.ipvs_drain_seconds.into()),
            settling: Arc::default(),
            snapshots: config.state_dir.join("snapshots"),
            waiting_for: Arc::default(),
        },
        link: Arc::clone(&link),
        order,
        known: publish_known,
        ledger,
        rehearsal: config.rehearse,
    };
    let session = match config.server {
        None => None,
        Some(server) => {
            let identity = Identity {
                node: config.node,
                token_file: config.enrolment_token_file,
                credential_file: config.state_dir.join("credential.json"),
            };
            Some(Session::new(Client::new(server)?, identity, link))
        }
    };
    let metrics = telemetry::serve(config.metrics_listen, Arc::clone(&telemetry), dataplane.clone());
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    // None of these ends by itself. Whichever does, the process ends with it and is started anew; the kernel goes on.
    tokio::select! {
        () = switchover.run(position) => Err("the switchover ended".into()),
        ended = converse(session, host, paths, clock) => Err(ended.into()),
        () = local::serve::serve(&config.state_dir, desk) => Err("the agent's socket ended".into()),
        _ = watching => Err("the watch of the Kubernetes API ended".into()),
        _ = watching_addresses => Err("the watch of the node's addresses ended".into()),
        _ = telling_health => Err("telling the state for health checks ended".into()),
        _ = serving_health => Err("the health checks ended".into()),
        () = dataplane.ended() => Err("the data plane's thread ended".into()),
        () = metrics => Err("the metrics ended".into()),
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

/// The conversation with the server, if there is one; says what ended, which nothing of it does by itself.
async fn converse(session: Option<Session>, host: Arc<dyn Host>, paths: Paths, clock: Arc<dyn Clock>) -> &'static str {
    match session {
        None => std::future::pending().await,
        Some(session) => tokio::select! {
            () = session.poll() => "the assignments ended",
            () = session.tell() => "the progress ended",
            () = session.report(host, paths, clock) => "the reports ended",
        },
    }
}

/// What is seen of Kubernetes and of the node's addresses.
struct Watching {
    services: Services,
    asked: watch::Receiver<Asked>,
    /// They end with the process.
    tasks: [JoinHandle<()>; 2],
}

/// Starts to watch the Kubernetes API and the node's addresses, and to tell the data plane of what they mean.
fn watch_kubernetes(
    config: &Config,
    local_traffic: LocalTraffic,
    dataplane: &Actor,
    clock: &Arc<dyn Clock>,
    telemetry: &Arc<Telemetry>,
) -> Watching {
    let services = Services::new(Index::new(IndexSettings {
        node: config.node.clone(),
        nodeport_addresses: config.nodeport_addresses.clone(),
        local_traffic,
    }));
    let (publish_addresses, addresses) = watch::channel(BTreeSet::new());
    let watching_addresses = tokio::spawn(node_addresses::watch(publish_addresses));
    let (publish_asked, asked) = watch::channel(Asked::default());
    let hearers = Hearers {
        updates: {
            let dataplane = dataplane.clone();
            move |update| {
                if let Err(error) = dataplane.update(update) {
                    tracing::error!(%error, "a change is lost");
                }
            }
        },
        asked: publish_asked,
        telemetry: Arc::clone(telemetry),
        clock: Arc::clone(clock),
    };
    let (kubeconfig, node) = (config.kubeconfig.clone(), config.node.to_string());
    let watching = kube_watch::run(kubeconfig, node, services.clone(), addresses, hearers);
    Watching {
        services,
        asked,
        tasks: [tokio::spawn(watching), watching_addresses],
    }
}

/// Starts the data plane's thread, the one that hears of foreign changes and the one that cuts off flows of UDP.
fn start_dataplane(
    layout: LayoutSettings,
    clock: &Arc<dyn Clock>,
    telemetry: &Arc<Telemetry>,
) -> Result<Actor, Box<dyn std::error::Error>> {
    let mut kernel = Netlink::open()?;
    let mut listener = Listener::open(&mut kernel)?;
    let flows = flows::start(Conntrack::open()?, {
        let telemetry = Arc::clone(telemetry);
        move |took, cut| telemetry.flows(took, cut)
    })?;
    let surroundings = Surroundings {
        clock: Arc::clone(clock),
        flows: Box::new(move |changed| {
            if flows.send(changed).is_err() {
                tracing::error!("the thread that cuts off flows has ended");
            }
        }),
        wait_for_packets: Box::new(wait_for_packets),
        rounds: {
            let (telemetry, clock) = (Arc::clone(telemetry), Arc::clone(clock));
            Box::new(move |round| telemetry.round(clock.now(), &round))
        },
    };
    let dataplane = Actor::start(Dataplane::new(kernel, layout), surroundings)?;
    let told = dataplane.clone();
    let listening = std::thread::Builder::new().name("listener".to_owned());
    listening.spawn(move || {
        loop {
            if let Err(error) = listener.foreign_edit() {
                // Without it foreign changes are found by the audit alone.
                tracing::error!(%error, "changes of the ruleset can't be heard any more");
                return;
            }
            if told.foreign_edit().is_err() {
                return;
            }
        }
    })?;
    Ok(dataplane)
}

/// Keeps what health checks are answered from in step with the data plane and the Services.
async fn tell_health(dataplane: Actor, mut asked: watch::Receiver<Asked>, health: watch::Sender<HealthInput>) {
    let mut status = dataplane.watch();
    loop {
        let (state, wanted) = (status.borrow_and_update().clone(), asked.borrow_and_update().clone());
        let input = HealthInput {
            active: state.table == TableState::Active,
            listen: wanted.nodeport_ips.into_iter().collect(),
            checks: wanted.health_checks,
            node_eligible: wanted.eligible,
            last_synced: state.synced,
            pending_since: state.pending,
        };
        health.send_if_modified(|known| {
            let changed = *known != input;
            if changed {
                *known = input;
            }
            changed
        });
        let more = tokio::select! {
            more = status.changed() => more,
            more = asked.changed() => more,
        };
        if more.is_err() {
            return;
        }
    }
}
