//! The data plane over a kernel made of a value.

use std::net::IpAddr;

use super::*;
use crate::dataplane::desired::{Affinity, Frontend, List};
use crate::dataplane::layout::class_of;
use nftfleet_domain::service::Endpoint;
use proptest::prelude::*;

/// A kernel made of a value.
#[derive(Default)]
struct Paper {
    table: Option<Observed>,
    refuse: bool,
    commits: Vec<usize>,
    /// What each commit said of the table's state.
    states: Vec<Option<bool>>,
    /// The number of the commit that is refused.
    refuse_at: Option<usize>,
    stickies: BTreeSet<Sticky>,
    /// How many of the next readings leave something out.
    partial: usize,
    /// How often packets were waited for.
    waited: usize,
}

impl Kernel for Paper {
    fn stickies(&mut self) -> Result<BTreeSet<Sticky>, KernelError> {
        Ok(self.stickies.clone())
    }

    fn observe(&mut self, _: &Layout) -> Result<Option<Observed>, KernelError> {
        let mut table = self.table.clone();
        if self.partial > 0 {
            let programmed = &mut table.as_mut().unwrap().programmed;
            let slots = &mut programmed.vips.values_mut().next().unwrap().all.slots;
            slots.truncate(slots.len() - self.partial);
            self.partial -= 1;
        }
        Ok(table)
    }

    fn state(&mut self) -> Result<TableState, KernelError> {
        Ok(match &self.table {
            None => TableState::Absent,
            Some(table) if table.dormant => TableState::Dormant,
            Some(_) => TableState::Active,
        })
    }

    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<Committed, KernelError> {
        if std::mem::take(&mut self.refuse) || self.refuse_at.take_if(|at| *at == self.commits.len()).is_some() {
            return Err(KernelError::Restless);
        }
        if transaction.replace {
            self.table = None;
        }
        if transaction.make {
            let dormant = transaction.dormant.unwrap();
            self.table = Some(Observed {
                dormant,
                differences: vec![],
                stale_chains: vec![],
                programmed: Programmed::default(),
            });
        }
        let table = self.table.as_mut().unwrap();
        table
            .stale_chains
            .retain(|stale| !transaction.rewrite.iter().any(|chain| chain.name == *stale));
        let made = transaction.sets.iter().filter_map(|set| sticky_named(&set.name));
        self.stickies.extend(made);
        for set in transaction.old_sets {
            self.stickies.remove(&sticky_named(set).unwrap());
        }
        table.programmed.apply(transaction.changes.to_vec());
        table.dormant = transaction.dormant.unwrap_or(table.dormant);
        self.commits.push(transaction.changes.len());
        self.states.push(transaction.dormant);
        Ok(Committed::default())
    }

    fn wait_for_packets(&mut self) {
        self.waited += 1;
    }
}

fn sticky_named(name: &str) -> Option<Sticky> {
    let (family, which, group) = names::sticky_group(name)?;
    let Group::Sticky { timeout, class } = group else {
        return None;
    };
    Some(Sticky {
        family,
        which,
        timeout,
        class,
    })
}

fn desired(endpoints: u8) -> Desired {
    desired_with(endpoints, None)
}

fn desired_with(endpoints: u8, timeout: Option<u32>) -> Desired {
    let address = IpAddr::from([10, 96, 0, 1]);
    let vip = Vip {
        address,
        protocol: Protocol::Udp,
        port: 80,
    };
    let endpoint = |n| Endpoint {
        address: IpAddr::from([10, 128, 0, n]),
        port: 80,
    };
    let affinity = timeout.map(|timeout| Affinity {
        timeout,
        number: 7,
        siblings: [vip].into(),
    });
    let endpoints = (1..=endpoints).map(endpoint).collect();
    let frontend = Frontend {
        name: "shop/web:80".into(),
        route: None,
        all: Some(List { endpoints, affinity }),
        local: None,
        sources: None,
        serving: [].into(),
    };
    Desired {
        frontends: [(vip, frontend)].into(),
        cluster_ips: [(address, "shop/web".into())].into(),
        ..Desired::default()
    }
}

fn dataplane(kernel: Paper) -> Dataplane<Paper> {
    let settings = LayoutSettings {
        masquerade_bit: 14,
        masquerade_all: false,
    };
    Dataplane::new(kernel, settings)
}

#[test]
fn chains_for_affinity_come_when_needed_and_go_when_many_are_not() {
    let mut dataplane = dataplane(Paper::default());
    for timeout in 1..=40 {
        dataplane.load(&desired_with(3, Some(timeout)), false).unwrap();
        let used = |sticky: &Sticky| sticky.timeout == timeout && sticky.class == 3;
        assert!(dataplane.kernel.stickies.iter().any(used), "{timeout}");
        assert!(dataplane.kernel.stickies.len() <= SPARE_STICKIES + 1);
    }
    let wish = desired_with(3, Some(40));
    assert_eq!(dataplane.compare(&wish).unwrap(), Vec::<String>::new());
    assert_eq!(dataplane.load(&wish, false).unwrap(), 0);
}

/// More than is written at once if nobody sees it: three Services of 16,000 endpoints.
fn large() -> Desired {
    let mut large = desired(1);
    let (_, frontend) = large.frontends.pop_first().unwrap();
    for n in 1..=3 {
        let vip = Vip {
            address: IpAddr::from([10, 96, 0, n]),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let endpoint = |n: u16| {
            let [high, low] = n.to_be_bytes();
            Endpoint {
                address: IpAddr::from([10, 128, high, low]),
                port: 80,
            }
        };
        let list = List {
            endpoints: (0..16_000).map(endpoint).collect(),
            affinity: None,
        };
        let all = Some(list);
        large.frontends.insert(
            vip,
            Frontend {
                all,
                ..frontend.clone()
            },
        );
    }
    large
}

#[test]
fn a_large_new_table_is_filled_asleep_and_woken_when_it_is_whole() {
    let rest = 3 * 16_001 + 1 - MOST_AT_ONCE;
    for (dormant, last) in [(false, vec![0]), (true, vec![])] {
        let mut dataplane = dataplane(Paper::default());
        dataplane.load(&large(), dormant).unwrap();
        assert_eq!(
            dataplane.kernel.commits,
            [vec![MOST_AT_ONCE, rest], last.clone()].concat()
        );
        let woken = last.iter().map(|_| Some(false)).collect::<Vec<_>>();
        assert_eq!(dataplane.kernel.states, [vec![Some(true), None], woken].concat());
        assert_eq!(dataplane.known_state(), Some(state_of(dormant)));
        assert_eq!(dataplane.state().unwrap(), state_of(dormant));
        assert_eq!(dataplane.compare(&large()).unwrap(), Vec::<String>::new());
    }
}

#[test]
fn a_large_change_of_a_table_in_use_is_one_transaction() {
    let mut dataplane = dataplane(Paper::default());
    dataplane.load(&desired(1), false).unwrap();
    dataplane.load(&large(), false).unwrap();
    let largest = dataplane.kernel.commits.iter().max().unwrap();
    assert!(*largest > MOST_AT_ONCE, "{largest}");
}

#[test]
fn a_piece_that_is_refused_leaves_the_table_asleep_and_is_written_again() {
    let mut dataplane = dataplane(Paper {
        refuse_at: Some(1),
        ..Paper::default()
    });
    assert!(dataplane.load(&large(), false).is_err());
    assert_eq!(dataplane.state().unwrap(), TableState::Dormant);
    dataplane.load(&large(), false).unwrap();
    dataplane.set_dormant(false).unwrap();
    assert_eq!(dataplane.compare(&large()).unwrap(), Vec::<String>::new());
    assert_eq!(dataplane.state().unwrap(), TableState::Active);
}

#[test]
fn rules_for_a_new_group_are_there_before_a_vip_is_found_by_them_alone() {
    for (dormant, commits, waited) in [(false, 2, 1), (true, 1, 0)] {
        let mut dataplane = dataplane(Paper::default());
        dataplane.load(&desired(3), dormant).unwrap();
        dataplane.kernel.commits.clear();
        let sticky = desired_with(3, Some(10));
        assert_eq!(dataplane.follow(&sticky, &sticky.keys()).unwrap(), commits);
        assert_eq!(dataplane.kernel.commits[0] == 0, !dormant);
        assert_eq!(dataplane.kernel.waited, waited);
    }
}

#[test]
fn what_two_readings_disagree_about_is_not_believed() {
    let mut dataplane = dataplane(Paper::default());
    dataplane.load(&desired(8), false).unwrap();
    for partial in [1, 3] {
        dataplane.kernel.partial = partial;
        assert_eq!(dataplane.compare(&desired(8)).unwrap(), Vec::<String>::new());
        dataplane.forget();
        dataplane.kernel.partial = partial;
        assert_eq!(dataplane.load(&desired(7), false).unwrap(), 2);
        assert_eq!(dataplane.compare(&desired(7)).unwrap(), Vec::<String>::new());
        dataplane.load(&desired(8), false).unwrap();
    }
    dataplane.forget();
    dataplane.kernel.partial = 8;
    assert!(matches!(dataplane.compare(&desired(8)), Err(KernelError::Restless)));
}

#[test]
fn only_the_changed_keys_are_looked_at() {
    let mut dataplane = dataplane(Paper::default());
    dataplane.load(&desired(3), false).unwrap();
    dataplane.take_changed_udp();
    let mut wish = desired(3);
    wish.external_ips.insert(IpAddr::from([198, 51, 100, 1]));
    let vip = *wish.frontends.keys().next().unwrap();
    assert_eq!(dataplane.follow(&wish, &[Key::Vip(vip)].into()).unwrap(), 0);
    assert_eq!(dataplane.take_changed_udp(), [vip].into());
    let keys = [Key::ExternalIp(IpAddr::from([198, 51, 100, 1]))].into();
    assert_eq!(dataplane.follow(&wish, &keys).unwrap(), 1);
    assert_eq!(dataplane.take_changed_udp(), BTreeSet::new());
    dataplane.follow(&desired(2), &[Key::Vip(vip)].into()).unwrap();
    assert_eq!(dataplane.take_changed_udp(), [vip].into());
}

fn groups(dataplane: &Dataplane<Paper>) -> Vec<Group> {
    let table = dataplane.kernel.table.as_ref().unwrap();
    table.programmed.vips.values().next().unwrap().all.groups.clone()
}

#[test]
fn a_vip_stays_in_its_old_class_until_packets_have_gone_by() {
    let mut dataplane = dataplane(Paper::default());
    dataplane.load(&desired(3), false).unwrap();
    let keys = desired(3).keys();
    assert_eq!(dataplane.follow(&desired(5), &keys).unwrap(), 1);
    let first = dataplane.begin_grace().unwrap();
    assert_eq!(dataplane.follow(&desired(6), &keys).unwrap(), 1);
    assert_eq!(groups(&dataplane), [3, 5, 6].map(Group::Class));
    // What was changed again waits again.
    assert_eq!(dataplane.leave(&desired(6), first).unwrap(), 0);
    let second = dataplane.begin_grace().unwrap();
    assert!(!dataplane.is_settled());
    assert_eq!(dataplane.leave(&desired(6), second).unwrap(), 1);
    assert_eq!(groups(&dataplane), [Group::Class(6)]);
    assert!(dataplane.is_settled() && dataplane.begin_grace().is_none());
    assert_eq!(dataplane.kernel.waited, 0);
}

#[test]
fn a_load_waits_for_packets_of_an_active_table_alone() {
    for (dormant, waited) in [(true, 0), (false, 1)] {
        let mut dataplane = dataplane(Paper::default());
        dataplane.load(&desired(3), dormant).unwrap();
        assert_eq!(dataplane.load(&desired(5), false).unwrap(), 2);
        assert_eq!(groups(&dataplane), [Group::Class(5)]);
        assert_eq!(dataplane.kernel.waited, waited);
    }
}

#[test]
fn a_grace_period_of_a_table_that_is_gone_writes_nothing() {
    let mut dataplane = dataplane(Paper::default());
    dataplane.load(&desired(3), false).unwrap();
    dataplane.follow(&desired(5), &desired(5).keys()).unwrap();
    let grace = dataplane.begin_grace().unwrap();
    dataplane.kernel.table = None;
    dataplane.state().unwrap();
    assert_eq!(dataplane.leave(&desired(5), grace).unwrap(), 0);
    assert_eq!(dataplane.state().unwrap(), TableState::Absent);
}

proptest! {
    #[test]
    fn grace_periods_that_end_at_any_time_leave_what_is_desired(
        history in proptest::collection::vec((1u8..14, any::<bool>(), any::<bool>()), 1..30)
    ) {
        let mut dataplane = dataplane(Paper::default());
        dataplane.load(&desired(1), false).unwrap();
        let keys = desired(1).keys();
        let mut grace = None;
        let mut last = 1;
        for (endpoints, begins, ends) in history {
            last = endpoints;
            dataplane.follow(&desired(endpoints), &keys).unwrap();
            let class = Group::Class(class_of(usize::from(endpoints)).unwrap());
            prop_assert!(groups(&dataplane).contains(&class));
            if begins {
                grace = dataplane.begin_grace().or(grace);
            }
            if ends && let Some(grace) = grace.take() {
                dataplane.leave(&desired(endpoints), grace).unwrap();
            }
        }
        if let Some(grace) = grace {
            dataplane.leave(&desired(last), grace).unwrap();
        }
        if let Some(grace) = dataplane.begin_grace() {
            dataplane.leave(&desired(last), grace).unwrap();
        }
        let class = Group::Class(class_of(usize::from(last)).unwrap());
        prop_assert_eq!(groups(&dataplane), [class]);
        prop_assert_eq!(dataplane.kernel.waited, 0);
        prop_assert_eq!(dataplane.compare(&desired(last)).unwrap(), Vec::<String>::new());
    }
}

#[test]
fn a_restart_writes_only_the_difference_and_keeps_the_table_active() {
    let mut first = dataplane(Paper::default());
    first.load(&desired(3), true).unwrap();
    first.set_dormant(false).unwrap();
    let mut second = dataplane(Paper {
        table: first.kernel.table,
        ..Paper::default()
    });
    second.load(&desired(3), true).unwrap();
    assert_eq!(second.kernel.commits, Vec::<usize>::new());
    assert_eq!(second.state().unwrap(), TableState::Active);
}

#[test]
fn a_refused_commit_is_read_anew() {
    let mut dataplane = dataplane(Paper::default());
    dataplane.load(&desired(3), true).unwrap();
    dataplane.kernel.refuse = true;
    assert!(dataplane.load(&desired(4), true).is_err());
    dataplane.load(&desired(4), true).unwrap();
    assert_eq!(dataplane.compare(&desired(4)).unwrap(), Vec::<String>::new());
}

#[test]
fn a_foreign_change_is_found_by_comparing() {
    let mut dataplane = dataplane(Paper::default());
    dataplane.load(&desired(3), true).unwrap();
    dataplane.kernel.table.as_mut().unwrap().programmed.cluster_ips.clear();
    assert_eq!(dataplane.compare(&desired(3)).unwrap().len(), 1);
}

#[test]
fn a_table_that_somebody_deleted_is_made_again() {
    let mut dataplane = dataplane(Paper::default());
    dataplane.load(&desired(3), true).unwrap();
    dataplane.kernel.table = None;
    assert_eq!(dataplane.state().unwrap(), TableState::Absent);
    dataplane.load(&desired(3), false).unwrap();
    assert_eq!(dataplane.state().unwrap(), TableState::Active);
    assert_eq!(dataplane.compare(&desired(3)).unwrap(), Vec::<String>::new());
}

#[test]
fn rules_that_somebody_changed_are_written_anew_and_nothing_else() {
    let mut dataplane = dataplane(Paper::default());
    dataplane.load(&desired(3), false).unwrap();
    dataplane.kernel.table.as_mut().unwrap().stale_chains = vec!["pick4".to_owned()];
    assert_eq!(
        dataplane.compare(&desired(3)).unwrap(),
        ["the rules of chain pick4 differ"]
    );
    assert_eq!(dataplane.load(&desired(3), false).unwrap(), 1);
    assert_eq!(dataplane.kernel.commits.last(), Some(&0));
    assert_eq!(dataplane.compare(&desired(3)).unwrap(), Vec::<String>::new());
}

#[test]
fn a_table_of_another_make_is_replaced_in_its_state() {
    let foreign = Observed {
        dormant: false,
        differences: vec!["set x".to_owned()],
        stale_chains: vec![],
        programmed: Programmed::default(),
    };
    let mut dataplane = dataplane(Paper {
        table: Some(foreign),
        ..Paper::default()
    });
    dataplane.load(&desired(1), true).unwrap();
    assert_eq!(dataplane.state().unwrap(), TableState::Active);
    assert_eq!(dataplane.compare(&desired(1)).unwrap(), Vec::<String>::new());
}
