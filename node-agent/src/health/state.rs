//! What is answered, and when.

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use nftfleet_domain::service::ObjectName;
use serde::Serialize;

use crate::kube::HealthCheck;

/// How long a change may wait until the proxy counts as unhealthy: twice kube-proxy's sync period.
const PENDING_AT_MOST: SignedDuration = SignedDuration::from_secs(60);

/// Everything that the answers stand on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthInput {
    /// Do we answer at all? Not while kube-proxy owns the ports.
    pub active: bool,
    /// Where health check ports are opened; empty for every address of both families.
    pub listen: Vec<IpAddr>,
    /// The Services that have a health check port. Kubernetes gives no port to two of them.
    pub checks: BTreeMap<ObjectName, HealthCheck>,
    /// May the node get traffic? Not while it is deleted or the autoscaler is about to.
    pub node_eligible: bool,
    /// When the kernel last held all that was wanted.
    pub last_synced: Option<Timestamp>,
    /// Since when the oldest change has been waiting for the kernel to hold it.
    pub pending_since: Option<Timestamp>,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The JSON body.
    pub body: String,
    /// How many endpoints the load balancer may count on here, if it asked for one Service's.
    pub weight: Option<usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceBody<'a> {
    service: ServiceName<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct ServiceName<'a> {
    namespace: &'a str,
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProxyBody {
    last_updated: Option<Timestamp>,
    current_time: Timestamp,
    node_eligible: bool,
    healthy: bool,
}

impl HealthInput {
    /// Does the kernel hold what it should, but for what came in just now?
    pub fn proxy_healthy(&self, now: Timestamp) -> bool {
        let is_late = |since| now.duration_since(since) > PENDING_AT_MOST;
        self.last_synced.is_some() && !self.pending_since.is_some_and(is_late)
    }

    /// The Service whose health check port this is.
    pub fn service_at(&self, port: u16) -> Option<(&ObjectName, HealthCheck)> {
        let (name, check) = self.checks.iter().find(|(_, check)| check.port == port)?;
        Some((name, *check))
    }

    /// The answer on a health check port, if it is still one: shall the load balancer send this node the Service's traffic?
    pub fn service(&self, port: u16, now: Timestamp) -> Option<Answer> {
        let (name, check) = self.service_at(port)?;
        let healthy = self.proxy_healthy(now);
        let body = ServiceBody {
            service: ServiceName {
                namespace: &name.namespace,
                name: &name.name,
            },
            local_endpoints: check.local_endpoints,
            service_proxy_healthy: healthy,
        };
        Some(Answer {
            status: status(healthy && check.local_endpoints > 0),
            body: json(&body),
            weight: Some(check.local_endpoints),
        })
    }

    /// The answer on `/healthz`: shall load balancers send this node new connections?
    pub fn healthz(&self, now: Timestamp) -> Answer {
        self.proxy(now, self.proxy_healthy(now) && self.node_eligible)
    }

    /// The answer on `/livez`: does the proxy work, whatever becomes of its node?
    pub fn livez(&self, now: Timestamp) -> Answer {
        self.proxy(now, self.proxy_healthy(now))
    }

    fn proxy(&self, now: Timestamp, good: bool) -> Answer {
        let body = ProxyBody {
            // Monitors take an old time for a dead proxy. So kube-proxy says "now" when nothing is amiss, and so do we.
            last_updated: if good { Some(now) } else { self.last_synced },
            current_time: now,
            node_eligible: self.node_eligible,
            healthy: self.proxy_healthy(now),
        };
        Answer {
            status: status(good),
            body: json(&body),
            weight: None,
        }
    }
}

fn status(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// These types have nothing that JSON can't say.
fn json(body: &impl Serialize) -> String {
    serde_json::to_string(body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SYNCED: Timestamp = Timestamp::constant(1_000, 0);

    fn web() -> ObjectName {
        ObjectName {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        }
    }

    fn input(local_endpoints: usize) -> HealthInput {
        let check = HealthCheck {
            port: 30_000,
            local_endpoints,
        };
        HealthInput {
            active: true,
            checks: BTreeMap::from([(web(), check)]),
            node_eligible: true,
            last_synced: Some(SYNCED),
            ..HealthInput::default()
        }
    }

    fn after(seconds: i64) -> Timestamp {
        SYNCED + SignedDuration::from_secs(seconds)
    }

    fn value(answer: &Answer) -> Value {
        serde_json::from_str(&answer.body).unwrap()
    }

    #[test]
    fn a_health_check_is_good_with_a_local_endpoint_and_a_healthy_proxy() {
        let never = HealthInput {
            last_synced: None,
            ..input(2)
        };
        let cases = [
            (input(2), 200, 2, true),
            (input(0), 503, 0, true),
            (never, 503, 2, false),
        ];
        for (input, status, local_endpoints, healthy) in cases {
            let answer = input.service(30_000, after(1)).unwrap();
            assert_eq!(answer.status.as_u16(), status);
            assert_eq!(answer.weight, Some(local_endpoints));
            let body = json!({
                "service": { "namespace": "shop", "name": "web" },
                "localEndpoints": local_endpoints,
                "serviceProxyHealthy": healthy,
            });
            assert_eq!(value(&answer), body);
        }
        assert_eq!(input(2).service(30_001, after(1)), None);
    }

    #[test]
    fn the_node_counts_for_healthz_only() {
        let leaving = HealthInput {
            node_eligible: false,
            ..input(1)
        };
        let now = after(5);
        assert_eq!(leaving.healthz(now).status.as_u16(), 503);
        assert_eq!(leaving.livez(now).status.as_u16(), 200);
        assert_eq!(leaving.service(30_000, now).unwrap().status.as_u16(), 200);
        let body = json!({
            "lastUpdated": "1970-01-01T00:16:40Z",
            "currentTime": "1970-01-01T00:16:45Z",
            "nodeEligible": false,
            "healthy": true,
        });
        assert_eq!(value(&leaving.healthz(now)), body);

        let good = input(1).healthz(now);
        assert_eq!((good.status.as_u16(), good.weight), (200, None));
        assert_eq!(value(&good)["lastUpdated"], "1970-01-01T00:16:45Z");
    }

    #[test]
    fn a_change_may_wait_a_minute_and_quiet_is_healthy() {
        let pending = HealthInput {
            pending_since: Some(after(100)),
            ..input(1)
        };
        for (now, healthy) in [(after(100), true), (after(160), true), (after(161), false)] {
            assert_eq!(pending.proxy_healthy(now), healthy);
            assert_eq!(pending.livez(now).status.is_success(), healthy);
            assert_eq!(pending.healthz(now).status.is_success(), healthy);
            assert_eq!(value(&pending.livez(now))["healthy"], healthy);
        }
        assert!(
            input(1).proxy_healthy(after(1_000_000)),
            "without changes there is nothing to sync"
        );
    }

    #[test]
    fn what_was_never_synced_is_unhealthy() {
        let answer = HealthInput::default().livez(after(1));
        assert_eq!(answer.status.as_u16(), 503);
        assert_eq!(value(&answer)["lastUpdated"], Value::Null);
    }
}
