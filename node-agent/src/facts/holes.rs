//! Holes that kube-proxy makes in a node's firewall, and that go with its rules.
//!
//! Only an iptables rule can be such a hole, and only in the backend that it stands in: what decides is the base chain of the
//! firewall, and an `accept` elsewhere, be it of kube-proxy's nftables tables, of the other backend or of ours, does not keep
//! a later base chain (firewalld's, for one) from dropping. So a node that leaves kube-proxy's nftables mode loses no hole,
//! and firewalls written for nft decide after a move as they did before.

use std::collections::BTreeSet;

use super::iptables::{SavedTable, is_kube_proxys, reached, tables};

/// What a node would lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hole {
    /// KUBE-FORWARD lets packets to endpoints and their answers through a `FORWARD` that drops or rejects.
    Forward,
    /// KUBE-NODEPORTS (KUBE-NODE-PORT in IPVS mode) lets load balancers' health checks through an `INPUT` that does.
    HealthChecks,
    /// Not a hole but a way around: IPVS takes packets at `INPUT` and sends them from `OUTPUT`. After a move they are forwarded,
    /// and here is a `FORWARD` that drops or rejects.
    Detour,
}

impl Hole {
    /// Its code for tooling, and what it means, for a person.
    pub const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Forward => (
                "forward-closed",
                "a FORWARD chain that drops or rejects, and kube-proxy's KUBE-FORWARD in it, which the move takes away: open \
                 FORWARD first (which other rules would do can't be told yet)",
            ),
            Self::HealthChecks => (
                "input-closed",
                "an INPUT chain that drops or rejects, and kube-proxy's rules in it that let load balancers' health checks \
                 pass, which the move takes away: open the health check ports first",
            ),
            Self::Detour => (
                "forward-closed",
                "a FORWARD chain that drops or rejects: connections that IPVS has sent past it will be forwarded; open \
                 FORWARD first",
            ),
        }
    }
}

/// What a node loses whose `iptables-save` of one backend and family prints this. `ipvs`: whether its IPVS answers now.
///
/// Docker sets a policy of DROP (kubernetes/kubernetes#39823), as ufw does; the stock firewall of RHEL ends in a REJECT.
pub fn taken_away(saved: &str, ipvs: bool) -> BTreeSet<Hole> {
    let mut holes = BTreeSet::new();
    for table in tables(saved).iter().filter(|table| table.name == "filter") {
        let jumps = |from: &str, to: &str| table.rules.iter().any(|r| r.chain == from && r.target == Some(to));
        if is_closed(table, "FORWARD") {
            if jumps("FORWARD", "KUBE-FORWARD") {
                holes.insert(Hole::Forward);
            } else if ipvs {
                holes.insert(Hole::Detour);
            }
        }
        let accepts = |chain: &&str| jumps("INPUT", chain) && jumps(chain, "ACCEPT");
        if is_closed(table, "INPUT") && ["KUBE-NODEPORTS", "KUBE-NODE-PORT"].iter().any(accepts) {
            holes.insert(Hole::HealthChecks);
        }
    }
    holes
}

/// Whether the chain's policy is not ACCEPT, or it drops or rejects anything, itself or in a chain of others that it leads to.
fn is_closed(table: &SavedTable<'_>, chain: &str) -> bool {
    let policy = table.chains.iter().find(|c| c.name == chain).and_then(|c| c.policy);
    let mut others = table.clone();
    others.rules.retain(|rule| !is_kube_proxys(rule.chain));
    let reached = reached(&others, &[chain]);
    policy.is_some_and(|policy| policy != "ACCEPT")
        || ["DROP", "REJECT"].iter().any(|refusal| reached.contains(refusal))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORWARD: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:KUBE-FORWARD - [0:0]\n\
                           -A FORWARD -j KUBE-FORWARD\n-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n";

    fn holes(saved: &str) -> Vec<Hole> {
        taken_away(saved, false).into_iter().collect()
    }

    #[test]
    fn a_closed_forward_chain_with_kube_proxys_hole_is_seen() {
        assert_eq!(holes(FORWARD), [Hole::Forward]);
        let open = FORWARD.replace("FORWARD DROP", "FORWARD ACCEPT");
        assert_eq!(holes(&open), [], "what KUBE-FORWARD itself drops is no firewall");
        assert_eq!(holes(&FORWARD.replace("-A FORWARD -j KUBE-FORWARD\n", "")), []);
        let elsewhere = open.replace("COMMIT", "-A FORWARD -j FWD\n-A FWD -j LAST\n-A LAST -j REJECT\nCOMMIT");
        assert_eq!(holes(&elsewhere), [Hole::Forward]);
    }

    #[test]
    fn where_ipvs_answers_a_closed_forward_chain_is_new_to_its_packets() {
        let bare = FORWARD.replace("-A FORWARD -j KUBE-FORWARD\n", "");
        assert_eq!(taken_away(&bare, true), BTreeSet::from([Hole::Detour]));
        assert_eq!(taken_away(FORWARD, true), BTreeSet::from([Hole::Forward]));
        assert_eq!(
            taken_away(&bare.replace("FORWARD DROP", "FORWARD ACCEPT"), true),
            BTreeSet::new()
        );
    }

    #[test]
    fn health_checks_that_pass_by_kube_proxys_leave_are_seen() {
        let node = "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n-A INPUT -j KUBE-NODEPORTS\n\
                    -A KUBE-NODEPORTS -p tcp -m tcp --dport 31000 -j ACCEPT\nCOMMIT\n";
        assert_eq!(holes(node), [Hole::HealthChecks]);
        assert_eq!(holes(&node.replace("INPUT DROP", "INPUT ACCEPT")), []);
        assert_eq!(holes(&node.replace("--dport 31000 -j ACCEPT", "--dport 31000")), []);
        let rejected = node
            .replace("INPUT DROP", "INPUT ACCEPT")
            .replace("COMMIT", "-A INPUT -j REJECT\nCOMMIT");
        assert_eq!(holes(&rejected), [Hole::HealthChecks]);
    }
}
