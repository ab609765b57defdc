//! The agent's own engine, with a meter between it and the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nftfleet_agent::dataplane::desired::{Frontend, List, PodMatch, Pods};
use nftfleet_agent::dataplane::kernel::{Committed, Kernel, Observed, Transaction};
use nftfleet_agent::dataplane::programmed::Sticky;
use nftfleet_agent::dataplane::{Desired, KernelError, Layout, LayoutSettings, Netlink, Update};
use nftfleet_domain::inventory::TableState;
use nftfleet_domain::service::Endpoint;
use nftfleet_tests::lab::CLUSTER_CIDR4;
use nftfleet_tests::netns::Netns;
use nix::sys::resource::{UsageWho, getrusage};

use crate::cluster::{Cluster, Delta, name, vip};

/// kube-proxy's defaults.
pub const SETTINGS: LayoutSettings = LayoutSettings {
    masquerade_bit: 14,
    masquerade_all: false,
};

/// Opens a conversation with a namespace's kernel. It stays with that namespace, whatever thread uses it.
pub fn netlink(netns: &Netns) -> Netlink {
    netns.run(|| Netlink::open().expect("a netlink socket"))
}

fn frontend(number: u32, endpoints: &[Endpoint]) -> Frontend {
    let endpoints: BTreeSet<Endpoint> = endpoints.iter().copied().collect();
    Frontend {
        name: format!("{}:http", name(number)).into(),
        route: None,
        all: Some(List {
            endpoints: endpoints.into_iter().collect(),
            affinity: None,
        }),
        local: None,
        sources: None,
        serving: [].into(),
    }
}

/// What the agent's watch of the API would come to.
pub fn desired(cluster: &Cluster) -> Desired {
    let mut desired = Desired {
        pods: Pods {
            v4: Some(PodMatch::Source(CLUSTER_CIDR4.parse().expect("a network"))),
            v6: None,
        },
        ..Desired::default()
    };
    for (number, endpoints) in &cluster.services {
        desired.frontends.insert(vip(*number), frontend(*number, endpoints));
        desired.cluster_ips.insert(vip(*number).address, name(*number).into());
    }
    desired
}

/// The change of it.
pub fn update(deltas: &[Delta]) -> Update {
    let mut update = Update::default();
    for delta in deltas {
        let vip = vip(delta.number);
        let after = delta.after.as_ref();
        update.frontends.insert(vip, after.map(|e| frontend(delta.number, e)));
        if delta.before.is_some() != delta.after.is_some() {
            let address: IpAddr = vip.address;
            update
                .cluster_ips
                .insert(address, after.map(|_| name(delta.number).into()));
        }
    }
    update
}

/// What was spent at the kernel's door.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Elements changed.
    pub elements: usize,
    /// In commits, from the call to the kernel's answer.
    pub wall: Duration,
    /// Of that, in the kernel.
    pub kernel: Duration,
}

/// Adds up what is spent; clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Mutex<Spent>>);

impl Meter {
    /// Hands over what was spent since the last look.
    pub fn take(&self) -> Spent {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The kernel with a meter.
#[derive(Debug)]
pub struct Metered {
    kernel: Netlink,
    meter: Meter,
}

impl Metered {
    /// A kernel of this namespace.
    pub fn new(netns: &Netns) -> (Self, Meter) {
        let meter = Meter::default();
        let metered = Self {
            kernel: netlink(netns),
            meter: meter.clone(),
        };
        (metered, meter)
    }
}

/// How long this thread was in the kernel so far.
fn in_kernel() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("a thread's own times");
    let time = usage.system_time();
    let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

impl Kernel for Metered {
    fn stickies(&mut self) -> Result<BTreeSet<Sticky>, KernelError> {
        self.kernel.stickies()
    }

    fn observe(&mut self, expected: &Layout) -> Result<Option<Observed>, KernelError> {
        self.kernel.observe(expected)
    }

    fn state(&mut self) -> Result<TableState, KernelError> {
        self.kernel.state()
    }

    fn commit(&mut self, transaction: &Transaction<'_>) -> Result<Committed, KernelError> {
        let (started, before) = (Instant::now(), in_kernel());
        let committed = self.kernel.commit(transaction)?;
        let mut spent = self.meter.0.lock().unwrap_or_else(PoisonError::into_inner);
        spent.elements += transaction.changes.len();
        spent.wall += started.elapsed();
        spent.kernel += in_kernel().saturating_sub(before);
        Ok(committed)
    }

    fn wait_for_packets(&mut self) {
        self.kernel.wait_for_packets();
    }
}
