//! How long a shape takes to be written, whole and change by change.

use std::time::{Duration, Instant};

use nftfleet_agent::dataplane::Dataplane;
use nftfleet_tests::netns::{Netns, Prefix};

use crate::cluster::{Change, Cluster, Delta, Size, reversed};
use crate::measure::{child, kernel_kib, own_peak_kib, run, settled_kernel_kib};
use crate::plan::Plan;
use crate::results::{Column, Results};
use crate::sample::Sample;
use crate::shapes::engine::{Meter, Metered, SETTINGS, desired, netlink, update};
use crate::shapes::{Shape, Writer};

/// Measures every cell of the plan.
pub fn measure(plan: &Plan, results: &mut Results) {
    for (size, shapes) in &plan.programming {
        for shape in shapes {
            eprintln!("programming: {size}, {}", shape.name());
            match shape.writer() {
                Some(writer) => text(plan, *size, *shape, writer, results),
                None => engine(plan, *size, results),
            }
        }
    }
}

/// Repeats until there are as many measurements as planned, or they are slow and the budget is spent.
fn repeat(plan: &Plan, runs: usize, mut once: impl FnMut(u32, &mut Sample)) -> Sample {
    let mut sample = Sample::default();
    let started = Instant::now();
    for round in 0.. {
        once(round, &mut sample);
        let is_slow = sample.median() > Some(plan.slow.as_secs_f64());
        if sample.runs() >= runs || (is_slow && started.elapsed() > plan.budget) {
            break;
        }
    }
    sample
}

fn fresh() -> Netns {
    Netns::create(&Prefix::unique(), "load")
}

/// A shape that is written as text.
fn text(plan: &Plan, size: Size, shape: Shape, mut writer: Box<dyn Writer>, results: &mut Results) {
    let mut cluster = Cluster::new(size);
    let whole = writer.whole(&cluster);
    let (mut kernel, mut loader) = (Sample::default(), Sample::default());
    let mut netns = None;
    let full = repeat(plan, plan.runs, |_, sample| {
        drop(netns.take());
        let namespace = fresh();
        let before = settled_kernel_kib();
        let run = run(&namespace, writer.loader(), &whole);
        kernel.push(kernel_kib() - before);
        loader.push(run.peak_kib);
        sample.push(run.seconds);
        netns = Some(namespace);
    });
    let netns = netns.expect("at least one run");
    let cells = results.cells.entry((size, shape)).or_default();
    cells.insert(Column::FullLoad, full);
    cells.insert(Column::KernelMemory, kernel);
    cells.insert(Column::LoaderMemory, loader);
    if let Some(listing) = writer.listing() {
        let list = |_, sample: &mut Sample| sample.push(run(&netns, listing, "").seconds);
        cells.insert(Column::Listing, repeat(plan, plan.runs, list));
    }
    for change in Change::ALL {
        let mut write = |cluster: &mut Cluster, deltas: &[Delta]| -> f64 {
            cluster.apply(deltas);
            let transactions = writer.change(cluster, deltas);
            let loader = writer.loader();
            transactions.iter().map(|text| run(&netns, loader, text).seconds).sum()
        };
        let sample = repeat(plan, plan.runs, |round, sample| {
            let deltas = cluster.change(change, round);
            sample.push(write(&mut cluster, &deltas));
            write(&mut cluster, &reversed(&deltas));
        });
        cells.insert(Column::Change(change), sample);
    }
}

/// Our engine, as the agent calls it.
fn engine(plan: &Plan, size: Size, results: &mut Results) {
    let mut cluster = Cluster::new(size);
    let mut wanted = desired(&cluster);
    let mut shares = crate::results::Shares::default();
    let mut kernel_memory = Sample::default();
    let mut held: Option<(Netns, Dataplane<Metered>, Meter)> = None;
    let full = repeat(plan, plan.runs, |_, sample| {
        drop(held.take());
        let namespace = fresh();
        let (kernel, meter) = Metered::new(&namespace);
        let before = settled_kernel_kib();
        let started = Instant::now();
        let mut dataplane = Dataplane::new(kernel, SETTINGS);
        dataplane
            .load(&wanted, false)
            .expect("an empty namespace takes our table");
        let whole = started.elapsed();
        kernel_memory.push(kernel_kib() - before);
        let spent = meter.take();
        shares.elements = spent.elements;
        shares.whole.push_time(whole);
        shares.commit.push_time(spent.wall);
        shares.kernel.push_time(spent.kernel);
        sample.push_time(whole);
        held = Some((namespace, dataplane, meter));
    });
    let (netns, mut dataplane, _) = held.expect("at least one run");
    let restart = |_, sample: &mut Sample| {
        let kernel = netlink(&netns);
        let started = Instant::now();
        let mut again = Dataplane::new(kernel, SETTINGS);
        let commits = again.load(&wanted, false).expect("our own table is read");
        sample.push_time(started.elapsed());
        assert_eq!(commits, 0, "nothing had changed");
    };
    let restart = (size.services * size.endpoints <= plan.restart_endpoints).then(|| repeat(plan, plan.runs, restart));
    results.shares.insert(size, shares);
    let cells = results.cells.entry((size, Shape::Engine)).or_default();
    cells.insert(Column::FullLoad, full);
    cells.extend(restart.map(|restart| (Column::Restart, restart)));
    cells.insert(Column::KernelMemory, kernel_memory);
    for change in Change::ALL {
        let mut follow = |cluster: &mut Cluster, deltas: &[Delta]| -> Duration {
            cluster.apply(deltas);
            let update = update(deltas);
            let started = Instant::now();
            let keys = wanted.apply(update);
            dataplane.follow(&wanted, &keys).expect("the kernel takes a change");
            started.elapsed()
        };
        let runs = match change {
            Change::OneEndpoint | Change::ServiceAdded | Change::ServiceRemoved => plan.engine_runs,
            Change::HundredEndpoints | Change::ThousandCounts => plan.runs,
        };
        let sample = repeat(plan, runs, |round, sample| {
            let deltas = cluster.change(change, round);
            sample.push_time(follow(&mut cluster, &deltas));
            follow(&mut cluster, &reversed(&deltas));
        });
        cells.insert(Column::Change(change), sample);
    }
    let peak = child(
        &fresh(),
        &[
            "child",
            "engine",
            &size.services.to_string(),
            &size.endpoints.to_string(),
        ],
    );
    let mut loader = Sample::default();
    loader.push(peak);
    cells.insert(Column::LoaderMemory, loader);
}

/// Loads a cluster into the namespace of this process, and gives the process's largest memory in KiB: what is desired, what is
/// programmed and the transaction, as in the agent.
pub fn engine_peak(services: u32, endpoints: u32) -> f64 {
    // The made-up cluster goes before the load: the agent has none.
    let wanted = desired(&Cluster::new(Size { services, endpoints }));
    let kernel = nftfleet_agent::dataplane::Netlink::open().expect("a netlink socket");
    let mut dataplane = Dataplane::new(kernel, SETTINGS);
    dataplane
        .load(&wanted, false)
        .expect("an empty namespace takes our table");
    own_peak_kib()
}
