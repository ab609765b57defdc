//! The verdict: every check's finding, gathered. `Unknown` is never ready.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::check;
use crate::inventory::Report;

/// What a node's report is judged by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A node that was silent for longer is unknown.
    pub max_silence: SignedDuration,
}

impl Default for Policy {
    /// Two minutes: four missed heartbeats of the 30 s that the server asks agents for.
    fn default() -> Self {
        Self {
            max_silence: SignedDuration::from_secs(120),
        }
    }
}

/// A node's newest report and when it last spoke, by the server's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// The report.
    pub report: Report,
    /// When it was stored, by the server's clock.
    pub reported_at: Timestamp,
    /// When work on the node last ended that may have changed its proxy, if there was any.
    pub moved_at: Option<Timestamp>,
    /// When the node last spoke to the server, with a report or without.
    pub last_seen_at: Timestamp,
}

/// A reason that stands in the way, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Reason {
    /// Stable code for tooling, for example `kernel-too-old`.
    pub code: String,
    /// The finding with its evidence, for a person.
    pub message: String,
    /// What would clear it.
    pub remedy: String,
}

impl Reason {
    pub(crate) fn new(code: &str, message: String, remedy: &str) -> Self {
        Self {
            code: code.to_owned(),
            message,
            remedy: remedy.to_owned(),
        }
    }
}

/// Whether a node may be moved now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing stands in the way.
    Ready,
    /// Moving it would break something; the reasons say what.
    Blocked(BTreeSet<Reason>),
    /// We cannot tell. Never treated as ready.
    Unknown(BTreeSet<Reason>),
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing stands in the way.
    Clear,
    /// This does.
    Blocker(Reason),
    /// The check could not tell.
    CannotTell(Reason),
    /// Nothing stands in the way, and this should be known all the same.
    Warning(Reason),
}

/// Runs every check. Blockers outweigh unknowns: a node that is surely blocked is blocked, whatever else is unread.
pub fn assess(reported: Option<&Reported>, policy: &Policy, now: Timestamp) -> Verdict {
    let Some(reported) = reported else {
        let reason = Reason::new(
            "never-reported",
            "the node has not sent a report yet".to_owned(),
            "start the agent on the node and look at its log",
        );
        return Verdict::Unknown(BTreeSet::from([reason]));
    };
    let mut blockers = BTreeSet::new();
    let mut unknowns = BTreeSet::new();
    for finding in findings(reported, policy, now) {
        match finding {
            Finding::Clear | Finding::Warning(_) => {}
            Finding::Blocker(reason) => {
                blockers.insert(reason);
            }
            Finding::CannotTell(reason) => {
                unknowns.insert(reason);
            }
        }
    }
    if !blockers.is_empty() {
        Verdict::Blocked(blockers)
    } else if !unknowns.is_empty() {
        Verdict::Unknown(unknowns)
    } else {
        Verdict::Ready
    }
}

/// What should be known of a node although it does not stand in the way; none before the first report.
pub fn warnings(reported: Option<&Reported>, policy: &Policy, now: Timestamp) -> BTreeSet<Reason> {
    let findings = reported
        .into_iter()
        .flat_map(|reported| findings(reported, policy, now));
    findings
        .filter_map(|finding| match finding {
            Finding::Warning(reason) => Some(reason),
            _ => None,
        })
        .collect()
}

fn findings(reported: &Reported, policy: &Policy, now: Timestamp) -> [Finding; 7] {
    let report = &reported.report;
    [
        check::silence::check(reported.last_seen_at, policy, now),
        check::outdated::check(reported),
        check::kernel::check(report),
        check::nft::check(report),
        check::proxy_mode::check(report),
        check::left_overs::check(report),
        check::cni::check(report),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{Fact, KernelRelease, OsRelease, ProxyEvidence, Version};
    use crate::readiness::mode::tests::{ipvs, legacy, nftables, nothing};
    use proptest::prelude::*;

    fn debian_12() -> Report {
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
            proxy: legacy(),
            cni: Fact::Known(vec!["flannel".to_owned()]),
        }
    }

    fn fresh(report: Report) -> Reported {
        Reported {
            report,
            reported_at: Timestamp::UNIX_EPOCH,
            moved_at: None,
            last_seen_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_report_from_before_the_nodes_last_move_tells_nothing() {
        let mut reported = fresh(debian_12());
        reported.moved_at = Some(Timestamp::UNIX_EPOCH);
        let verdict = assess(Some(&reported), &Policy::default(), Timestamp::UNIX_EPOCH);
        assert_eq!(codes(&verdict), ["report-outdated"]);
        reported.reported_at += SignedDuration::from_millis(1);
        let verdict = assess(Some(&reported), &Policy::default(), Timestamp::UNIX_EPOCH);
        assert_eq!(verdict, Verdict::Ready);
    }

    fn judge(report: Report) -> Verdict {
        let reported = fresh(report);
        assess(Some(&reported), &Policy::default(), Timestamp::UNIX_EPOCH)
    }

    fn codes(verdict: &Verdict) -> Vec<&str> {
        match verdict {
            Verdict::Ready => vec![],
            Verdict::Blocked(reasons) | Verdict::Unknown(reasons) => reasons.iter().map(|r| r.code.as_str()).collect(),
        }
    }

    #[test]
    fn debian_12_in_iptables_mode_is_ready() {
        assert_eq!(judge(debian_12()), Verdict::Ready);
    }

    #[test]
    fn silence_and_never_reported_are_unknown() {
        assert_eq!(
            codes(&assess(None, &Policy::default(), Timestamp::UNIX_EPOCH)),
            ["never-reported"]
        );
        let reported = fresh(debian_12());
        let later = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(121);
        assert_eq!(codes(&assess(Some(&reported), &Policy::default(), later)), ["silent"]);
    }

    #[test]
    fn old_kernels_and_calico_block() {
        let old = Report {
            kernel: Fact::Known(KernelRelease::parse("5.10.0-30-amd64").unwrap()),
            ..debian_12()
        };
        assert_eq!(codes(&judge(old)), ["kernel-too-old"]);
        let calico = Report {
            cni: Fact::Known(vec!["calico".to_owned()]),
            ..debian_12()
        };
        assert_eq!(codes(&judge(calico)), ["cni-lock-step"]);
    }

    #[test]
    fn every_mode_of_kube_proxys_is_ready() {
        for proxy in [legacy(), ipvs(), nftables()] {
            assert_eq!(judge(Report { proxy, ..debian_12() }), Verdict::Ready);
        }
    }

    #[test]
    fn what_cannot_be_moved_from_is_refused_and_says_why() {
        let cilium = ProxyEvidence {
            foreign_links: Fact::Known(vec!["cilium_host".to_owned()]),
            ..legacy()
        };
        let two = ProxyEvidence {
            iptables_nft: legacy().iptables_legacy,
            ..nftables()
        };
        for (proxy, code) in [
            (nothing(), "proxy-mode-unsupported"),
            (cilium, "proxy-mode-unsupported"),
            (two, "proxy-mode-ambiguous"),
        ] {
            let verdict = judge(Report { proxy, ..debian_12() });
            assert_eq!(codes(&verdict), [code]);
            assert!(matches!(verdict, Verdict::Blocked(_)));
        }
        let contradicted = ProxyEvidence {
            kube_proxy_says: Fact::Known("ipvs".to_owned()),
            ..legacy()
        };
        let verdict = judge(Report {
            proxy: contradicted,
            ..debian_12()
        });
        assert_eq!(codes(&verdict), ["proxy-mode-unknown"]);
        assert!(matches!(verdict, Verdict::Unknown(_)));
    }

    #[test]
    fn left_overs_are_told_and_stand_in_nobodys_way() {
        let two = ProxyEvidence {
            iptables_nft: legacy().iptables_legacy,
            kube_proxy_says: Fact::Known("nftables".to_owned()),
            ..nftables()
        };
        let told = |proxy| {
            let reported = fresh(Report { proxy, ..debian_12() });
            assert_eq!(
                assess(Some(&reported), &Policy::default(), Timestamp::UNIX_EPOCH),
                Verdict::Ready
            );
            warnings(Some(&reported), &Policy::default(), Timestamp::UNIX_EPOCH)
        };
        assert_eq!(told(nftables()), BTreeSet::new());
        let told = told(two);
        assert_eq!(told.len(), 1);
        let warning = told.first().unwrap();
        assert_eq!(warning.code, "proxy-left-overs");
        assert!(warning.message.contains("iptables-nft"), "{}", warning.message);
        assert_eq!(
            warnings(None, &Policy::default(), Timestamp::UNIX_EPOCH),
            BTreeSet::new()
        );
    }

    proptest! {
        #[test]
        fn no_combination_of_missing_facts_is_ready(missing in 1u16..0x800) {
            let mut report = debian_12();
            let gone = || "unread".to_owned();
            if missing & 1 != 0 { report.kernel = Fact::Missing(gone()); }
            if missing & 2 != 0 { report.nft = Fact::Missing(gone()); }
            if missing & 4 != 0 { report.proxy.iptables_legacy = Fact::Missing(gone()); }
            if missing & 8 != 0 { report.proxy.iptables_nft = Fact::Missing(gone()); }
            if missing & 16 != 0 { report.proxy.ipvs_services = Fact::Missing(gone()); }
            if missing & 32 != 0 { report.proxy.kube_proxy_tables = Fact::Missing(gone()); }
            if missing & 64 != 0 { report.proxy.nftfleet_table = Fact::Missing(gone()); }
            if missing & 128 != 0 { report.cni = Fact::Missing(gone()); }
            if missing & 256 != 0 { report.proxy.ipvs_link = Fact::Missing(gone()); }
            if missing & 512 != 0 { report.proxy.live_kube_proxy_tables = Fact::Missing(gone()); }
            if missing & 1024 != 0 { report.proxy.foreign_links = Fact::Missing(gone()); }
            prop_assert!(judge(report) != Verdict::Ready);
        }
    }
}
