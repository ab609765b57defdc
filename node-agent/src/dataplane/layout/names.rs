//! The names of a family's sets and chains.

use nftfleet_domain::service::Family;

use crate::dataplane::desired::Route;
use crate::dataplane::programmed::{Group, Which};

/// `4` or `6`.
pub fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

/// The name of a family's chain or set.
pub fn of(name: &str, family: Family) -> String {
    format!("{name}{}", digit(family))
}

/// The map from VIP and slot to endpoint.
pub fn endpoints(family: Family) -> String {
    of("endpoints", family)
}

/// The map from VIP and ticket to endpoint.
pub fn sticky(family: Family) -> String {
    of("sticky", family)
}

/// The map from VIP to what its clients are remembered under.
pub fn affinity_ids(family: Family, which: Which) -> String {
    match which {
        Which::All => of("affinity-ids", family),
        Which::Local => of("affinity-local-ids", family),
    }
}

/// The dynamic map from client to ticket.
pub fn clients(family: Family) -> String {
    of("clients", family)
}

/// The set of all `ClusterIP`s.
pub fn cluster_ips(family: Family) -> String {
    of("cluster-ips", family)
}

/// The set of load balancers' and external addresses.
pub fn external_ips(family: Family) -> String {
    of("external-ips", family)
}

/// The set of the node's addresses on which node ports listen.
pub fn nodeport_ips(family: Family) -> String {
    of("nodeport-ips", family)
}

/// The set of networks of `ClusterIP`s.
pub fn service_cidrs(family: Family) -> String {
    of("service-cidrs", family)
}

/// The set of VIPs to which not everybody may connect.
pub fn firewalled(family: Family) -> String {
    of("firewalled", family)
}

/// The set of VIPs and who may connect to them.
pub fn firewall_sources(family: Family) -> String {
    of("firewall-sources", family)
}

/// The set of local endpoints that may reach themselves.
pub fn hairpin(family: Family) -> String {
    of("hairpin", family)
}

/// The set of VIPs of a route.
pub fn route(family: Family, route: Route) -> String {
    let name = match route {
        Route::ToAll => "to-all",
        Route::ToLocal => "to-local",
        Route::NoEndpoints => "no-endpoints",
        Route::NoLocalEndpoints => "no-local-endpoints",
    };
    of(name, family)
}

/// The set of a group's VIPs.
pub fn group(family: Family, which: Which, group: Group) -> String {
    let digit = digit(family);
    match (which, group) {
        (Which::All, Group::Class(class)) => format!("service{digit}-{class}"),
        (Which::Local, Group::Class(class)) => format!("local{digit}-{class}"),
        (Which::All, Group::Sticky { timeout, class }) => format!("affinity{digit}-{timeout}-{class}"),
        (Which::Local, Group::Sticky { timeout, class }) => format!("local-affinity{digit}-{timeout}-{class}"),
    }
}

/// The group for session affinity whose set has this name, with its family and list.
pub fn sticky_group(name: &str) -> Option<(Family, Which, Group)> {
    let (which, rest) = match name.strip_prefix("local-affinity") {
        Some(rest) => (Which::Local, rest),
        None => (Which::All, name.strip_prefix("affinity")?),
    };
    let mut parts = rest.split('-');
    let family = match parts.next()? {
        "4" => Family::V4,
        "6" => Family::V6,
        _ => return None,
    };
    let timeout = parts.next()?.parse().ok()?;
    let class = parts.next()?.parse().ok()?;
    let group = Group::Sticky { timeout, class };
    (parts.next().is_none() && self::group(family, which, group) == name).then_some((family, which, group))
}

/// The chain that picks an endpoint of a group's VIPs.
pub fn picking(family: Family, which: Which, group: Group) -> String {
    let digit = digit(family);
    match (which, group) {
        (Which::All, Group::Class(class)) => format!("slots{digit}-{class}"),
        (Which::Local, Group::Class(class)) => format!("local-slots{digit}-{class}"),
        (Which::All, Group::Sticky { timeout, class }) => format!("sticky{digit}-{timeout}-{class}"),
        (Which::Local, Group::Sticky { timeout, class }) => format!("local-sticky{digit}-{timeout}-{class}"),
    }
}

/// The chain that draws once for a group's VIPs: a slot, or a ticket that is not remembered.
pub fn draw(family: Family, which: Which, group: Group) -> String {
    let digit = digit(family);
    match (which, group) {
        (Which::All, Group::Class(class)) => format!("draw{digit}-{class}"),
        (Which::Local, Group::Class(class)) => format!("local-draw{digit}-{class}"),
        (Which::All, Group::Sticky { timeout, class }) => format!("unremembered{digit}-{timeout}-{class}"),
        (Which::Local, Group::Sticky { timeout, class }) => format!("local-unremembered{digit}-{timeout}-{class}"),
    }
}

/// The chain that forgets a client's ticket and draws another.
pub fn another_ticket(family: Family, which: Which, timeout: u32, class: u16) -> String {
    let digit = digit(family);
    match which {
        Which::All => format!("another-ticket{digit}-{timeout}-{class}"),
        Which::Local => format!("local-another-ticket{digit}-{timeout}-{class}"),
    }
}

/// The chain that takes the first slot, for all classes of a list.
pub fn first_slot(family: Family, which: Which) -> String {
    match which {
        Which::All => of("first-slot", family),
        Which::Local => of("local-first-slot", family),
    }
}

/// The chain that finds the group of a VIP.
pub fn pick(family: Family, which: Which) -> String {
    match which {
        Which::All => of("pick", family),
        Which::Local => of("pick-local", family),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_read_back() {
        for which in Which::BOTH {
            let group = Group::Sticky {
                timeout: 10800,
                class: 12,
            };
            let name = super::group(Family::V6, which, group);
            assert_eq!(sticky_group(&name), Some((Family::V6, which, group)));
        }
        for other in [
            "affinity-ids4",
            "affinity4-010-1",
            "affinity5-1-1",
            "affinity4-1",
            "affinity4-1-1-1",
            "service4-1",
        ] {
            assert_eq!(sticky_group(other), None, "{other}");
        }
    }
}
