//! Changes of the cluster, one after the other, drawn by lot.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nftfleet_agent::kube::Kind;
use nftfleet_domain::service::Family;
use nftfleet_tests::manifests::Readiness;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

use crate::clients::Shared;
use crate::cluster::{
    CLUSTER_IPS, COPIES, Cluster, EXTERNAL_IPS, LOAD_BALANCERS, NODE_PORTS, Reach, SERVICES, Service, SliceKey,
    Sources, families,
};
use crate::node::Node;
use crate::oracle::Oracle;
use crate::world::{MACHINES, PORTS, SERVERS, Server, World};

/// How often an event waits for the next one, so that both come in one update.
const TOGETHER: f64 = 0.2;

/// How many changes are told before the data plane is waited for, at most.
const BURST: usize = 6;

/// Numbers of endpoints: none, classes of one size and classes with empty slots.
const SIZES: [usize; 13] = [0, 1, 1, 2, 3, 5, 8, 9, 12, 13, 17, 24, SERVERS];

/// For how long clients stick, in seconds. The shortest makes them forget within the soak.
const TIMEOUTS: [u32; 3] = [2, 30, 10_800];

/// How long one burst took from the first change to the last commit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lateness {
    pub bursts: u32,
    pub total: Duration,
    pub worst: Duration,
}

/// The changes, and those who hear of them.
pub struct Churn<'a> {
    world: &'a World,
    shared: Shared,
    node: Node,
    cluster: Cluster,
    oracle: Oracle,
    /// Services of which nothing was told since they were changed.
    changed: BTreeSet<usize>,
    random: StdRng,
    /// How many changes there were of each kind.
    pub changes: BTreeMap<&'static str, u64>,
    /// How many updates were told.
    pub updates: u64,
    pub lateness: Lateness,
    /// One update in so many gets lost on its way to the data plane, to see if anybody notices.
    pub lose_one_in: Option<u64>,
}

impl<'a> Churn<'a> {
    /// A cluster with every Service, and a data plane that serves them.
    pub fn new(world: &'a World, shared: Shared, seed: u64) -> Self {
        let mut churn = Self {
            world,
            shared,
            node: Node::start(world),
            cluster: Cluster::default(),
            oracle: Oracle::default(),
            changed: BTreeSet::new(),
            random: StdRng::seed_from_u64(seed),
            changes: BTreeMap::new(),
            updates: 0,
            lateness: Lateness::default(),
            lose_one_in: None,
        };
        for service in 0..SERVICES {
            churn.create(service);
            churn.scale(service, 3);
        }
        churn.settle(Instant::now());
        churn
    }

    /// The data plane.
    pub const fn node(&self) -> &Node {
        &self.node
    }

    /// How many changes there were.
    pub fn total(&self) -> u64 {
        self.changes.values().sum()
    }

    /// A few changes, and waits until they are in the table.
    pub fn burst(&mut self) {
        let started = Instant::now();
        for _ in 0..self.random.random_range(1..=BURST) {
            self.change();
        }
        self.settle(started);
    }

    fn settle(&mut self, started: Instant) {
        self.tell();
        self.node.wait();
        let now = Instant::now();
        self.shared.timeline().done(now);
        let took = now.duration_since(started);
        self.lateness.bursts += 1;
        self.lateness.total += took;
        self.lateness.worst = self.lateness.worst.max(took);
    }

    /// One change of a Service. Some Services change all the time, others seldom: their endpoints grow old.
    fn change(&mut self) {
        let skewed = self.random.random_range(0.0..1.0_f64).powi(2);
        let service = (0..SERVICES)
            .rev()
            .find(|n| skewed * as_float(SERVICES) >= as_float(*n))
            .unwrap_or(0);
        if !self.cluster.services.contains_key(&service) {
            self.note("Service added", service);
            self.create(service);
            return;
        }
        match self.random.random_range(0..100) {
            0..22 => self.one_endpoint(service),
            22..34 => {
                self.note("scaled", service);
                let size = *SIZES.choose(&mut self.random).expect("a size");
                self.scale(service, size);
            }
            34..38 => {
                self.note("scaled to zero and back", service);
                let size = self.random.random_range(1..=12);
                self.scale(service, 0);
                self.scale(service, size);
            }
            38..48 => self.move_between_slices(service),
            48..56 => self.roll(service),
            56..62 => self.alter(service, "internal policy", |known, _| {
                known.internal_local = !known.internal_local;
            }),
            62..69 => self.alter(service, "external policy", |known, _| {
                known.external_local = !known.external_local;
            }),
            69..75 => self.alter(service, "session affinity", |known, random| {
                known.affinity = match known.affinity {
                    None => TIMEOUTS.choose(random).copied(),
                    Some(_) => None,
                };
            }),
            75..82 => self.alter(service, "type or load balancer", |known, random| {
                known.reach = reach(random);
            }),
            82..86 => self.alter(service, "external IP", |known, random| {
                known.external_ip = match known.external_ip {
                    None => Some(random.random_range(0..EXTERNAL_IPS)),
                    Some(_) => None,
                };
            }),
            86..90 => self.alter(service, "source ranges", |known, random| {
                known.sources = sources(random);
            }),
            90..93 => self.remove(service),
            93..97 => self.change_cluster_ip(service),
            97..99 => self.relist(Kind::Slice),
            _ => self.relist(Kind::Service),
        }
    }

    fn note(&mut self, kind: &'static str, service: usize) {
        *self.changes.entry(kind).or_default() += 1;
        let change = format!("{kind}, service-{service}: {:?}", self.cluster.services.get(&service));
        self.shared.timeline().write(Instant::now(), change);
    }

    /// An event about these Services has come; the data plane hears of it now or together with the next.
    fn event(&mut self, about: impl IntoIterator<Item = usize>) {
        self.changed.extend(about);
        if !self.random.random_bool(TOGETHER) {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        let meanings = self.oracle.follow(&self.cluster, self.world, &changed);
        // Before the data plane: from now on a packet may meet the new state.
        self.shared.timeline().tell(Instant::now(), meanings);
        self.updates += 1;
        if self.lose_one_in.is_some_and(|n| self.updates.is_multiple_of(n)) {
            self.node.lose();
        } else {
            self.node.tell();
        }
    }

    fn create(&mut self, service: usize) {
        let used: Vec<usize> = self.cluster.services.values().map(|known| known.cluster_ip).collect();
        let free = (0..CLUSTER_IPS).filter(|index| !used.contains(index));
        let cluster_ip = free.choose(&mut self.random).expect("more addresses than Services");
        let random = &mut self.random;
        let known = Service {
            cluster_ip,
            reach: reach(random),
            external_ip: random.random_bool(0.3).then(|| random.random_range(0..EXTERNAL_IPS)),
            internal_local: random.random_bool(0.2),
            external_local: random.random_bool(0.4),
            affinity: random
                .random_bool(0.3)
                .then(|| *TIMEOUTS.choose(random).expect("a timeout")),
            sources: Sources::Everybody,
        };
        self.cluster.services.insert(service, known);
        self.apply_service(service);
    }

    /// The Service goes, with its slices or without: then they are there when it comes back.
    fn remove(&mut self, service: usize) {
        self.note("Service removed", service);
        let with_slices = self.random.random_bool(0.5);
        let service_first = self.random.random_bool(0.5);
        if service_first {
            self.delete_service(service);
        }
        if with_slices {
            for key in self.slices_of(service, &Family::BOTH) {
                self.delete_slice(key);
            }
        }
        if !service_first {
            self.delete_service(service);
        }
    }

    /// Deleted and made again at once, with another address.
    fn change_cluster_ip(&mut self, service: usize) {
        self.note("Service made again with another ClusterIP", service);
        let known = self.cluster.services[&service].clone();
        self.delete_service(service);
        self.create(service);
        if self.random.random_bool(0.5) {
            let cluster_ip = self.cluster.services[&service].cluster_ip;
            self.cluster.services.insert(service, Service { cluster_ip, ..known });
            self.apply_service(service);
        }
    }

    fn alter(&mut self, service: usize, kind: &'static str, alter: impl FnOnce(&mut Service, &mut StdRng)) {
        self.note(kind, service);
        let known = self
            .cluster
            .services
            .get_mut(&service)
            .expect("a Service that is there");
        alter(known, &mut self.random);
        self.apply_service(service);
    }

    /// The families of this change: a slice has one family, and a controller writes one slice at a time.
    fn some_families(&mut self, service: usize) -> Vec<Family> {
        let mut some = families(service).to_vec();
        if self.random.random_bool(0.3) {
            some.truncate(1);
        }
        some
    }

    fn slices_of(&self, service: usize, families: &[Family]) -> Vec<SliceKey> {
        let keys = self.cluster.slices.keys();
        keys.filter(|key| key.service == service && families.contains(&key.family))
            .copied()
            .collect()
    }

    /// An endpoint comes, goes, or is in another condition.
    fn one_endpoint(&mut self, service: usize) {
        let server = Server::numbered(self.random.random_range(0..SERVERS));
        let readiness = [
            None,
            Some(Readiness::READY),
            Some(Readiness::UNREADY),
            Some(Readiness::DRAINING),
            Some(Readiness::GONE),
        ];
        let wanted = *readiness.choose(&mut self.random).expect("a condition");
        let copy = self.random.random_range(0..COPIES);
        let mut kind = "endpoint in another condition";
        for family in self.some_families(service) {
            let there = self.slice_with(service, family, server);
            let key = there.unwrap_or(SliceKey {
                service,
                family,
                port: server.port,
                copy,
            });
            let machines = self.cluster.slices.entry(key).or_default();
            match (there, wanted) {
                (Some(_), None) => {
                    kind = "endpoint removed";
                    machines.remove(&server.machine);
                }
                (Some(_), Some(readiness)) => {
                    machines.insert(server.machine, readiness);
                }
                (None, _) => {
                    kind = "endpoint added";
                    machines.insert(server.machine, Readiness::READY);
                }
            }
            self.apply_slice(key);
        }
        self.note(kind, service);
    }

    fn slice_with(&self, service: usize, family: Family, server: Server) -> Option<SliceKey> {
        let mut slices = self.cluster.slices.iter();
        let found = slices.find(|(key, machines)| {
            (key.service, key.family, key.port) == (service, family, server.port)
                && machines.contains_key(&server.machine)
        });
        found.map(|(key, _)| *key)
    }

    /// Any servers, so many, spread over slices, all ready.
    fn scale(&mut self, service: usize, size: usize) {
        let mut servers: Vec<Server> = (0..SERVERS).map(Server::numbered).collect();
        servers.shuffle(&mut self.random);
        servers.truncate(size);
        for family in self.some_families(service) {
            let mut wanted = BTreeMap::<SliceKey, BTreeMap<usize, Readiness>>::new();
            for server in &servers {
                let copy = self.random.random_range(0..COPIES);
                let (port, machine) = (server.port, server.machine);
                let key = SliceKey {
                    service,
                    family,
                    port,
                    copy,
                };
                wanted.entry(key).or_default().insert(machine, Readiness::READY);
            }
            // New endpoints before old ones go, and the other way round.
            let mut keys = self.slices_of(service, &[family]);
            keys.retain(|key| !wanted.contains_key(key));
            keys.extend(wanted.keys());
            keys.shuffle(&mut self.random);
            for key in keys {
                match wanted.remove(&key) {
                    None if self.random.random_bool(0.5) => self.delete_slice(key),
                    machines => {
                        self.cluster.slices.insert(key, machines.unwrap_or_default());
                        self.apply_slice(key);
                    }
                }
            }
        }
    }

    /// An endpoint changes its slice: for a moment it is in both, or in none.
    fn move_between_slices(&mut self, service: usize) {
        self.note("endpoint moved between slices", service);
        for family in self.some_families(service) {
            let slices = self.slices_of(service, &[family]);
            let full = slices.iter().filter(|key| !self.cluster.slices[key].is_empty());
            let Some(from) = full.copied().choose(&mut self.random) else {
                continue;
            };
            let to = SliceKey {
                copy: (from.copy + 1) % COPIES,
                ..from
            };
            let machines = self.cluster.slices[&from].iter().map(|(m, r)| (*m, *r));
            let (machine, readiness) = machines.choose(&mut self.random).expect("a slice that is not empty");
            let in_both = self.random.random_bool(0.7);
            for step in [in_both, !in_both] {
                if step {
                    self.cluster.slices.entry(to).or_default().insert(machine, readiness);
                    self.apply_slice(to);
                } else {
                    self.cluster.slices.entry(from).or_default().remove(&machine);
                    self.apply_slice(from);
                }
            }
        }
    }

    /// A pod is replaced: the new one becomes ready, the old one ends, serving for a while, and goes. In half of the cases the
    /// new one has the same address, and stands in another slice.
    fn roll(&mut self, service: usize) {
        self.note("pod replaced", service);
        for family in self.some_families(service) {
            let slices = self.slices_of(service, &[family]);
            let full = slices.iter().filter(|key| !self.cluster.slices[key].is_empty());
            let Some(old) = full.copied().choose(&mut self.random) else {
                continue;
            };
            let machine = *self.cluster.slices[&old]
                .keys()
                .next()
                .expect("a slice that is not empty");
            let same = self.random.random_bool(0.5);
            let new = SliceKey {
                copy: (old.copy + 1) % COPIES,
                port: if same {
                    old.port
                } else {
                    self.random.random_range(0..PORTS)
                },
                ..old
            };
            let new_machine = if same {
                machine
            } else {
                self.random.random_range(0..MACHINES)
            };
            let taken = self.slice_with(
                service,
                family,
                Server {
                    machine: new_machine,
                    port: new.port,
                },
            );
            let put = |churn: &mut Self, key: SliceKey, machine, readiness| {
                let machines = churn.cluster.slices.entry(key).or_default();
                match readiness {
                    Some(readiness) => drop(machines.insert(machine, readiness)),
                    None => drop(machines.remove(&machine)),
                }
                churn.apply_slice(key);
            };
            if !same && taken.is_none() {
                put(self, new, new_machine, Some(Readiness::READY));
            }
            put(self, old, machine, Some(Readiness::DRAINING));
            if same {
                put(self, new, machine, Some(Readiness::READY));
            }
            if self.random.random_bool(0.5) {
                put(self, old, machine, Some(Readiness::GONE));
            }
            put(self, old, machine, None);
        }
    }

    /// The watch breaks, and everything is listed again; meanwhile something has changed.
    fn relist(&mut self, kind: Kind) {
        let world = self.world;
        let objects = if kind == Kind::Service {
            self.note("Services listed again", 0);
            for known in self.cluster.services.values_mut() {
                known.external_local ^= self.random.random_bool(0.1);
                known.internal_local ^= self.random.random_bool(0.1);
            }
            let numbers = self.cluster.services.keys();
            numbers.map(|number| self.cluster.service_object(*number)).collect()
        } else {
            self.note("slices listed again", 0);
            self.cluster.slices.retain(|_, machines| {
                machines.retain(|_, _| self.random.random_bool(0.95));
                !machines.is_empty()
            });
            let keys = self.cluster.slices.keys();
            keys.map(|key| self.cluster.slice_object(world, *key)).collect()
        };
        self.node.list(kind, objects);
        self.event(0..SERVICES);
    }

    fn apply_service(&mut self, service: usize) {
        self.node.applied(Kind::Service, self.cluster.service_object(service));
        self.event([service]);
    }

    fn delete_service(&mut self, service: usize) {
        let object = self.cluster.service_object(service);
        self.cluster.services.remove(&service);
        self.node.deleted(Kind::Service, object);
        self.event([service]);
    }

    fn apply_slice(&mut self, key: SliceKey) {
        let object = self.cluster.slice_object(self.world, key);
        self.node.applied(Kind::Slice, object);
        self.event([key.service]);
    }

    fn delete_slice(&mut self, key: SliceKey) {
        let object = self.cluster.slice_object(self.world, key);
        self.cluster.slices.remove(&key);
        self.node.deleted(Kind::Slice, object);
        self.event([key.service]);
    }
}

fn reach(random: &mut StdRng) -> Reach {
    let port = random.random_range(0..NODE_PORTS);
    match random.random_range(0..4) {
        0 => Reach::ClusterIp,
        1 => Reach::NodePort(port),
        2 => Reach::LoadBalancer(port, None),
        _ => Reach::LoadBalancer(port, Some(random.random_range(0..LOAD_BALANCERS))),
    }
}

fn sources(random: &mut StdRng) -> Sources {
    let allowed = [(); 3].map(|()| random.random_bool(0.7));
    // Ranges that hold nobody can't be written: none at all means everybody.
    if allowed.contains(&true) {
        Sources::Only(allowed)
    } else {
        Sources::Everybody
    }
}

fn as_float(number: usize) -> f64 {
    f64::from(u32::try_from(number).expect("a small number"))
}
