//! Questions to Services, and what may become of them.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nftfleet_domain::service::{Protocol, Vip};
use nftfleet_tests::netns::Netns;
use nftfleet_tests::sctp::sctp_identity;
use nftfleet_tests::traffic::{tcp_identity, tcp_identity_from, udp_identity_from};

/// Far above what any answer takes, and above the first repetition of a lost SYN.
pub const LIMIT: Duration = Duration::from_secs(4);

/// How long nothing must come for a question to count as dropped: many times what a refusal takes.
const SILENCE: Duration = Duration::from_millis(900);

/// A refusal that takes longer is none that a client can live with: an ICMP error costs a TCP client over IPv6 a second.
const AT_ONCE: Duration = Duration::from_millis(700);

/// Enough to meet an endpoint that does not belong there: a stranger among four stays unseen once in 300, and there are
/// several targets each time.
const FEWEST_DRAWS: usize = 20;

/// Enough to see every endpoint: one of three stays unseen once in 10^15, one of eight once in 10^6.
const MOST_DRAWS: usize = 110;

/// One question: from where, to where.
#[derive(Clone, Debug)]
pub struct Ask {
    pub from: Netns,
    /// The address to ask from, if the kernel is not to choose.
    pub source: Option<IpAddr>,
    pub to: Vip,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Somebody answered, and said who it is.
    Answered(String),
    /// Refused, and at once.
    Refused,
    /// Refused after a while, as an ICMP error does to TCP over IPv6.
    RefusedLate,
    /// The node's own kernel would not send it: what is refused and what is dropped in the output hook is the same (`EPERM`)
    /// to a socket that is not TCP's.
    NotSent,
    /// Nothing came back.
    Unanswered,
}

/// The VIP at this address and port.
pub fn vip(at: &str, protocol: Protocol) -> Vip {
    let at: SocketAddr = at.parse().unwrap_or_else(|error| panic!("{at}: {error}"));
    Vip {
        address: at.ip(),
        protocol,
        port: at.port(),
    }
}

/// The same places over TCP and over UDP.
pub fn vips<'a>(at: impl IntoIterator<Item = &'a str>) -> Vec<Vip> {
    let both = |at| [Protocol::Tcp, Protocol::Udp].map(|protocol| vip(at, protocol));
    at.into_iter().flat_map(both).collect()
}

/// Everybody asks everywhere.
pub fn asks<'a>(from: impl IntoIterator<Item = &'a Netns>, to: &[Vip]) -> Vec<Ask> {
    let each = |from: &'a Netns| {
        to.iter().map(move |to| Ask {
            from: from.clone(),
            source: None,
            to: *to,
        })
    };
    from.into_iter().flat_map(each).collect()
}

impl Ask {
    /// Asks from this address, which the namespace must have.
    pub fn from_address(from: &Netns, source: IpAddr, to: Vip) -> Self {
        Self {
            from: from.clone(),
            source: Some(source),
            to,
        }
    }

    fn says(&self) -> String {
        let source = self.source.map(|source| format!(" ({source})")).unwrap_or_default();
        format!("{} from {}{source}", self.to, self.from.name())
    }

    fn once(&self, limit: Duration) -> io::Result<String> {
        let target = SocketAddr::new(self.to.address, self.to.port);
        match (self.to.protocol, self.source) {
            (Protocol::Tcp, None) => tcp_identity(&self.from, target, limit),
            (Protocol::Tcp, Some(source)) => tcp_identity_from(&self.from, source, target, limit),
            (Protocol::Udp, source) => {
                let any: IpAddr = if target.is_ipv4() {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    Ipv6Addr::UNSPECIFIED.into()
                };
                let source = SocketAddr::new(source.unwrap_or(any), fresh_port());
                udp_identity_from(&self.from, source, target, limit)
            }
            (Protocol::Sctp, _) => sctp_identity(&self.from, target, limit),
        }
    }

    /// Asks once, and waits so long for an answer.
    pub fn fate_within(&self, limit: Duration) -> Fate {
        let asked = Instant::now();
        match self.once(limit) {
            Ok(identity) => Fate::Answered(identity),
            Err(error) => match error.kind() {
                ErrorKind::TimedOut => Fate::Unanswered,
                ErrorKind::PermissionDenied => Fate::NotSent,
                ErrorKind::ConnectionRefused if asked.elapsed() > AT_ONCE => Fate::RefusedLate,
                ErrorKind::ConnectionRefused => Fate::Refused,
                _ => panic!("{}: {error}", self.says()),
            },
        }
    }

    /// Asks once, and must hear somebody.
    pub fn answer(&self) -> String {
        match self.fate_within(LIMIT) {
            Fate::Answered(identity) => identity,
            fate => panic!("{}: {fate:?}", self.says()),
        }
    }

    /// Asks until all of these have answered; nobody else may.
    fn is_answered_by(&self, expected: &BTreeSet<&str>) {
        let mut seen = BTreeSet::new();
        for draw in 0..MOST_DRAWS {
            let identity = self.answer();
            assert!(
                expected.contains(identity.as_str()),
                "{}: answered by {identity}, not by one of {expected:?}",
                self.says()
            );
            seen.insert(identity);
            if seen.len() == expected.len() && (draw + 1 >= FEWEST_DRAWS) {
                return;
            }
        }
        panic!("{}: only {seen:?} of {expected:?} ever answered", self.says());
    }
}

/// A port that no datagram of this lab came from before. The kernel would soon give one again, and connection tracking
/// remembers for half a minute where its datagrams went.
fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    42_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 22_000
}

/// Every question is answered by all of these in the long run, and by nobody else.
pub fn answered_by<'a>(asks: &[Ask], identities: impl IntoIterator<Item = &'a str>) {
    let expected: BTreeSet<&str> = identities.into_iter().collect();
    at_once(asks, |ask| ask.is_answered_by(&expected));
}

/// Every question is refused, and at once.
pub fn refused(asks: &[Ask]) {
    at_once(asks, |ask| {
        // On a busy machine one may come late for no fault of the table's; not three in a row.
        let mut tries = (0..3).map(|_| ask.fate_within(LIMIT));
        let late = Fate::RefusedLate;
        let fate = tries.find(|fate| *fate != late).unwrap_or(late);
        assert!(
            matches!(fate, Fate::Refused | Fate::NotSent),
            "{}: {fate:?}",
            ask.says()
        );
    });
}

/// No question gets an answer or a refusal.
pub fn unanswered(asks: &[Ask]) {
    at_once(asks, |ask| {
        let fate = ask.fate_within(SILENCE);
        assert!(
            matches!(fate, Fate::Unanswered | Fate::NotSent),
            "{}: {fate:?}",
            ask.says()
        );
    });
}

/// All of them at the same time: most of a silence is waiting.
fn at_once(asks: &[Ask], look: impl Fn(&Ask) + Sync) {
    assert!(!asks.is_empty(), "nothing was asked, so nothing is proven");
    let look = &look;
    std::thread::scope(|scope| {
        let looks: Vec<_> = asks.iter().map(|ask| scope.spawn(move || look(ask))).collect();
        for look in looks {
            if let Err(panic) = look.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}
