//! Real ports, asked by HTTP.

use std::collections::HashMap;

use jiff::Timestamp;
use nftfleet_domain::service::ObjectName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::kube::HealthCheck;

const NOW: Timestamp = Timestamp::constant(1_000, 0);
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

struct Frozen;

impl Clock for Frozen {
    fn now(&self) -> Timestamp {
        NOW
    }
}

fn named(name: &str) -> ObjectName {
    ObjectName {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

fn input<const N: usize>(checks: [(&str, u16, usize); N]) -> HealthInput {
    let check = |(name, port, local_endpoints)| (named(name), HealthCheck { port, local_endpoints });
    HealthInput {
        active: true,
        listen: vec![LOCALHOST],
        checks: checks.map(check).into(),
        node_eligible: true,
        last_synced: Some(NOW),
        pending_since: None,
    }
}

/// A port that is free right now, at every address of both families.
fn free() -> u16 {
    open(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A running `serve`, which ends with this.
struct Served {
    input: watch::Sender<HealthInput>,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn served(input: HealthInput, healthz: Option<SocketAddr>) -> Served {
    let (input, receiver) = watch::channel(input);
    Served {
        input,
        task: tokio::spawn(serve(receiver, healthz, Arc::new(Frozen), Arc::default())),
    }
}

struct Heard {
    status: u16,
    headers: HashMap<String, String>,
    body: serde_json::Value,
}

/// Asks once; none if nobody listens.
async fn ask(ip: IpAddr, port: u16, path: &str) -> Option<Heard> {
    let mut stream = TcpStream::connect((ip, port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    // Reads to the end of the connection: it must not be kept.
    let whole = timeout(CONNECTION_WITHIN / 2, stream.read_to_string(&mut text)).await;
    whole.expect("the connection ends with the answer").ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(": "));
    Some(Heard {
        status,
        headers: headers
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
        body: serde_json::from_str(body).unwrap_or_default(),
    })
}

/// Asks until somebody answers.
async fn answered(ip: IpAddr, port: u16, path: &str) -> Heard {
    let answer = async {
        loop {
            if let Some(heard) = ask(ip, port, path).await {
                return heard;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), answer)
        .await
        .unwrap_or_else(|_| panic!("nobody answers at {ip} {port}"))
}

/// Waits until nobody listens.
async fn closed(ip: IpAddr, port: u16) {
    let gone = async {
        while TcpStream::connect((ip, port)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), gone)
        .await
        .unwrap_or_else(|_| panic!("{ip} {port} stays open"));
}

#[tokio::test]
async fn a_health_check_port_answers_for_its_service() {
    let (web, idle) = (free(), free());
    let served = served(input([("web", web, 3), ("idle", idle, 0)]), None);
    let good = answered(LOCALHOST, web, "/").await;
    assert_eq!(good.status, 200);
    assert_eq!(good.headers["content-type"], "application/json");
    assert_eq!(good.headers["x-content-type-options"], "nosniff");
    assert_eq!(good.headers["x-load-balancing-endpoint-weight"], "3");
    assert_eq!(good.body["service"]["name"], "web");
    let bad = answered(LOCALHOST, idle, "/healthz").await;
    assert_eq!(bad.status, 503);
    assert_eq!(bad.headers["x-load-balancing-endpoint-weight"], "0");
    assert_eq!(bad.body["service"]["name"], "idle");

    served
        .input
        .send_modify(|input| input.pending_since = Some(Timestamp::UNIX_EPOCH));
    assert_eq!(ask(LOCALHOST, web, "/").await.unwrap().status, 503);
}

#[tokio::test]
async fn healthz_and_livez_have_a_port_of_their_own() {
    let healthz = SocketAddr::new(LOCALHOST, free());
    let served = served(input([]), Some(healthz));
    let good = answered(LOCALHOST, healthz.port(), "/healthz").await;
    assert_eq!(
        (good.status, good.headers["content-type"].as_str()),
        (200, "application/json")
    );
    assert!(!good.headers.contains_key("x-load-balancing-endpoint-weight"));
    served.input.send_modify(|input| input.node_eligible = false);
    let bad = ask(LOCALHOST, healthz.port(), "/healthz").await.unwrap();
    assert_eq!((bad.status, bad.body["nodeEligible"].as_bool()), (503, Some(false)));
    assert_eq!(ask(LOCALHOST, healthz.port(), "/livez").await.unwrap().status, 200);
    assert_eq!(ask(LOCALHOST, healthz.port(), "/").await.unwrap().status, 404);
}

#[tokio::test]
async fn ports_are_open_while_active_and_wanted() {
    let (web, api) = (free(), free());
    let healthz = SocketAddr::new(LOCALHOST, free());
    let inactive = HealthInput {
        active: false,
        ..input([("web", web, 1)])
    };
    let served = served(inactive.clone(), Some(healthz));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let kube_proxy = [web, healthz.port()].map(|port| std::net::TcpListener::bind((LOCALHOST, port)).unwrap());
    drop(kube_proxy);

    served.input.send_replace(input([("web", web, 1)]));
    answered(LOCALHOST, web, "/").await;
    answered(LOCALHOST, healthz.port(), "/livez").await;
    served.input.send_replace(input([("web", web, 1), ("api", api, 1)]));
    answered(LOCALHOST, api, "/").await;
    served.input.send_replace(input([("api", api, 1)]));
    closed(LOCALHOST, web).await;
    // The port is another Service's now.
    served.input.send_replace(input([("api", api, 1), ("shop", web, 1)]));
    assert_eq!(answered(LOCALHOST, web, "/").await.body["service"]["name"], "shop");
    served.input.send_replace(inactive);
    closed(LOCALHOST, api).await;
    closed(LOCALHOST, healthz.port()).await;
}

#[tokio::test]
async fn what_is_connected_is_cut_off_with_the_port() {
    let web = free();
    let served = served(input([("web", web, 1)]), None);
    answered(LOCALHOST, web, "/").await;
    let mut idle = TcpStream::connect((LOCALHOST, web)).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    // The one before has been taken when a later one is answered.
    ask(LOCALHOST, web, "/").await.unwrap();
    served.input.send_modify(|input| input.active = false);
    let end = timeout(CONNECTION_WITHIN / 2, idle.read(&mut [0; 16]))
        .await
        .expect("cut off at once");
    assert!(matches!(end, Ok(0) | Err(_)));
}

#[tokio::test]
async fn strangers_who_only_connect_keep_nobody_out() {
    let web = free();
    let _served = served(input([("web", web, 1)]), None);
    answered(LOCALHOST, web, "/").await;
    let mut strangers = Vec::new();
    for _ in 0..MOST_CONNECTIONS * 2 {
        strangers.push(TcpStream::connect((LOCALHOST, web)).await.unwrap());
    }
    let answer = timeout(CONNECTION_WITHIN / 2, ask(LOCALHOST, web, "/")).await;
    assert_eq!(answer.expect("strangers don't count").unwrap().status, 200);
    let end = timeout(CONNECTION_WITHIN / 2, strangers[0].read(&mut [0; 16])).await;
    assert!(matches!(end.expect("the first has waited longest"), Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_taken_port_comes_once_it_is_free_and_blocks_no_other() {
    let (web, api) = (free(), free());
    let taken = std::net::TcpListener::bind((LOCALHOST, web)).unwrap();
    let served = served(input([("web", web, 1), ("api", api, 1)]), None);
    answered(LOCALHOST, api, "/").await;
    // Long enough to be tried more than once.
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(taken);
    assert_eq!(answered(LOCALHOST, web, "/").await.status, 200);

    let other = free();
    let taken = std::net::TcpListener::bind((LOCALHOST, other)).unwrap();
    served.input.send_replace(input([("api", api, 1), ("other", other, 1)]));
    closed(LOCALHOST, web).await;
    served.input.send_replace(input([("api", api, 1)]));
    drop(taken);
    // Longer than the first pauses: who still waited for the port would have it now.
    tokio::time::sleep(Duration::from_secs(1)).await;
    std::net::TcpListener::bind((LOCALHOST, other)).expect("nobody wants it");
}

#[tokio::test]
async fn the_addresses_are_those_asked_for() {
    let web = free();
    let mut two = input([("web", web, 1)]);
    two.listen = vec![LOCALHOST, SECOND];
    let served = served(two.clone(), None);
    answered(LOCALHOST, web, "/").await;
    answered(SECOND, web, "/").await;
    assert!(ask(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3)), web, "/").await.is_none());

    // Every address, which needs the port that two of them had.
    served.input.send_modify(|input| input.listen = Vec::new());
    answered(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3)), web, "/").await;
    answered(Ipv6Addr::LOCALHOST.into(), web, "/").await;

    two.listen = vec![SECOND];
    served.input.send_replace(two);
    closed(LOCALHOST, web).await;
    answered(SECOND, web, "/").await;
}

#[tokio::test]
async fn the_last_wish_stays_when_nobody_wishes_any_more_and_all_ends_with_the_server() {
    let web = free();
    let (input, receiver) = watch::channel(input([("web", web, 1)]));
    let serving = tokio::spawn(serve(receiver, None, Arc::new(Frozen), Arc::default()));
    answered(LOCALHOST, web, "/").await;
    drop(input);
    tokio::task::yield_now().await;
    answered(LOCALHOST, web, "/").await;
    serving.abort();
    closed(LOCALHOST, web).await;
}
