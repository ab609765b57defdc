//! The table's sets and maps.

use nftfleet_domain::service::Family;

use super::{Set, names};
use crate::dataplane::desired::Route;
use crate::dataplane::expression::Field;
use crate::dataplane::programmed::{Group, Which};

/// The fields of a VIP.
pub(super) const VIP: [Field; 3] = [Field::Destination, Field::Protocol, Field::DestinationPort];

/// How many clients with session affinity a node remembers in a family; beyond, new ones are served without it.
const MOST_CLIENTS: u32 = 1 << 20;

fn plain(name: String, family: Family, key: &[Field], comment: &str) -> Set {
    Set {
        name,
        family,
        key: key.to_vec(),
        data: vec![],
        interval: false,
        dynamic: None,
        comment: Some(comment.to_owned()),
    }
}

fn map(name: String, family: Family, key: &[Field], data: &[Field], comment: &str) -> Set {
    Set {
        data: data.to_vec(),
        ..plain(name, family, key, comment)
    }
}

fn intervals(name: String, family: Family, key: &[Field], comment: &str) -> Set {
    Set {
        interval: true,
        ..plain(name, family, key, comment)
    }
}

/// The sets that are always there, but those of groups.
pub(super) fn constant(family: Family) -> Vec<Set> {
    let [destination, protocol, port] = VIP;
    let endpoint = [destination, port];
    let addresses = |name, comment| plain(name, family, &[destination], comment);
    let route = |route, comment| plain(names::route(family, route), family, &VIP, comment);
    let ids = |which, comment| {
        map(
            names::affinity_ids(family, which),
            family,
            &VIP,
            &[Field::Priority],
            comment,
        )
    };
    // nft 1.0.6 can't print updates of maps whose key is longer than 16 bytes, so an IPv6 client is known by its hash.
    let client = match family {
        Family::V4 => Field::Source,
        Family::V6 => Field::Slot,
    };
    vec![
        map(
            names::endpoints(family),
            family,
            &[destination, protocol, port, Field::Slot],
            &endpoint,
            "VIP and slot to endpoint, slots from 32768 are the local list",
        ),
        map(
            names::sticky(family),
            family,
            &[destination, protocol, port, Field::Priority],
            &endpoint,
            "VIP and ticket to endpoint, tickets 4e47 are the local list",
        ),
        ids(Which::All, "VIP to number of its Service port"),
        ids(Which::Local, "VIP to number of its Service port, local list"),
        Set {
            dynamic: Some(MOST_CLIENTS),
            ..map(
                names::clients(family),
                family,
                &[client, Field::Priority],
                &[Field::Priority],
                "client and Service port to ticket",
            )
        },
        addresses(names::cluster_ips(family), "all ClusterIPs"),
        addresses(names::external_ips(family), "load balancer and external addresses"),
        addresses(names::nodeport_ips(family), "node addresses that node ports listen on"),
        intervals(
            names::service_cidrs(family),
            family,
            &[destination],
            "ServiceCIDRs: what is not allocated is dropped",
        ),
        route(Route::ToAll, "external VIPs with traffic policy Cluster"),
        route(Route::ToLocal, "external VIPs with traffic policy Local"),
        route(Route::NoEndpoints, "external VIPs without endpoints: refused"),
        route(
            Route::NoLocalEndpoints,
            "ClusterIPs with traffic policy Local and all endpoints elsewhere: dropped",
        ),
        plain(
            names::firewalled(family),
            family,
            &VIP,
            "VIPs with loadBalancerSourceRanges",
        ),
        intervals(
            names::firewall_sources(family),
            family,
            &[destination, protocol, port, Field::Source],
            "who may reach them",
        ),
        plain(
            names::hairpin(family),
            family,
            &[Field::Source, destination, protocol, port],
            "local endpoints that reach themselves",
        ),
    ]
}

/// The set of a group's VIPs.
pub(super) fn group(family: Family, which: Which, group: Group) -> Set {
    let comment = match group {
        Group::Class(class) => format!("VIPs with endpoints in slots 0 to {}", class - 1),
        Group::Sticky { timeout, class } => {
            format!("VIPs with session affinity of {timeout} s, tickets 0 to {}", class - 1)
        }
    };
    plain(names::group(family, which, group), family, &VIP, &comment)
}
