//! What Kubernetes promises to each client of each VIP, worked out from the cluster and not from the agent's own reading.

use std::collections::{BTreeMap, BTreeSet};

use nftfleet_domain::service::{Family, Protocol, Vip};
use nftfleet_tests::manifests::Readiness;

use crate::cluster::{
    Cluster, Reach, Service, cluster_ip, external_ip, families, load_balancer_ip, node_port, protocols, service_port,
};
use crate::world::{Asker, Server, Servers, World};

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// One of these answers.
    Served(Servers),
    /// It is refused.
    Refused,
    /// It is dropped.
    Dropped,
    /// No Service's affair: nobody of ours answers.
    Foreign,
}

impl Fate {
    /// Who answers, if anybody does.
    pub const fn servers(&self) -> Option<Servers> {
        match self {
            Self::Served(servers) => Some(*servers),
            Self::Refused | Self::Dropped | Self::Foreign => None,
        }
    }
}

/// What a VIP means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Means {
    /// To each asker.
    pub fates: [Fate; 3],
    /// Whose UDP flows may go on.
    pub serving: Servers,
}

/// A VIP that no Service has.
pub const ABSENT: Means = Means {
    fates: [Fate::Foreign; 3],
    serving: Servers::NONE,
};

/// The endpoints that may be used.
struct Choice {
    all: Servers,
    local: Servers,
    serving: Servers,
}

/// What every VIP means, by the Service that has it.
#[derive(Debug, Default)]
pub struct Oracle(BTreeMap<usize, BTreeMap<Vip, Means>>);

impl Oracle {
    /// What the VIPs of these Services mean now; those that they had and have no more are absent.
    pub fn follow(&mut self, cluster: &Cluster, world: &World, changed: &BTreeSet<usize>) -> BTreeMap<Vip, Means> {
        let before = changed.iter().filter_map(|service| self.0.remove(service)).flatten();
        let mut all: BTreeMap<Vip, Means> = before.map(|(vip, _)| (vip, ABSENT)).collect();
        for number in changed {
            if let Some(service) = cluster.services.get(number) {
                let meanings = meanings(cluster, world, *number, service);
                all.extend(meanings.clone());
                self.0.insert(*number, meanings);
            }
        }
        all
    }
}

/// What the VIPs of a Service mean.
fn meanings(cluster: &Cluster, world: &World, number: usize, service: &Service) -> BTreeMap<Vip, Means> {
    let mut meanings = BTreeMap::new();
    for family in families(number) {
        let choice = choice(&known(cluster, number, *family));
        let outside = |asker| outside(service, &choice, asker);
        let guarded = |asker| {
            if service.sources.allow(asker) {
                outside(asker)
            } else {
                Fate::Dropped
            }
        };
        let inside = Asker::ALL.map(|_| inside(service, &choice));
        let mut vips = vec![(cluster_ip(service.cluster_ip, *family), service_port(number), inside)];
        if let Some(index) = service.external_ip {
            let fates = Asker::ALL.map(outside);
            vips.push((external_ip(index, *family), service_port(number), fates));
        }
        if let Reach::NodePort(index) | Reach::LoadBalancer(index, _) = service.reach {
            let fates = Asker::ALL.map(outside);
            vips.push((world.node_address(*family), node_port(number, index), fates));
        }
        if let Reach::LoadBalancer(_, Some(index)) = service.reach {
            let fates = Asker::ALL.map(guarded);
            vips.push((load_balancer_ip(index, *family), service_port(number), fates));
        }
        for (address, port, fates) in vips {
            for protocol in protocols(number) {
                let vip = Vip {
                    address,
                    protocol: *protocol,
                    port,
                };
                let serving = match protocol {
                    Protocol::Udp => choice.serving,
                    Protocol::Tcp | Protocol::Sctp => Servers::NONE,
                };
                meanings.insert(vip, Means { fates, serving });
            }
        }
    }
    meanings
}

/// The endpoints that slices name, each once: one that is not ending wins.
fn known(cluster: &Cluster, service: usize, family: Family) -> BTreeMap<Server, Readiness> {
    let mut known = BTreeMap::<Server, Readiness>::new();
    for (key, machines) in &cluster.slices {
        if (key.service, key.family) != (service, family) {
            continue;
        }
        for (machine, readiness) in machines {
            let server = Server {
                machine: *machine,
                port: key.port,
            };
            let entry = known.entry(server).or_insert(*readiness);
            if entry.terminating && !readiness.terminating {
                *entry = *readiness;
            }
        }
    }
    known
}

/// The ready ones, else those that still serve while they end.
fn choice(known: &BTreeMap<Server, Readiness>) -> Choice {
    let of = |test: &dyn Fn(Server, &Readiness) -> bool| -> Servers {
        known
            .iter()
            .filter(|(server, r)| test(**server, r))
            .map(|(server, _)| *server)
            .collect()
    };
    let first = |ready: Servers, ending: Servers| if ready.is_empty() { ending } else { ready };
    Choice {
        all: first(of(&|_, r| r.ready), of(&|_, r| r.serving && r.terminating)),
        local: first(
            of(&|server, r| server.is_local() && r.ready),
            of(&|server, r| server.is_local() && r.serving && r.terminating),
        ),
        serving: of(&|_, r| r.ready || r.serving),
    }
}

/// To a `ClusterIP`, whoever asks.
fn inside(service: &Service, choice: &Choice) -> Fate {
    match (choice.all.is_empty(), service.internal_local) {
        (true, _) => Fate::Refused,
        (false, false) => Fate::Served(choice.all),
        (false, true) if choice.local.is_empty() => Fate::Dropped,
        (false, true) => Fate::Served(choice.local),
    }
}

/// To any other VIP. Policy Local is for those outside: who is in the cluster may use every endpoint.
fn outside(service: &Service, choice: &Choice, asker: Asker) -> Fate {
    match (choice.all.is_empty(), service.external_local, asker) {
        (true, ..) => Fate::Refused,
        (false, true, Asker::Outside) if choice.local.is_empty() => Fate::Dropped,
        (false, true, Asker::Outside) => Fate::Served(choice.local),
        (false, ..) => Fate::Served(choice.all),
    }
}
