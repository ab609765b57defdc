//! Services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use nftfleet_domain::service::Protocol;

use super::{BadObject, Object, Read, Text, address, network, port, protocol};

/// A Service as far as it concerns the data plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// When it was made, if the API says so.
    pub created: Option<Timestamp>,
    /// Its virtual addresses; empty for headless Services and those of type `ExternalName`, which have nothing else either.
    pub cluster_ips: Vec<IpAddr>,
    /// External addresses that its owner routes here.
    pub external_ips: Vec<IpAddr>,
    /// Its load balancers' addresses that this node answers itself.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may connect to those; empty means everybody.
    pub source_ranges: BTreeSet<IpNet>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// For how many seconds a client sticks to its endpoint, if it does.
    pub affinity: Option<u32>,
    /// Whether connections from outside the cluster use endpoints of this node only.
    pub external_local: bool,
    /// Whether connections to its virtual addresses use endpoints of this node only.
    pub internal_local: bool,
    /// Where load balancers ask whether this node has endpoints of it.
    pub health_check_port: Option<u16>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, which the slices' ports bear too; empty for an only port.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port, 1-65535.
    pub port: u16,
    /// The same on the nodes' own addresses.
    pub node_port: Option<u16>,
}

/// Kubernetes' default of `timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10800;

mod json {
    use serde::Deserialize;

    use super::Text;

    #[derive(Deserialize)]
    pub struct Service<'a> {
        #[serde(borrow, default)]
        pub spec: ServiceSpec<'a>,
        #[serde(borrow, default)]
        pub status: Status<'a>,
    }

    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct ServiceSpec<'a> {
        #[serde(borrow, rename = "type")]
        pub kind: Option<Text<'a>>,
        #[serde(borrow, rename = "clusterIP")]
        pub cluster_ip: Option<Text<'a>>,
        #[serde(borrow, rename = "clusterIPs", default)]
        pub cluster_ips: Vec<Text<'a>>,
        #[serde(borrow, rename = "externalIPs", default)]
        pub external_ips: Vec<Text<'a>>,
        #[serde(borrow, default)]
        pub load_balancer_source_ranges: Vec<Text<'a>>,
        #[serde(borrow, default)]
        pub ports: Vec<Port<'a>>,
        #[serde(borrow)]
        pub session_affinity: Option<Text<'a>>,
        pub session_affinity_config: Option<AffinityConfig>,
        #[serde(borrow)]
        pub external_traffic_policy: Option<Text<'a>>,
        #[serde(borrow)]
        pub internal_traffic_policy: Option<Text<'a>>,
        pub health_check_node_port: Option<i64>,
    }

    #[derive(Deserialize)]
    pub struct AffinityConfig {
        #[serde(rename = "clientIP")]
        pub client_ip: Option<ClientIp>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct ClientIp {
        pub timeout_seconds: Option<i64>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Port<'a> {
        #[serde(borrow)]
        pub name: Option<Text<'a>>,
        #[serde(borrow)]
        pub protocol: Option<Text<'a>>,
        #[serde(rename = "port")]
        pub number: Option<i64>,
        #[serde(rename = "nodePort")]
        pub on_nodes: Option<i64>,
    }

    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Status<'a> {
        #[serde(borrow, default)]
        pub load_balancer: LoadBalancer<'a>,
    }

    #[derive(Default, Deserialize)]
    pub struct LoadBalancer<'a> {
        #[serde(borrow, default)]
        pub ingress: Option<Vec<Ingress<'a>>>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub struct Ingress<'a> {
        #[serde(borrow)]
        pub ip: Option<Text<'a>>,
        #[serde(borrow)]
        pub ip_mode: Option<Text<'a>>,
    }
}

/// Reads a Service. External and load balancers' addresses that make no sense are left out alone.
///
/// # Errors
/// The first other field that makes no sense.
pub fn service(object: &Object) -> Result<Read<Service>, BadObject> {
    let json::Service { spec, status } = object.read()?;
    let mut left_out = Vec::new();
    let (has_node_ports, has_load_balancer) = match spec.kind.as_deref().unwrap_or("ClusterIP") {
        "ClusterIP" => (false, false),
        "NodePort" => (true, false),
        "LoadBalancer" => (true, true),
        "ExternalName" => return Ok(nothing()),
        other => {
            let allowed = "is not ClusterIP, NodePort, LoadBalancer or ExternalName";
            return Err(BadObject::new("spec.type", format!("{other:?} {allowed}")));
        }
    };
    let given = match (&spec.cluster_ip, spec.cluster_ips.as_slice()) {
        (Some(ip), []) => std::slice::from_ref(ip),
        (_, ips) => ips,
    };
    if given.iter().any(|text| &**text == "None" || text.is_empty()) {
        return Ok(nothing());
    }
    let all = |path: &str, texts: &[Text<'_>]| -> Vec<Result<IpAddr, BadObject>> {
        let one = |(i, text): (usize, &Text<'_>)| address(&format!("{path}[{i}]"), text);
        texts.iter().enumerate().map(one).collect()
    };
    let cluster_ips = all("spec.clusterIPs", given).into_iter().collect::<Result<_, _>>()?;
    let mut sorted_out = |found: Vec<Result<IpAddr, BadObject>>| -> Vec<IpAddr> {
        let (good, bad): (Vec<_>, Vec<_>) = found.into_iter().partition(Result::is_ok);
        left_out.extend(bad.into_iter().filter_map(Result::err));
        good.into_iter().filter_map(Result::ok).collect()
    };
    let external_ips = sorted_out(all("spec.externalIPs", &spec.external_ips));
    let ingress = status.load_balancer.ingress.unwrap_or_default();
    let answered = ingress.iter().enumerate().filter_map(|(i, ingress)| {
        // A load balancer of mode Proxy hands connections on to node ports, and its address is not to be short-cut.
        let here = has_load_balancer && ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
        let text = ingress.ip.as_deref().filter(|text| here && !text.is_empty())?;
        Some(address(&format!("status.loadBalancer.ingress[{i}].ip"), text))
    });
    let load_balancer_ips = sorted_out(answered.collect());
    let mut source_ranges = BTreeSet::new();
    for (i, text) in spec.load_balancer_source_ranges.iter().enumerate() {
        source_ranges.insert(network(&format!("spec.loadBalancerSourceRanges[{i}]"), text)?);
    }
    let mut cluster_ips: Vec<IpAddr> = cluster_ips;
    cluster_ips.shrink_to_fit();
    let mut ports = Vec::with_capacity(spec.ports.len());
    for (i, port) in spec.ports.iter().enumerate() {
        let mut port = service_port(&format!("spec.ports[{i}]"), port)?;
        port.node_port = port.node_port.filter(|_| has_node_ports);
        ports.push(port);
    }
    let external_local = is_local("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref())?;
    let health_check_port = port("spec.healthCheckNodePort", spec.health_check_node_port)?;
    let object = Service {
        created: object.created(),
        cluster_ips,
        external_ips,
        load_balancer_ips,
        source_ranges,
        ports,
        affinity: affinity(&spec)?,
        external_local,
        internal_local: is_local("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref())?,
        health_check_port: health_check_port.filter(|_| has_load_balancer && external_local),
    };
    Ok(Read { object, left_out })
}

fn nothing() -> Read<Service> {
    Read {
        object: Service::default(),
        left_out: vec![],
    }
}

fn is_local(path: &str, policy: Option<&str>) -> Result<bool, BadObject> {
    match policy {
        None | Some("Cluster" | "") => Ok(false),
        Some("Local") => Ok(true),
        Some(other) => Err(BadObject::new(path, format!("{other:?} is not Cluster or Local"))),
    }
}

fn affinity(spec: &json::ServiceSpec<'_>) -> Result<Option<u32>, BadObject> {
    match spec.session_affinity.as_deref() {
        None | Some("None" | "") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => {
            let message = format!("{other:?} is not None or ClientIP");
            return Err(BadObject::new("spec.sessionAffinity", message));
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let Some(seconds) = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds) else {
        return Ok(Some(AFFINITY_SECONDS));
    };
    let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    let seconds = u32::try_from(seconds).ok().filter(|n| (1..=86400).contains(n));
    let bad = || BadObject::new(path, "is not 1-86400");
    seconds.map(Some).ok_or_else(bad)
}

fn service_port(path: &str, json: &json::Port<'_>) -> Result<ServicePort, BadObject> {
    let number = port(&format!("{path}.port"), json.number)?;
    Ok(ServicePort {
        name: json.name.as_deref().unwrap_or_default().into(),
        protocol: protocol(path, json.protocol.as_deref())?,
        port: number.ok_or_else(|| BadObject::new(format!("{path}.port"), "is missing; 1-65535 is allowed"))?,
        node_port: port(&format!("{path}.nodePort"), json.on_nodes)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn a_service(spec: &Value, status: &Value) -> Result<Read<Service>, BadObject> {
        let metadata = json!({"name": "web", "namespace": "shop"});
        service(&serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap())
    }

    fn plain(spec: &Value) -> Service {
        let read = a_service(spec, &json!({})).unwrap();
        assert_eq!(read.left_out, []);
        read.object
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_plain_service_is_read() {
        let read = plain(&json!({
            "type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        }));
        assert_eq!(read.cluster_ips, [ip("10.96.0.1"), ip("fd00::1")]);
        let dns = ServicePort {
            name: "dns".into(),
            protocol: Protocol::Udp,
            port: 53,
            node_port: None,
        };
        assert_eq!(read.ports[1], dns);
        assert!(!read.external_local && !read.internal_local && read.affinity.is_none());
    }

    #[test]
    fn a_load_balancer_is_read() {
        let spec = json!({
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "externalIPs": ["198.51.100.007", "nowhere"],
            "loadBalancerSourceRanges": [" 192.0.2.1/24"], "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
            "internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
            "ports": [{"port": 80, "nodePort": 30080}],
        });
        let status = json!({"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "VIP"}, {"ip": "203.0.113.3", "ipMode": "Proxy"},
            {"hostname": "lb.example"}, {"ip": "203.0.113.300"},
        ]}});
        let read = a_service(&spec, &status).unwrap();
        let paths: Vec<_> = read.left_out.iter().map(|bad| bad.path.as_str()).collect();
        assert_eq!(paths, ["spec.externalIPs[1]", "status.loadBalancer.ingress[4].ip"]);
        let service = read.object;
        assert_eq!(service.external_ips, [ip("198.51.100.7")]);
        assert_eq!(service.load_balancer_ips, [ip("203.0.113.1"), ip("203.0.113.2")]);
        assert_eq!(service.source_ranges, ["192.0.2.0/24".parse().unwrap()].into());
        assert_eq!(service.ports[0].node_port, Some(30080));
        assert_eq!(service.affinity, Some(10800));
        assert!(service.external_local && service.internal_local);
        assert_eq!(service.health_check_port, Some(32000));
    }

    #[test]
    fn only_the_types_that_have_them_have_node_ports_and_load_balancers() {
        let spec = json!({"type": "ClusterIP", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80, "nodePort": 30080}],
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000});
        let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
        let service = a_service(&spec, &status).unwrap().object;
        assert_eq!(service.ports[0].node_port, None);
        assert_eq!(service.load_balancer_ips, Vec::<IpAddr>::new());
        assert_eq!(service.health_check_port, None);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let with = |field: &str, value: Value| {
            let mut spec = json!({"clusterIPs": ["10.0.0.1"], "ports": [{"port": 1}]});
            spec[field] = value;
            spec
        };
        let affinity = |seconds: i64| {
            let mut spec = with("sessionAffinity", json!("ClientIP"));
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
            spec
        };
        let cases = [
            (
                with("clusterIPs", json!(["10.96.0.256"])),
                "spec.clusterIPs[0]: \"10.96.0.256\" is not an IP address",
            ),
            (
                with("ports", json!([{"port": 70000}])),
                "spec.ports[0].port: 70000 is not 1-65535",
            ),
            (
                with("ports", json!([{"port": 1}, {"name": "x"}])),
                "spec.ports[1].port: is missing; 1-65535 is allowed",
            ),
            (
                with("ports", json!([{"port": 1, "nodePort": -1}])),
                "spec.ports[0].nodePort: -1 is not 1-65535",
            ),
            (
                with("ports", json!([{"port": 1, "protocol": "GRE"}])),
                "spec.ports[0].protocol: protocol \"GRE\" is not TCP, UDP or SCTP",
            ),
            (
                with("ports", json!("many")),
                "spec.ports: invalid type: string \"many\", expected a sequence",
            ),
            (
                with("type", json!("Magic")),
                "spec.type: \"Magic\" is not ClusterIP, NodePort, LoadBalancer or ExternalName",
            ),
            (
                with("loadBalancerSourceRanges", json!(["10.0.0.0/8", "10.0.0.0/40"])),
                "spec.loadBalancerSourceRanges[1]: \"10.0.0.0/40\" is not a CIDR such as 10.0.0.0/8",
            ),
            (
                with("externalTrafficPolicy", json!("Near")),
                "spec.externalTrafficPolicy: \"Near\" is not Cluster or Local",
            ),
            (
                with("sessionAffinity", json!("Cookie")),
                "spec.sessionAffinity: \"Cookie\" is not None or ClientIP",
            ),
            (
                affinity(0),
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: is not 1-86400",
            ),
            (
                affinity(86401),
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: is not 1-86400",
            ),
        ];
        for (spec, message) in cases {
            assert_eq!(a_service(&spec, &json!({})).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn headless_and_external_names_have_nothing() {
        let headless = json!({"clusterIP": "None", "clusterIPs": ["None"], "externalIPs": ["198.51.100.7"],
            "ports": [{"port": 80}]});
        assert_eq!(plain(&headless), Service::default());
        assert_eq!(
            plain(&json!({"type": "ExternalName", "externalName": "x.example"})),
            Service::default()
        );
    }
}
