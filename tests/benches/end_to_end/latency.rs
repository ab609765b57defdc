//! From the API's event to the kernel's commit.

use std::time::{Duration, Instant};

use nftfleet_tests::kube_sim::KubeSim;
use nftfleet_tests::lab::Lab;
use nftfleet_tests::wait;

use crate::cluster::{Cluster, newcomer_address};
use crate::notifications::Listener;
use crate::report::Report;

/// How long after the last change its notification may come.
const LIMIT: Duration = Duration::from_secs(30);

/// A step through the Services that meets all of them: a prime.
const STRIDE: u32 = 7919;

/// Changes an endpoint of one Service after another, `rate` a second; each newcomer has an address of its own, by which it is
/// known when the kernel tells of it.
pub fn measure(lab: &Lab, kubernetes: &KubeSim, cluster: Cluster, changes: u32, rate: u32, report: &mut Report) {
    let listener = Listener::start(&lab.node(1).netns);
    kubernetes.take_told();
    let begin = Instant::now();
    let written: Vec<(u64, Instant)> = (0..changes)
        .map(|change| {
            let slice = cluster.slice(cluster.spread(change, STRIDE), Some(change));
            std::thread::sleep(
                (begin + Duration::from_secs(1) / rate * change).saturating_duration_since(Instant::now()),
            );
            let now = Instant::now();
            (kubernetes.apply(slice), now)
        })
        .collect();
    wait::until_blocking("all changes to reach the kernel", LIMIT, || {
        let heard = listener.look(|heard| heard.endpoints.len());
        (heard >= changes as usize).then_some(())
    });
    let told = kubernetes.take_told();
    let heard = listener.take();
    let committed = |change: u32| heard.endpoints[&newcomer_address(change)];
    let (mut share, mut latency) = (Vec::new(), Vec::new());
    for (change, (version, written)) in (0..).zip(&written) {
        let told = told[version];
        share.push(told.duration_since(*written));
        latency.push(committed(change).duration_since(told));
    }
    let title = format!("a change at {rate} a second, from the API's event to the kernel's notification");
    report.distribution(&title, latency);
    report.distribution("- before that, from the write into the simulator to its event", share);
    report.line("- elements written", heard.elements.to_string());
}
