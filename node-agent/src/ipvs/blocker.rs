//! Why a node must not be moved from IPVS as it is.

use std::fmt;
use std::net::SocketAddr;

use nftfleet_domain::service::Family;

use super::service::{Forwarding, Frontend};
use super::{IpvsError, read_if_there};
use crate::host::Host;

/// What must be set for live connections to survive, each measured on Debian's 6.1 kernel: without the first every connection
/// is reset at the flip, without the second they stall when the virtual services go. Without the third, conntrack does not
/// pick up what goes on without a beginning.
const SWITCHES: [(&str, Blocker); 3] = [
    ("/proc/sys/net/ipv4/vs/conntrack", Blocker::ConntrackOff),
    ("/proc/sys/net/ipv4/vs/expire_nodest_conn", Blocker::ExpireNodestOff),
    (
        "/proc/sys/net/netfilter/nf_conntrack_tcp_loose",
        Blocker::ConntrackStrict,
    ),
];

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocker {
    /// `net.ipv4.vs.conntrack` is not 1.
    ConntrackOff,
    /// `net.ipv4.vs.expire_nodest_conn` is not 1.
    ExpireNodestOff,
    /// `net.netfilter.nf_conntrack_tcp_loose` is 0.
    ConntrackStrict,
    /// A virtual service of kube-proxy's forwards in another way than by translation.
    NotMasqueraded {
        /// The virtual service.
        service: Frontend,
        /// The destination.
        destination: SocketAddr,
        /// The way.
        forwarding: Forwarding,
    },
    /// The node has Services of a family, but no address of its own to connect to them from.
    NoNodeAddress(Family),
}

impl Blocker {
    /// A code that stays the same.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ConntrackOff => "ipvs-conntrack-off",
            Self::ExpireNodestOff => "ipvs-expire-nodest-off",
            Self::ConntrackStrict => "ipvs-conntrack-strict",
            Self::NotMasqueraded { .. } => "ipvs-not-masqueraded",
            Self::NoNodeAddress(_) => "ipvs-no-node-address",
        }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConntrackOff => f.write_str(
                "net.ipv4.vs.conntrack is not 1: IPVS' connections would be reset by the move; kube-proxy sets it at its start",
            ),
            Self::ExpireNodestOff => f.write_str(
                "net.ipv4.vs.expire_nodest_conn is not 1: IPVS' connections would stall when the virtual services go; \
                 kube-proxy sets it at its start",
            ),
            Self::ConntrackStrict => f.write_str(
                "net.netfilter.nf_conntrack_tcp_loose is 0: IPVS' connections could not be picked up in their middle",
            ),
            Self::NotMasqueraded {
                service,
                destination,
                forwarding,
            } => write!(
                f,
                "IPVS forwards {service} to {destination} as {forwarding:?}, and not by translation as kube-proxy does"
            ),
            Self::NoNodeAddress(family) => write!(
                f,
                "kube-ipvs0 has {family} addresses, but the node has none of its own to connect to Services from"
            ),
        }
    }
}

/// The kernel's switches that are not as they must be.
pub(super) fn switches(host: &dyn Host) -> Result<Vec<Blocker>, IpvsError> {
    let mut blockers = Vec::new();
    for (path, blocker) in SWITCHES {
        // A kernel whose IPVS was built without one does not have the file.
        if read_if_there(host, path)?.trim() != "1" {
            blockers.push(blocker);
        }
    }
    Ok(blockers)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;
    use std::path::Path;

    use super::*;
    use crate::host::Ran;

    struct Sysctls(BTreeMap<&'static str, &'static str>);

    impl Host for Sysctls {
        fn read(&self, path: &Path) -> io::Result<String> {
            let found = self.0.iter().find(|(name, _)| path.ends_with(name));
            let text = found.map(|(_, value)| format!("{value}\n"));
            text.ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn list(&self, _: &Path) -> io::Result<Vec<String>> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn run(&self, _: &str, _: &[&str], _: &str) -> io::Result<Ran> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    #[test]
    fn every_switch_that_is_off_blocks() {
        let names = ["vs/conntrack", "vs/expire_nodest_conn", "nf_conntrack_tcp_loose"];
        let codes = ["ipvs-conntrack-off", "ipvs-expire-nodest-off", "ipvs-conntrack-strict"];
        let all_on = Sysctls(names.map(|name| (name, "1")).into());
        assert_eq!(switches(&all_on).unwrap(), []);
        for (name, code) in names.into_iter().zip(codes) {
            let mut sysctls = all_on.0.clone();
            sysctls.insert(name, "0");
            let off = switches(&Sysctls(sysctls.clone())).unwrap();
            assert_eq!(off.iter().map(Blocker::code).collect::<Vec<_>>(), [code]);
            sysctls.remove(name);
            assert_eq!(switches(&Sysctls(sysctls)).unwrap(), off, "a missing {name}");
        }
    }
}
