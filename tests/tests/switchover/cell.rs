//! One cell of the matrix: a node, a load, a move, and what became of it.

use std::collections::BTreeMap;
use std::time::Duration;

use nftfleet_tests::kube_proxy::{Family, Mode, has_ipvs_link, virtual_service_list};
use nftfleet_tests::load::LoadFromEverywhere;
use nftfleet_tests::manifests::{AddressType, Readiness, SERVICE_PROXY, endpoint_slice, service};
use nftfleet_tests::rulesets::without_table;
use nftfleet_tests::standalone::{NodeStart, Standalone};
use nftfleet_tests::wait;

use crate::report::{Counted, Passed};
use crate::situation::Situation;

/// Far above what any step takes on a busy machine, and above the dead-man's switch.
const LIMIT: Duration = Duration::from_mins(3);

/// New connections a second, from each of three places in each family.
const RATE: u32 = 20;

/// The seconds for which a probe must pass.
const HOLD: &str = "1";

/// Which rules must serve the node in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Ours alone: nothing of kube-proxy's is left, and everything of others.
    Ours,
    /// kube-proxy's; our table sleeps or is gone.
    Theirs,
}

/// A node under way.
struct Cell {
    mode: Mode,
    world: Standalone,
    loads: BTreeMap<Family, LoadFromEverywhere>,
}

/// Runs the cell; panics with what was not as it must be.
pub fn run(mode: Mode, situation: Situation) -> Passed {
    let world = Standalone::new(&[NodeStart { mode, ipv6: true }]);
    let node = world.node(1);
    let load = |family: Family| (family, LoadFromEverywhere::start_in(node, &[family], RATE));
    let loads = Family::BOTH.into_iter().map(load).collect();
    let mut cell = Cell { mode, world, loads };
    let end = cell.live_through(situation);
    cell.must_be(end);
    // What goes wrong late must be seen too.
    for load in cell.loads.values() {
        load.wait_for_more(20);
    }
    let counted = cell
        .loads
        .into_iter()
        .map(|(family, load)| (family, count(load, mode, situation)));
    Passed {
        counted: counted.collect(),
        state: match end {
            End::Ours => "nftfleet",
            End::Theirs => "kube-proxy",
        },
    }
}

/// While somebody deletes the table, a packet on its way through it may be refused: docs/decisions/0015.
const REFUSED_BY_A_DELETION: u64 = 2;

fn count(load: LoadFromEverywhere, from: Mode, situation: Situation) -> Counted {
    let mut counted = Counted::default();
    for (place, mut outcome) in load.stop() {
        if from == Mode::Ipvs && place == "node" {
            // The node's own connections come from a Service's address, which goes with kube-ipvs0: they are waited for, but not
            // for ever. New ones count.
            outcome.tcp.assert_no_loss();
            outcome.udp.assert_no_loss();
            outcome.held.clear();
            let (made, failed) = outcome.totals();
            counted.made += made;
            counted.failed += failed;
            continue;
        }
        let (made, failed) = outcome.totals();
        let who = format!("{}, from the {place}", situation.name());
        let failures = outcome.tcp.failures.iter().chain(&outcome.udp.failures);
        let all_refused = failures.clone().all(|failure| failure.error.contains("refused"));
        if situation == Situation::TableDeleted && failed > 0 && all_refused {
            assert!(
                failed <= REFUSED_BY_A_DELETION,
                "{who}: {:#?}",
                failures.collect::<Vec<_>>()
            );
            assert!(outcome.all_alive(), "{who} lost a connection: {:?}", outcome.held);
        } else {
            outcome.assert_no_loss(&who);
        }
        counted.made += made;
        counted.failed += failed;
        counted.held += outcome.held.len();
        counted.lost += outcome.held.iter().filter(|held| !held.alive).count();
    }
    counted
}

impl Cell {
    fn start_agent(&mut self, environment: &[(&str, &str)], more: &[&str]) {
        let mut arguments = self.world.agent_arguments(1);
        let (key, value) = SERVICE_PROXY;
        arguments.extend(["--kube-proxy-label".to_owned(), format!("{key}={value}")]);
        arguments.extend(["--stand-by-seconds", "1", "--ipvs-drain-seconds", "5"].map(str::to_owned));
        arguments.extend(more.iter().map(|text| (*text).to_owned()));
        self.world.start_agent_with(1, &arguments, environment);
        self.wait_for_agent();
    }

    /// Until it can be spoken to.
    fn wait_for_agent(&self) {
        let socket = self.world.state_folder(1).join("agent.sock");
        wait::until_blocking("the agent's socket", LIMIT, || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(())
        });
    }

    /// A person's `switch`; gives whether it ended as wanted.
    fn switch(&self, more: &[&str]) -> bool {
        let probe = [
            "--probe",
            "default/kubernetes:443",
            "--probe",
            "shop/web:80",
            "--hold-seconds",
            HOLD,
        ];
        let ran = self
            .world
            .command_on_state(1, "switch", &[&probe, more].concat(), LIMIT);
        eprintln!("switch {more:?}: {:?}\n{}{}", ran.code, ran.stdout, ran.stderr);
        ran.code == Some(0)
    }

    fn rollback(&self, more: &[&str]) -> bool {
        let ran = self.world.command_on_state(1, "rollback", more, LIMIT);
        eprintln!("rollback {more:?}: {:?}\n{}{}", ran.code, ran.stdout, ran.stderr);
        ran.code == Some(0)
    }

    fn begin(&self) {
        assert!(self.switch(&["--no-wait"]), "the order was taken");
    }

    fn wait_for(&self, position: &str) {
        self.world.wait_for_position(1, &[position], LIMIT);
    }

    fn live_through(&mut self, situation: Situation) -> End {
        match situation {
            Situation::Complete => self.complete(),
            Situation::RollbackAt(step) => self.rollback_at(step),
            Situation::RollbackAloneAt(step) => self.rollback_alone_at(step),
            Situation::RollbackWhenMoved => self.rollback_when_moved(),
            Situation::RollbackAtOnce => self.rollback_at_once(),
            Situation::KilledAt(step, point) => self.killed_at(step, point),
            Situation::KilledOnTheWayBack(step, point) => self.killed_on_the_way_back(step, point),
            Situation::KilledForGood => self.killed_for_good(),
            Situation::ServerGone => self.server_gone(),
            Situation::ApiGone => self.api_gone(),
            Situation::DiskFull => self.disk_full(),
            Situation::DiskFullInTheSoak => self.disk_full_in_the_soak(),
            Situation::ProbeFailing => self.probe_failing(),
            Situation::TableDeleted => self.table_deleted(),
            Situation::TableFlushed => self.table_flushed(),
            Situation::KubeProxyStays => self.kube_proxy_stays(),
        }
    }

    fn complete(&mut self) -> End {
        self.start_agent(&[], &[]);
        assert!(self.switch(&[]));
        End::Ours
    }

    fn rollback_at(&mut self, step: &str) -> End {
        let drill = format!("{step}:hold");
        self.start_agent(&[("NFTFLEET_REHEARSE", &drill)], &[]);
        self.begin();
        self.wait_for(step);
        assert!(self.rollback(&[]));
        End::Theirs
    }

    fn rollback_alone_at(&mut self, step: &str) -> End {
        let drill = format!("{step}:after");
        self.start_agent(&[("NFTFLEET_REHEARSE", &drill)], &[]);
        self.begin();
        self.world.agent(1).wait_until_ended(LIMIT);
        assert!(self.rollback(&[]));
        assert_eq!(self.world.ledger(1).as_deref(), Some("ended"));
        // An agent that comes later leaves it so.
        self.start_agent(&[], &[]);
        End::Theirs
    }

    fn rollback_when_moved(&mut self) -> End {
        self.start_agent(&[], &[]);
        assert!(self.switch(&[]));
        assert!(self.rollback(&[]));
        End::Theirs
    }

    fn rollback_at_once(&mut self) -> End {
        self.start_agent(&[], &[]);
        // kube-proxy's rules are there still: what --now must not wait for is its return.
        self.world.kube_proxy(1).stuck(true);
        self.begin();
        self.wait_for("parking");
        self.world.kube_proxy(1).stuck(false);
        assert!(self.rollback(&["--now"]));
        End::Theirs
    }

    fn killed_at(&mut self, step: &str, point: &str) -> End {
        let drill = format!("{step}:{point}");
        self.start_agent(&[("NFTFLEET_REHEARSE", &drill)], &[]);
        self.begin();
        self.world.agent(1).wait_until_ended(LIMIT);
        self.start_agent(&[], &[]);
        self.wait_for("moved");
        End::Ours
    }

    fn killed_on_the_way_back(&mut self, step: &str, point: &str) -> End {
        let drill = format!("{step}:{point}");
        self.start_agent(&[("NFTFLEET_REHEARSE", &drill)], &[]);
        assert!(self.switch(&[]));
        // It may be dead before it has answered.
        self.rollback(&["--no-wait"]);
        self.world.agent(1).wait_until_ended(LIMIT);
        self.start_agent(&[], &[]);
        self.wait_for("ended");
        End::Theirs
    }

    fn killed_for_good(&mut self) -> End {
        self.start_agent(&[("NFTFLEET_REHEARSE", "soaking:before")], &[]);
        self.begin();
        self.world.agent(1).wait_until_ended(LIMIT);
        assert!(self.is_active(), "the agent died after the flip");
        wait::until_blocking("the guard to put the table to sleep", LIMIT, || {
            (!self.is_active()).then_some(())
        });
        End::Theirs
    }

    fn server_gone(&mut self) -> End {
        self.start_agent(&[], &["--server", "http://192.168.50.250:9"]);
        assert!(self.switch(&[]));
        End::Ours
    }

    fn api_gone(&mut self) -> End {
        self.start_agent(&[], &[]);
        self.begin();
        self.wait_for("soaking");
        self.world.refuse_api(true);
        self.wait_for("parking");
        for load in self.loads.values() {
            load.wait_for_more(20);
        }
        assert_eq!(self.world.ledger(1).as_deref(), Some("parking"));
        self.world.refuse_api(false);
        self.wait_for("moved");
        End::Ours
    }

    fn disk_full(&mut self) -> End {
        self.start_agent(&[], &[]);
        self.world.disk(1).fill();
        assert!(!self.switch(&[]));
        self.world.disk(1).free();
        End::Theirs
    }

    fn disk_full_in_the_soak(&mut self) -> End {
        self.start_agent(&[], &[]);
        self.begin();
        self.wait_for("soaking");
        self.world.disk(1).fill();
        for load in self.loads.values() {
            load.wait_for_more(40);
        }
        assert_eq!(
            self.world.ledger(1).as_deref(),
            Some("soaking"),
            "no old rule goes unkept"
        );
        self.world.disk(1).free();
        self.wait_for("moved");
        End::Ours
    }

    fn probe_failing(&mut self) -> End {
        // Of a Service that no client of the load asks: nothing else may fail.
        let probed = service("shop", "probed")
            .cluster_ips(["10.96.77.7"])
            .port("", "TCP", 80, 8080);
        self.world.kubernetes.apply(probed.object());
        let slice = endpoint_slice("shop", "probed", "a", AddressType::IPv4)
            .port("", "TCP", 8080)
            .endpoint("10.128.200.2", "worker-2", Readiness::READY);
        self.world.kubernetes.apply(slice.object());
        self.world.kube_proxy(1).wait_until_in_sync();
        let environment = self.world.break_probe(1, [10, 96, 77, 7].into());
        self.start_agent(&environment, &[]);
        assert!(!self.switch(&["--probe", "shop/probed:80"]));
        let said = self.world.command_on_state(1, "status", &[], LIMIT).stdout;
        assert!(said.contains("the probe failed: 10.96.77.7:80"), "{said}");
        End::Theirs
    }

    fn table_deleted(&mut self) -> End {
        self.start_agent(&[], &[]);
        self.begin_and_stay();
        self.world.delete_table(1);
        self.wait_for("ended");
        End::Theirs
    }

    fn table_flushed(&mut self) -> End {
        self.start_agent(&[], &[]);
        self.begin_and_stay();
        self.world.flush_table(1);
        for load in self.loads.values() {
            load.wait_for_more(40);
        }
        self.wait_for("moved");
        End::Ours
    }

    fn kube_proxy_stays(&mut self) -> End {
        self.world.kube_proxy(1).stuck(true);
        self.start_agent(&[], &[]);
        self.begin();
        self.wait_for("parking");
        for load in self.loads.values() {
            load.wait_for_more(40);
        }
        assert_eq!(
            self.world.ledger(1).as_deref(),
            Some("parking"),
            "no rule of a kube-proxy that runs goes"
        );
        assert!(self.rollback(&[]));
        End::Theirs
    }

    /// Begins a move whose soak lasts some seconds.
    fn begin_and_stay(&self) {
        let probe = ["--probe", "shop/web:80", "--hold-seconds", "6", "--no-wait"];
        let ran = self.world.command_on_state(1, "switch", &probe, LIMIT);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        self.wait_for("soaking");
    }

    fn is_active(&self) -> bool {
        let tables = self.world.node(1).netns.pipe("nft", &["list", "tables", "inet"], "");
        let listed = |flags: &str| {
            let table = self
                .world
                .node(1)
                .netns
                .pipe("nft", &["list", "table", "inet", "nftfleet"], "");
            table.contains(flags)
        };
        tables.contains("nftfleet") && !listed("flags dormant")
    }

    /// What the kernel, kube-proxy and the ledger must be like in the end.
    fn must_be(&self, end: End) {
        let kube_proxy = self.world.kube_proxy(1);
        let netns = &self.world.node(1).netns;
        match end {
            End::Ours => {
                assert_eq!(self.world.ledger(1).as_deref(), Some("moved"));
                assert!(self.is_active());
                assert!(!kube_proxy.is_running());
                let left = without_table(&self.world.rulesets(1), "inet nftfleet");
                // Idle connections that were handed over from IPVS are remembered until they are picked up.
                let left = without_table(&left, "inet nftfleet-handover");
                if self.mode == Mode::Ipvs {
                    assert!(!has_ipvs_link(netns));
                    assert_eq!(virtual_service_list(netns), Vec::<String>::new());
                    assert!(!netns.pipe("ipset", &["list", "-n"], "").contains("KUBE-"));
                }
                assert_eq!(
                    left,
                    self.world.rules_of_others(1),
                    "rules of others, and nothing of kube-proxy's"
                );
            }
            End::Theirs => {
                assert!(!self.is_active());
                kube_proxy.wait_until_running();
                kube_proxy.wait_until_in_sync();
            }
        }
    }
}
