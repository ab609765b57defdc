//! Was the client answered, and by somebody who may answer?

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nftfleet_domain::service::{Family, Protocol, Vip};

use crate::oracle::{Fate, Means};
use crate::timeline::Timeline;
use crate::world::{Asker, SERVERS, Server, Servers};

/// How many failures are told in full.
const TOLD: usize = 30;

/// After that time the data plane has decided about the first packet of an attempt, on the busiest machine.
const DECIDED: Duration = Duration::from_secs(1);

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Somebody answered, and said who he is.
    Answered(String),
    /// Refused.
    Refused,
    /// Nobody answered in time.
    Silence,
    /// Anything else, in words.
    Failed(String),
}

/// A new connection, or the first datagram of one.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub asker: Asker,
    pub vip: Vip,
    pub began: Instant,
    pub ended: Instant,
    pub outcome: Outcome,
}

/// What is said of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Answered by an endpoint that was usable at some moment of the attempt.
    Right,
    /// Not answered, and there was nobody to answer all the time.
    RightlyNot,
    /// Not answered; there was nobody to answer during a part of the time.
    Unclear,
    /// UDP was not answered, and an endpoint that may have been asked stopped serving meanwhile: connection tracking was made to
    /// forget the flow, and with it the way back of an answer that was under way.
    MaybeCut,
    /// Answered by somebody who was no usable endpoint at any moment of the attempt.
    Wrong,
    /// Not answered, though there was a usable endpoint all the time.
    Lost,
    /// TCP was left without an answer though it was to be refused all the time.
    Unrefused,
}

impl Verdict {
    /// Whether this must not be.
    pub const fn is_bad(self) -> bool {
        matches!(self, Self::Wrong | Self::Lost | Self::Unrefused)
    }
}

/// The verdict on an attempt, by what its VIP may have meant in the meantime.
pub fn judge(attempt: &Attempt, possible: &[&Means]) -> Verdict {
    let fates: Vec<Fate> = possible
        .iter()
        .map(|means| means.fates[attempt.asker as usize])
        .collect();
    let served: Vec<Servers> = fates.iter().filter_map(Fate::servers).collect();
    let always_served = served.len() == fates.len();
    let always_refused = fates.iter().all(|fate| *fate == Fate::Refused);
    match &attempt.outcome {
        Outcome::Answered(identity) => {
            let may = |server: Server| served.iter().any(|servers| servers.contains(server));
            if Server::known_by(identity).is_some_and(may) {
                Verdict::Right
            } else {
                Verdict::Wrong
            }
        }
        Outcome::Silence if always_served && attempt.vip.protocol == Protocol::Udp && may_be_cut(possible, &served) => {
            Verdict::MaybeCut
        }
        _ if always_served => Verdict::Lost,
        _ if !served.is_empty() => Verdict::Unclear,
        // A refusal of UDP is an ICMP error, of which a kernel sends so many a second and no more.
        Outcome::Silence if attempt.vip.protocol == Protocol::Tcp && always_refused => Verdict::Unrefused,
        Outcome::Silence | Outcome::Refused | Outcome::Failed(_) => Verdict::RightlyNot,
    }
}

/// Whether one of those that may have been asked did not serve all the time.
fn may_be_cut(possible: &[&Means], served: &[Servers]) -> bool {
    let mut asked = (0..SERVERS)
        .map(Server::numbered)
        .filter(|server| served.iter().any(|set| set.contains(*server)));
    asked.any(|server| possible.iter().any(|means| !means.serving.contains(server)))
}

/// What kind of attempt it was, as totals are printed.
type Kind = (Asker, Protocol, Family, &'static str);

fn kind_of(attempt: &Attempt) -> Kind {
    let vip = attempt.vip;
    let address = vip.address.to_string();
    let kinds = [
        ("10.96.", "ClusterIP"),
        ("fd00:10:96:", "ClusterIP"),
        ("192.168.50.", "node port"),
        ("fd00:50:", "node port"),
        ("198.51.100.", "load balancer"),
        ("2001:db8:100:", "load balancer"),
    ];
    let kind = kinds.iter().find(|(prefix, _)| address.starts_with(prefix));
    let kind = kind.map_or("external IP", |(_, kind)| *kind);
    (attempt.asker, vip.protocol, Family::of(vip.address), kind)
}

/// The verdicts on all attempts.
#[derive(Debug, Default)]
pub struct Record {
    counts: BTreeMap<Kind, BTreeMap<Verdict, u64>>,
    /// What must not be, in full.
    pub failures: Vec<String>,
    /// The longest that a client waited for a right answer, in each protocol.
    pub slowest: BTreeMap<Protocol, Duration>,
}

impl Record {
    /// Judges an attempt that has ended.
    pub fn note(&mut self, attempt: &Attempt, timeline: &Timeline) {
        // What comes later than that is of no matter: no first packet is under way so long.
        let decided = attempt.ended.min(attempt.began + DECIDED);
        let possible = timeline.between(attempt.vip, attempt.began, decided);
        let verdict = judge(attempt, &possible);
        *self
            .counts
            .entry(kind_of(attempt))
            .or_default()
            .entry(verdict)
            .or_default() += 1;
        if verdict == Verdict::Right {
            let slowest = self.slowest.entry(attempt.vip.protocol).or_default();
            *slowest = (*slowest).max(attempt.ended.duration_since(attempt.began));
        }
        if verdict.is_bad() && self.failures.len() < TOLD {
            let story = timeline.story(attempt.vip, attempt.began, decided, attempt.asker);
            let (asker, outcome) = (attempt.asker, &attempt.outcome);
            self.failures
                .push(format!("{verdict:?}: {asker:?} got {outcome:?} from {story}"));
        }
    }

    /// How many attempts had one of these verdicts.
    pub fn count(&self, test: impl Fn(Verdict) -> bool) -> u64 {
        let all = self.counts.values().flatten();
        all.filter(|(verdict, _)| test(**verdict)).map(|(_, count)| count).sum()
    }

    /// Prints the totals.
    pub fn print(&self) {
        for ((asker, protocol, family, kind), verdicts) in &self.counts {
            let verdicts: Vec<String> = verdicts
                .iter()
                .map(|(verdict, count)| format!("{count} {verdict:?}"))
                .collect();
            println!("  {asker:?} {protocol} {family} {kind}: {}", verdicts.join(", "));
        }
        let of = |verdict| self.count(|other| other == verdict);
        println!(
            "{} connections: {} answered rightly, {} rightly not, {} unclear, {} maybe cut; {} wrong, {} lost, {} not refused",
            self.count(|_| true),
            of(Verdict::Right),
            of(Verdict::RightlyNot),
            of(Verdict::Unclear),
            of(Verdict::MaybeCut),
            of(Verdict::Wrong),
            of(Verdict::Lost),
            of(Verdict::Unrefused),
        );
        println!("slowest right answer: {:?}", self.slowest);
    }
}
