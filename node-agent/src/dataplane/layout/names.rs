//! The names of a family's sets and chains.

use nftfleet_domain::service::Family;

/// `4` or `6`.
pub fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

/// The map from VIP and slot to endpoint.
pub fn endpoints(family: Family) -> String {
    format!("endpoints{}", digit(family))
}

/// The set of all `ClusterIP`s.
pub fn cluster_ips(family: Family) -> String {
    format!("cluster-ips{}", digit(family))
}

/// The set of local endpoints that may reach themselves.
pub fn hairpin(family: Family) -> String {
    format!("hairpin{}", digit(family))
}

/// The set of a class's VIPs.
pub fn service(family: Family, class: u16) -> String {
    format!("service{}-{class}", digit(family))
}

/// The chain that draws a slot of a class.
pub fn slots(family: Family, class: u16) -> String {
    format!("slots{}-{class}", digit(family))
}
