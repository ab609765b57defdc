//! Does the data plane answer? Asks Services from the node itself, through whatever rules stand.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use futures::future::join_all;
use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UdpSocket};

use crate::dataplane::desired::{Frontend, Route};

/// How long an answer may take: longer than one lost packet costs (TCP retries after a second).
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);

/// Tries before an address counts as not answering.
const TRIES: usize = 2;

/// How many VIPs of each kind are in a sample.
const PER_KIND: usize = 2;

/// By how much the median answer may be later than before a move, and by what factor, until it counts as slow.
const SLOWER: (Duration, u32) = (Duration::from_millis(100), 10);

/// A DNS query for the root's name servers, which any resolver can answer (RFC 1035, section 4): ID, flags, one question.
const DNS_QUERY: [u8; 17] = [0x6e, 0x66, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

/// How an address is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// By a TCP connection.
    Connect,
    /// By a DNS query over UDP.
    Dns,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// Where.
    pub address: SocketAddr,
    /// How.
    pub how: How,
}

/// Something that answered before a move, and must answer after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Where.
    pub address: SocketAddr,
    /// How it was asked.
    pub how: How,
    /// Whether the work names it. Of the others, a sample, it is known that they have endpoints, not that these live.
    pub named: bool,
    /// How long the answer took, in microseconds.
    pub micros: u64,
}

impl Answered {
    /// What was asked.
    pub const fn question(&self) -> Question {
        Question {
            address: self.address,
            how: self.how,
        }
    }
}

/// An address that did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silent {
    /// The address.
    pub address: SocketAddr,
    /// What happened at the last try.
    pub why: String,
}

/// Asks all at the same time; gives how long each answer took, or who is silent.
pub async fn ask(questions: &[Question]) -> Vec<Result<Duration, Silent>> {
    join_all(questions.iter().map(|question| ask_one(*question))).await
}

/// Connects to every address at the same time; gives those that did not answer.
pub async fn probe(addresses: &[SocketAddr]) -> Vec<Silent> {
    let connect = |address: &SocketAddr| Question {
        address: *address,
        how: How::Connect,
    };
    let questions: Vec<Question> = addresses.iter().map(connect).collect();
    ask(&questions).await.into_iter().filter_map(Result::err).collect()
}

async fn ask_one(question: Question) -> Result<Duration, Silent> {
    let mut why = String::new();
    for _ in 0..TRIES {
        let asked = Instant::now();
        let answer = async {
            match question.how {
                How::Connect => TcpStream::connect(question.address).await.map(drop),
                How::Dns => query(question.address).await,
            }
        };
        match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(())) => return Ok(asked.elapsed()),
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = format!("no answer in {} ms", ANSWER_WITHIN.as_millis()),
        }
    }
    Err(Silent {
        address: question.address,
        why,
    })
}

/// Any answer will do: that the resolver knows the root is not asked for.
async fn query(address: SocketAddr) -> std::io::Result<()> {
    let any: SocketAddr = if address.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    socket.send(&DNS_QUERY).await?;
    let mut answer = [0; 512];
    socket.recv(&mut answer).await.map(drop)
}

/// The silent addresses in words.
pub fn describe(silent: &[Silent]) -> String {
    silent
        .iter()
        .map(|s| format!("{}: {}", s.address, s.why))
        .collect::<Vec<_>>()
        .join("; ")
}

/// What kind of VIP it is, as far as the rules that it takes differ.
type Kind = (Family, Option<Route>, bool, bool);

/// A sample of what the Services offer: `default/kubernetes`, the cluster's DNS, and of every kind of VIP in both families the
/// first and the last that has endpoints. In order, without repetition.
pub fn sample(frontends: &BTreeMap<Vip, Frontend>) -> Vec<Question> {
    let mut questions = Vec::new();
    let mut kinds: BTreeMap<Kind, Vec<Question>> = BTreeMap::new();
    for (vip, frontend) in frontends {
        let address = SocketAddr::new(vip.address, vip.port);
        let is_of = |service: &str| {
            let rest = frontend.name.strip_prefix(service);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        };
        let lists = [&frontend.all, &frontend.local];
        let Some(list) = lists.into_iter().flatten().next() else {
            continue;
        };
        match vip.protocol {
            Protocol::Tcp => {
                let how = How::Connect;
                let question = Question { address, how };
                if is_of("default/kubernetes") {
                    questions.push(question);
                }
                let sticky = list.affinity.is_some();
                let kind = (
                    Family::of(vip.address),
                    frontend.route,
                    sticky,
                    frontend.local.is_some(),
                );
                kinds.entry(kind).or_default().push(question);
            }
            Protocol::Udp if vip.port == 53 && is_of("kube-system/kube-dns") => {
                questions.push(Question { address, how: How::Dns });
            }
            Protocol::Udp | Protocol::Sctp => {}
        }
    }
    for of_kind in kinds.values() {
        let last = of_kind.len().saturating_sub(PER_KIND - 1).max(1).min(of_kind.len());
        questions.extend(of_kind.iter().take(1).chain(&of_kind[last..]));
    }
    questions.sort_unstable();
    questions.dedup();
    questions
}

/// Where the connections to a VIP may go, if it is one.
pub fn endpoints(frontends: &BTreeMap<Vip, Frontend>, question: Question) -> Vec<Endpoint> {
    let vip = Vip {
        address: question.address.ip(),
        protocol: match question.how {
            How::Connect => Protocol::Tcp,
            How::Dns => Protocol::Udp,
        },
        port: question.address.port(),
    };
    let lists = frontends.get(&vip).into_iter().flat_map(|f| [&f.all, &f.local]);
    let mut endpoints: Vec<Endpoint> = lists
        .flatten()
        .flat_map(|list| list.endpoints.iter().copied())
        .collect();
    endpoints.sort_unstable();
    endpoints.dedup();
    endpoints
}

/// Whether answers are much later than they were, in words with both medians. Of fewer than three nothing can be said.
pub fn slower(before: &[Duration], after: &[Duration]) -> Option<String> {
    if before.len() < 3 || after.len() < 3 {
        return None;
    }
    let median = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort_unstable();
        times[times.len() / 2]
    };
    let (before, after) = (median(before), median(after));
    let (more, factor) = SLOWER;
    let is_slow = after > before + more && after > before * factor;
    is_slow.then(|| format!("answers take {after:?}, before they took {before:?} (medians)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::desired::List;
    use std::sync::Arc;

    fn frontend(name: &str, route: Option<Route>, endpoints: &[&str]) -> Frontend {
        let endpoint = |text: &&str| {
            let address: SocketAddr = text.parse().unwrap();
            Endpoint {
                address: address.ip(),
                port: address.port(),
            }
        };
        let endpoints: Arc<[Endpoint]> = endpoints.iter().map(endpoint).collect();
        Frontend {
            name: name.into(),
            route,
            all: (!endpoints.is_empty()).then_some(List {
                endpoints,
                affinity: None,
            }),
            local: None,
            sources: None,
            serving: Arc::new([]),
        }
    }

    fn vip(at: &str, protocol: Protocol) -> Vip {
        let at: SocketAddr = at.parse().unwrap();
        Vip {
            address: at.ip(),
            protocol,
            port: at.port(),
        }
    }

    #[test]
    fn a_sample_has_every_kind_and_what_everybody_needs() {
        let one = &["10.0.0.1:80"];
        let frontends = BTreeMap::from([
            (
                vip("10.96.0.1:443", Protocol::Tcp),
                frontend("default/kubernetes:https", None, one),
            ),
            (
                vip("10.96.0.10:53", Protocol::Udp),
                frontend("kube-system/kube-dns:dns", None, one),
            ),
            (
                vip("10.96.0.11:53", Protocol::Udp),
                frontend("kube-system/kube-dns-two:dns", None, one),
            ),
            (vip("10.96.0.20:80", Protocol::Tcp), frontend("shop/a", None, one)),
            (vip("10.96.0.21:80", Protocol::Tcp), frontend("shop/b", None, one)),
            (vip("10.96.0.22:80", Protocol::Tcp), frontend("shop/empty", None, &[])),
            (
                vip("198.51.100.1:80", Protocol::Tcp),
                frontend("shop/a", Some(Route::ToAll), one),
            ),
            (vip("[fd00::1]:80", Protocol::Tcp), frontend("shop/a", None, one)),
        ]);
        let sampled = sample(&frontends);
        let shown: Vec<String> = sampled.iter().map(|q| format!("{} {:?}", q.address, q.how)).collect();
        let expected = [
            "10.96.0.1:443 Connect",
            "10.96.0.10:53 Dns",
            "10.96.0.21:80 Connect",
            "198.51.100.1:80 Connect",
            "[fd00::1]:80 Connect",
        ];
        assert_eq!(shown, expected);
        assert_eq!(endpoints(&frontends, sampled[0]).len(), 1);
        assert_eq!(endpoints(&frontends, sampled[1]).len(), 1);
    }

    #[test]
    fn slow_is_much_slower_in_the_median() {
        let times = |millis: &[u64]| millis.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        assert_eq!(slower(&times(&[1, 1, 1]), &times(&[1, 1, 4000])), None);
        assert_eq!(slower(&times(&[1, 1, 1]), &times(&[90, 90, 90])), None);
        assert!(slower(&times(&[1, 1, 1]), &times(&[1, 200, 300])).is_some());
        assert_eq!(slower(&times(&[100, 100, 100]), &times(&[300, 300, 300])), None);
        assert_eq!(slower(&times(&[1, 1]), &times(&[900, 900])), None);
    }
}
