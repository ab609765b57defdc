//! The made-up cluster that every shape is given: Services with one TCP port each, and endpoints behind which nobody lives.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use nftfleet_domain::service::{Endpoint, Protocol, Vip};

/// How large a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size {
    /// How many Services.
    pub services: u32,
    /// How many endpoints each of them has.
    pub endpoints: u32,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} Services x {} endpoints", grouped(self.services), self.endpoints)
    }
}

/// A number with a comma at each thousand.
pub fn grouped(number: u32) -> String {
    match number / 1000 {
        0 => number.to_string(),
        thousands => format!("{},{:03}", grouped(thousands), number % 1000),
    }
}

/// The first Service's address; the others follow. Inside the lab's range of Services.
const FIRST_VIP: u32 = u32::from_be_bytes([10, 100, 0, 0]);

/// The first endpoint's address. Three million follow before [`FIRST_LATER`].
const FIRST_ENDPOINT: u32 = u32::from_be_bytes([10, 160, 0, 0]);

/// The first address of endpoints that come with a change.
const FIRST_LATER: u32 = u32::from_be_bytes([10, 224, 0, 0]);

/// Where every Service listens.
pub const SERVICE_PORT: u16 = 80;

/// Where every endpoint listens.
pub const ENDPOINT_PORT: u16 = 8080;

/// The Service with this number, from 0.
pub fn vip(number: u32) -> Vip {
    Vip {
        address: Ipv4Addr::from(FIRST_VIP + number).into(),
        protocol: Protocol::Tcp,
        port: SERVICE_PORT,
    }
}

/// Its name.
pub fn name(number: u32) -> String {
    format!("shop/web-{number}")
}

fn endpoint(address: u32) -> Endpoint {
    Endpoint {
        address: Ipv4Addr::from(address).into(),
        port: ENDPOINT_PORT,
    }
}

/// Services by their number, each with its endpoints in order.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The endpoints of each.
    pub services: BTreeMap<u32, Vec<Endpoint>>,
    later: u32,
}

/// What becomes of one Service; none where it does not exist.
#[derive(Clone, Debug)]
pub struct Delta {
    /// Its number.
    pub number: u32,
    /// Its endpoints before.
    pub before: Option<Vec<Endpoint>>,
    /// Its endpoints after.
    pub after: Option<Vec<Endpoint>>,
}

/// A change of the kind that happens all day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// One endpoint of one Service is replaced.
    OneEndpoint,
    /// A Service comes.
    ServiceAdded,
    /// A Service goes.
    ServiceRemoved,
    /// One endpoint in each of 100 Services is replaced, all at once.
    HundredEndpoints,
    /// Each of 1,000 Services gets one endpoint more, all at once.
    ThousandCounts,
}

impl Change {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::OneEndpoint,
        Self::ServiceAdded,
        Self::ServiceRemoved,
        Self::HundredEndpoints,
        Self::ThousandCounts,
    ];
}

impl Cluster {
    /// A cluster of this size.
    pub fn new(size: Size) -> Self {
        let endpoints = |number: u32| {
            let first = FIRST_ENDPOINT + number * size.endpoints;
            (first..first + size.endpoints).map(endpoint).collect()
        };
        Self {
            services: (0..size.services).map(|number| (number, endpoints(number))).collect(),
            later: FIRST_LATER,
        }
    }

    /// What this change does to which Services, the first time, the second time, and so on.
    pub fn change(&mut self, change: Change, round: u32) -> Vec<Delta> {
        let count = u32::try_from(self.services.len()).expect("far fewer Services");
        // Far apart, so that no two rounds of a measurement meet the same Service.
        let far = round.wrapping_mul(7919) % count;
        match change {
            Change::OneEndpoint => vec![self.replaced(far)],
            Change::HundredEndpoints => {
                let numbers = (0..100.min(count)).map(|n| (round + n * (count / 100.min(count))) % count);
                numbers.map(|number| self.replaced(number)).collect()
            }
            Change::ThousandCounts => (0..1000.min(count))
                .map(|number| {
                    let before = self.services[&number].clone();
                    let mut after = before.clone();
                    after.push(self.next_endpoint());
                    changed(number, before, after)
                })
                .collect(),
            Change::ServiceAdded => {
                let endpoints = self.services[&0].len();
                vec![Delta {
                    number: count,
                    before: None,
                    after: Some((0..endpoints).map(|_| self.next_endpoint()).collect()),
                }]
            }
            Change::ServiceRemoved => {
                vec![Delta {
                    number: far,
                    before: Some(self.services[&far].clone()),
                    after: None,
                }]
            }
        }
    }

    fn replaced(&mut self, number: u32) -> Delta {
        let before = self.services[&number].clone();
        let mut after = before.clone();
        let last = after.last_mut().expect("a Service with endpoints");
        *last = self.next_endpoint();
        changed(number, before, after)
    }

    fn next_endpoint(&mut self) -> Endpoint {
        self.later += 1;
        endpoint(self.later)
    }

    /// Takes a change in.
    pub fn apply(&mut self, deltas: &[Delta]) {
        for delta in deltas {
            match &delta.after {
                Some(endpoints) => drop(self.services.insert(delta.number, endpoints.clone())),
                None => drop(self.services.remove(&delta.number)),
            }
        }
    }
}

fn changed(number: u32, before: Vec<Endpoint>, after: Vec<Endpoint>) -> Delta {
    Delta {
        number,
        before: Some(before),
        after: Some(after),
    }
}

/// The way back.
pub fn reversed(deltas: &[Delta]) -> Vec<Delta> {
    let turned = |delta: &Delta| Delta {
        number: delta.number,
        before: delta.after.clone(),
        after: delta.before.clone(),
    };
    deltas.iter().map(turned).collect()
}
