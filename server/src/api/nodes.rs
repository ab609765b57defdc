//! Nodes and their readiness.

pub(super) mod get;
pub(super) mod list;

use jiff::Timestamp;
use nftfleet_domain::ids::{ClusterName, NodeName};
use nftfleet_domain::readiness::{Policy, ProxyMode, assess, warnings};
use nftfleet_web_api_spec::{convert, types};

use crate::store::{Node, NodeKey};

/// What lists of nodes, agents and such are continued by.
pub(super) type Key = (ClusterName, NodeName);

pub(super) fn to_key(key: &NodeKey) -> Key {
    (key.cluster.clone(), key.node.clone())
}

pub(super) fn of_key((cluster, node): Key) -> NodeKey {
    NodeKey { cluster, node }
}

fn view(node: Node, policy: &Policy, now: Timestamp) -> types::Node {
    let reported = node.reported();
    let verdict = assess(reported.as_ref(), policy, now);
    let warnings = warnings(reported.as_ref(), policy, now);
    let mode = node.report.as_ref().map(|report| ProxyMode::told_by(&report.proxy));
    types::Node {
        id: node.id.0,
        cluster: node.key.cluster.into(),
        name: node.key.node.into(),
        enrolled_at: node.enrolled_at,
        last_seen_at: node.last_seen_at,
        proxy_mode: mode.as_ref().map(Into::into),
        readiness: convert::readiness(&verdict, &warnings),
        report: node.report.map(Into::into),
    }
}
