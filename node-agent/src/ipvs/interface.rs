//! `kube-ipvs0`, the device that has every Service's addresses, so that the kernel takes packets to them for its own.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use nftfleet_domain::service::Family;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use serde::Deserialize;

use super::known::Known;
use super::{IpvsError, run_well};
use crate::host::Host;
use crate::node_addresses::OF_IPVS;

/// A route of the table `local`, as `ip -json` prints it.
#[derive(Debug, Deserialize)]
struct Route {
    /// An address, or a network for what is no route to one address.
    dst: String,
    protocol: String,
    prefsrc: Option<IpAddr>,
}

/// Whether the calling thread's network namespace has the device.
///
/// # Errors
/// The kernel does not tell.
pub fn exists() -> Result<bool, IpvsError> {
    match if_nametoindex(OF_IPVS) {
        Ok(_) => Ok(true),
        Err(Errno::ENODEV) => Ok(false),
        Err(errno) => Err(IpvsError::Addresses { source: errno.into() }),
    }
}

/// Its addresses, without link-local ones, which the kernel gives to each device.
///
/// # Errors
/// The kernel does not tell.
pub fn addresses() -> Result<BTreeSet<IpAddr>, IpvsError> {
    let all = getifaddrs().map_err(|errno| IpvsError::Addresses { source: errno.into() })?;
    let ip = |found: nix::ifaddrs::InterfaceAddress| {
        let address = found.address.filter(|_| found.interface_name == OF_IPVS)?;
        match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
            (None, Some(v6)) => Some(IpAddr::V6(v6.ip())).filter(|_| !v6.ip().is_unicast_link_local()),
            (None, None) => None,
        }
    };
    Ok(all.filter_map(ip).collect())
}

/// Makes the node's own processes connect to Services from the node's address, no longer from the Service's own, which goes
/// with the device. Gives the number of addresses for which this was not so.
///
/// IPv4's routes are replaced. IPv6 does not replace what the kernel has made for an address: ours comes behind it, with a
/// metric, and then the kernel's goes. There the device must be up, which kube-proxy's is not; nothing else hangs on that, and
/// all routes go with it.
///
/// # Errors
/// `ip` refused.
pub fn move_sources(host: &dyn Host, known: &Known, addresses: &BTreeSet<IpAddr>) -> Result<usize, IpvsError> {
    let mut moved = 0;
    for family in Family::BOTH {
        let addresses: BTreeSet<IpAddr> = addresses.iter().copied().filter(|a| Family::of(*a) == family).collect();
        let Some(source) = known.source(family).filter(|_| !addresses.is_empty()) else {
            continue;
        };
        if family == Family::V6 {
            run_well(host, "ip", &["link", "set", "dev", OF_IPVS, "up"], "")?;
        }
        let routes = routes(host, family)?;
        let script = script(family, source, &addresses, &routes);
        moved += script.addresses;
        if script.addresses > 0 {
            run_well(host, "ip", &[flag(family), "-batch", "-"], &script.text)?;
        }
    }
    Ok(moved)
}

struct Script {
    text: String,
    addresses: usize,
}

fn script(family: Family, source: IpAddr, addresses: &BTreeSet<IpAddr>, routes: &[Route]) -> Script {
    let mut script = Script {
        text: String::new(),
        addresses: 0,
    };
    for address in addresses {
        let of_address = |route: &&Route| route.dst.parse() == Ok(*address);
        // The first one is the one that is used.
        let first = routes.iter().find(of_address);
        if first.is_some_and(|route| route.prefsrc == Some(source)) {
            continue;
        }
        script.addresses += 1;
        let text = &mut script.text;
        let _ = match family {
            Family::V4 => writeln!(
                text,
                "route replace local {address} dev {OF_IPVS} table local proto kernel scope host src {source}"
            ),
            Family::V6 => writeln!(
                text,
                "route replace local {address} dev {OF_IPVS} table local proto static src {source}"
            ),
        };
        let is_kernels = |route: &Route| family == Family::V6 && route.protocol == "kernel";
        if first.is_some_and(is_kernels) {
            let _ = writeln!(
                text,
                "route delete local {address} dev {OF_IPVS} table local proto kernel"
            );
        }
    }
    script
}

fn routes(host: &dyn Host, family: Family) -> Result<Vec<Route>, IpvsError> {
    let arguments = [flag(family), "-json", "route", "show", "table", "local", "dev", OF_IPVS];
    let text = run_well(host, "ip", &arguments, "")?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&text).map_err(|error| IpvsError::Failed {
        program: "ip",
        complaint: format!("it printed routes that make no sense: {error}"),
    })
}

const fn flag(family: Family) -> &'static str {
    match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}

/// Deletes the device, its addresses and their routes.
///
/// # Errors
/// `ip` refused.
pub fn delete(host: &dyn Host) -> Result<(), IpvsError> {
    run_well(host, "ip", &["link", "delete", "dev", OF_IPVS], "").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn route(dst: &str, protocol: &str, prefsrc: Option<&str>) -> Route {
        Route {
            dst: dst.to_owned(),
            protocol: protocol.to_owned(),
            prefsrc: prefsrc.map(ip),
        }
    }

    #[test]
    fn only_what_is_not_moved_yet_is_moved() {
        let addresses = [ip("10.96.0.1"), ip("10.96.0.9")].into();
        let routes = [
            route("10.96.0.1", "kernel", Some("10.96.0.1")),
            route("10.96.0.9", "kernel", Some("192.0.2.1")),
            // Made anew by the kernel when the device came up; the first one counts.
            route("10.96.0.9", "kernel", Some("10.96.0.9")),
        ];
        let written = script(Family::V4, ip("192.0.2.1"), &addresses, &routes);
        assert_eq!(written.addresses, 1);
        assert_eq!(
            written.text,
            "route replace local 10.96.0.1 dev kube-ipvs0 table local proto kernel scope host src 192.0.2.1\n"
        );

        let addresses = [ip("fd00::1"), ip("fd00::2"), ip("fd00::3")].into();
        let routes = [
            route("fd00::1", "kernel", None),
            route("fd00::1", "static", Some("fd99::1")),
            route("fd00::3", "static", Some("fd99::1")),
            route("ff00::/8", "kernel", None),
        ];
        let written = script(Family::V6, ip("fd99::1"), &addresses, &routes);
        assert_eq!(written.addresses, 2);
        assert_eq!(
            written.text,
            "route replace local fd00::1 dev kube-ipvs0 table local proto static src fd99::1\n\
             route delete local fd00::1 dev kube-ipvs0 table local proto kernel\n\
             route replace local fd00::2 dev kube-ipvs0 table local proto static src fd99::1\n"
        );
    }
}
