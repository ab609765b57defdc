//! What the tests of this crate share: a clock that stands still, identities that repeat, a ready node's report.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::{SignedDuration, Timestamp};
use nftfleet_domain::inventory::{
    Fact, IptablesEvidence, KernelRelease, OsRelease, ProxyEvidence, Report, TableState, Version,
};
use uuid::Uuid;

use crate::clock::{Clock, Ids};

/// A clock that moves only when it is told to.
pub(crate) struct TestClock(Mutex<Timestamp>);

impl TestClock {
    pub(crate) fn new() -> Self {
        Self(Mutex::new("2025-11-24T12:00:00Z".parse().unwrap()))
    }

    pub(crate) fn advance(&self, seconds: i64) {
        *self.0.lock().unwrap() += SignedDuration::from_secs(seconds);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

/// Identities that count up, and secrets that are made of them.
#[derive(Default)]
pub(crate) struct TestIds(AtomicU64);

impl Ids for TestIds {
    fn id(&self) -> Uuid {
        Uuid::from_u128((7 << 76) | u128::from(self.0.fetch_add(1, Ordering::Relaxed) + 1))
    }

    fn secret(&self) -> [u8; 32] {
        let mut secret = [7; 32];
        secret[..16].copy_from_slice(self.id().as_bytes());
        secret
    }
}

/// The report of a node that can be moved.
pub(crate) fn ready_report() -> Report {
    Report {
        taken_at: Timestamp::UNIX_EPOCH,
        agent_version: "0.1.0".to_owned(),
        kernel: Fact::Known(KernelRelease::parse("6.1.0-56-amd64").unwrap()),
        os: Fact::Known(OsRelease {
            id: "debian".to_owned(),
            version_id: "12".to_owned(),
            pretty_name: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        }),
        nft: Fact::Known(Version::new(1, 0, 6)),
        proxy: ProxyEvidence {
            iptables_legacy: Fact::Known(IptablesEvidence::default()),
            iptables_nft: Fact::Known(IptablesEvidence {
                dispatch_jumps: 2,
                service_chains: 3,
                reached_service_chains: 3,
                endpoint_chains: 9,
                ipset_rules: 0,
            }),
            ipvs_services: Fact::Known(0),
            ipvs_link: Fact::Known(false),
            kube_proxy_tables: Fact::Known(vec![]),
            live_kube_proxy_tables: Fact::Known(vec![]),
            kube_proxy_says: Fact::Known("iptables".to_owned()),
            foreign_links: Fact::Known(vec![]),
            nftfleet_table: Fact::Known(TableState::Absent),
        },
        cni: Fact::Known(vec!["flannel".to_owned()]),
    }
}

/// The report of a node whose kernel is too old.
pub(crate) fn blocked_report() -> Report {
    Report {
        kernel: Fact::Known(KernelRelease::parse("4.19.0-1").unwrap()),
        ..ready_report()
    }
}
