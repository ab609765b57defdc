//! kube-proxy's ipsets, which its iptables rules look into.

use super::{IpvsError, run, run_well};
use crate::host::Host;

/// The names behind `KUBE-` (IPv4) and `KUBE-6-` (IPv6), of all releases since 1.10: pkg/proxy/ipvs/ipset.go.
const NAMES: [&str; 19] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
    // Until 1.14.
    "NODE-PORT-SCTP",
    "NODE-PORT-LOCAL-SCTP",
];

/// The longest name of an ipset (`IPSET_MAXNAMELEN` without the closing zero). kube-proxy cuts its own off there.
const LONGEST: usize = 31;

/// Whether an ipset is kube-proxy's. Network plugins use `KUBE-` too (kube-router), so only whole names count.
pub fn is_kube_proxys(name: &str) -> bool {
    NAMES.iter().any(|known| {
        let v4 = format!("KUBE-{known}");
        let mut v6 = format!("KUBE-6-{known}");
        v6.truncate(LONGEST);
        name == v4 || name == v6
    })
}

/// Whether no health check port of a load balancer is in kube-proxy's sets. What can't be told is no.
pub fn are_without_health_checks(host: &dyn Host) -> bool {
    let is_empty = |name: &str| {
        let listed = host.run("ipset", &["list", name, "-terse"], "");
        listed.is_ok_and(|ran| {
            let is_empty = ran.stdout.lines().any(|line| line.trim() == "Number of entries: 0");
            (ran.succeeded && is_empty) || ran.stderr.contains("does not exist")
        })
    };
    ["KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-6-HEALTH-CHECK-NODE-PORT"]
        .into_iter()
        .all(is_empty)
}

/// kube-proxy's ipsets that are there, sorted.
///
/// # Errors
/// There is no `ipset`, or it fails.
pub fn list(host: &dyn Host) -> Result<Vec<String>, IpvsError> {
    let text = run_well(host, "ipset", &["list", "-name"], "")?;
    let mut sets: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|name| is_kube_proxys(name))
        .map(str::to_owned)
        .collect();
    sets.sort();
    Ok(sets)
}

/// Destroys kube-proxy's ipsets that no rule needs any more; those that are still there.
///
/// # Errors
/// As [`list`].
pub fn remove(host: &dyn Host) -> Result<Vec<String>, IpvsError> {
    for set in list(host)? {
        // The kernel refuses as long as a rule looks into it; what is left is listed below.
        run(host, "ipset", &["destroy", &set], "")?;
    }
    list(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_are_kube_proxys() {
        for own in [
            "KUBE-CLUSTER-IP",
            "KUBE-6-CLUSTER-IP",
            "KUBE-IPVS-IPS",
            "KUBE-LOAD-BALANCER-SOURCE-CIDR",
            // Cut off.
            "KUBE-6-LOAD-BALANCER-SOURCE-CID",
            "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS",
        ] {
            assert!(is_kube_proxys(own), "{own}");
        }
        for other in [
            "KUBE-DST-3YNVZWWGX3UQQ4VQ",
            "KUBE-SRC-3YNVZWWGX3UQQ4VQ",
            "KUBE-CLUSTER-IP-2",
            "KUBE-6-LOAD-BALANCER-SOURCE-CIDR",
            "CLUSTER-IP",
            "kube-router-pod-subnets",
            "cali40all-ipam-pools",
        ] {
            assert!(!is_kube_proxys(other), "{other}");
        }
    }
}
