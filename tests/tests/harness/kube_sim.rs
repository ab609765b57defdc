//! The Kubernetes API simulator over HTTP, asked as a client would.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use nftfleet_tests::kube_sim::KubeSim;
use nftfleet_tests::manifests::{self, service};
use nftfleet_tests::wait;
use reqwest::{Client, Response};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(10);
const SERVICES: &str = "/api/v1/services";

pub(crate) fn sim() -> KubeSim {
    KubeSim::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

pub(crate) fn client() -> Client {
    // Only plain HTTP is spoken here, but building a client wants to know who would do TLS. A second installation fails: fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A watch that should have been refused would otherwise be waited for without end.
    Client::builder().read_timeout(LIMIT).build().expect("an HTTP client")
}

async fn ask(sim: &KubeSim, path: &str) -> Response {
    client()
        .get(format!("{}{path}", sim.url()))
        .bearer_auth(sim.token())
        .send()
        .await
        .expect("an answer from the simulator")
}

pub(crate) async fn get(sim: &KubeSim, path: &str) -> (u16, Value) {
    let response = ask(sim, path).await;
    (
        response.status().as_u16(),
        response.json().await.expect("an answer in JSON"),
    )
}

pub(crate) fn names(list: &Value) -> Vec<String> {
    list["items"]
        .as_array()
        .expect("a list with items")
        .iter()
        .map(|item| {
            item["metadata"]["name"]
                .as_str()
                .expect("an object with a name")
                .to_owned()
        })
        .collect()
}

fn numbered(number: usize) -> Value {
    service("shop", &format!("s{number:02}"))
        .label("n", &number.to_string())
        .port("", "TCP", 80, 80)
        .object()
}

/// A watch, read line by line.
pub(crate) struct Events {
    response: Response,
    buffer: Vec<u8>,
}

impl Events {
    pub(crate) async fn open(sim: &KubeSim, path: &str) -> Self {
        let response = ask(sim, path).await;
        assert_eq!(response.status(), 200);
        Self {
            response,
            buffer: Vec::new(),
        }
    }

    /// The next event; `Ok(None)` at a proper end and an error when the connection broke.
    async fn next(&mut self) -> Result<Option<Value>, reqwest::Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line).expect("a line of JSON")));
            }
            let chunk = tokio::time::timeout(LIMIT, self.response.chunk())
                .await
                .expect("an event in time")?;
            match chunk {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }

    /// Type, name and resourceVersion of the next event.
    pub(crate) async fn told(&mut self) -> (String, String, u64) {
        let event = self.next().await.expect("an open watch").expect("an event");
        let metadata = &event["object"]["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (
            text(&event["type"]),
            text(&metadata["name"]),
            text(&metadata["resourceVersion"]).parse().unwrap_or(0),
        )
    }
}

#[tokio::test]
async fn a_list_is_what_a_real_server_prints() {
    let sim = sim();
    sim.load(manifests::all());
    let (code, list) = get(&sim, SERVICES).await;
    assert_eq!(code, 200);
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("ServiceList"), &json!("v1"))
    );
    assert_eq!(list["metadata"], json!({"resourceVersion": sim.version().to_string()}));
    assert_eq!(names(&list).len(), 9);
    assert!(
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|item| item["kind"].is_null() && item["apiVersion"].is_null())
    );

    let (_, slices) = get(&sim, "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices").await;
    assert_eq!(slices["kind"], "EndpointSliceList");
    assert_eq!(names(&slices), ["kube-dns-7x2fk", "kube-dns-q9wzc"]);

    let (_, web) = get(&sim, "/api/v1/namespaces/shop/services/web").await;
    assert_eq!(
        (&web["kind"], &web["spec"]["clusterIP"]),
        (&json!("Service"), &json!("10.96.10.1"))
    );
    let (code, missing) = get(&sim, "/api/v1/namespaces/shop/services/none").await;
    assert_eq!(
        (code, &missing["kind"], &missing["reason"]),
        (404, &json!("Status"), &json!("NotFound"))
    );
    let (code, _) = get(&sim, "/api/v1/wishes").await;
    assert_eq!(code, 404);
    let (_, version) = get(&sim, "/version").await;
    assert_eq!(version["gitVersion"], "v1.33.4");
}

#[tokio::test]
async fn selectors_narrow_a_list() {
    let sim = sim();
    sim.load(manifests::all());
    let (_, list) = get(
        &sim,
        "/api/v1/services?labelSelector=!service.kubernetes.io/service-proxy-name,app%3Dweb",
    )
    .await;
    assert_eq!(names(&list), ["web"]);
    let (_, list) = get(
        &sim,
        "/api/v1/services?fieldSelector=spec.clusterIP!%3DNone,metadata.name%3Dheadless",
    )
    .await;
    assert_eq!(names(&list), Vec::<String>::new());
    let (_, list) = get(&sim, "/api/v1/services?fieldSelector=metadata.name%3Dheadless").await;
    assert_eq!(names(&list), ["headless"]);
}

#[tokio::test]
async fn a_stranger_and_everyone_during_an_outage_is_turned_away() {
    let sim = sim();
    let stranger = client().get(format!("{}{SERVICES}", sim.url())).send().await.unwrap();
    assert_eq!(stranger.status(), 401);
    assert_eq!(stranger.json::<Value>().await.unwrap()["reason"], "Unauthorized");
    sim.refuse(true);
    assert_eq!(get(&sim, SERVICES).await.0, 503);
    sim.refuse(false);
    assert_eq!(get(&sim, SERVICES).await.0, 200);
}

#[tokio::test]
async fn chunks_are_of_one_moment() {
    let sim = sim();
    sim.load((0..10).map(numbered));
    let begun = sim.version();
    let (_, first) = get(&sim, "/api/v1/services?limit=4").await;
    assert_eq!(first["metadata"]["remainingItemCount"], 6);

    sim.delete("Service", "shop", "s05");
    sim.apply(numbered(11));
    sim.apply(numbered(6));
    let mut all = names(&first);
    let mut page = first;
    while let Some(token) = page["metadata"]["continue"].as_str() {
        let (code, next) = get(&sim, &format!("/api/v1/services?limit=4&continue={token}")).await;
        assert_eq!(code, 200);
        assert_eq!(next["metadata"]["resourceVersion"], begun.to_string());
        all.extend(names(&next));
        page = next;
    }
    let expected: Vec<String> = (0..10).map(|number| format!("s{number:02}")).collect();
    assert_eq!(all, expected);
    let served = sim.served("services");
    assert_eq!((served.lists, served.pages), (1, 3));

    // From the first page's version a watch hears the rest, in order.
    let mut events = Events::open(&sim, &format!("{SERVICES}?watch=1&resourceVersion={begun}")).await;
    let told = [events.told().await, events.told().await, events.told().await];
    let expected = [
        ("DELETED", "s05", begun + 1),
        ("ADDED", "s11", begun + 2),
        ("MODIFIED", "s06", begun + 3),
    ];
    assert_eq!(
        told,
        expected.map(|(kind, name, version)| (kind.to_owned(), name.to_owned(), version))
    );
}

#[tokio::test]
async fn an_old_continue_token_is_gone() {
    let sim = sim();
    sim.load((0..10).map(numbered));
    let (_, first) = get(&sim, "/api/v1/services?limit=4").await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    sim.expire_history();
    let (code, gone) = get(&sim, &format!("/api/v1/services?limit=4&continue={token}")).await;
    assert_eq!(
        (code, &gone["reason"], &gone["code"]),
        (410, &json!("Expired"), &json!(410))
    );
    let resume = gone["metadata"]["continue"].as_str().unwrap();
    let (code, rest) = get(&sim, &format!("/api/v1/services?continue={resume}")).await;
    assert_eq!((code, names(&rest).len()), (200, 6));
    assert_eq!(get(&sim, "/api/v1/services?continue=nonsense").await.0, 400);
}

#[tokio::test]
async fn a_watch_from_before_the_history_is_gone() {
    let sim = sim();
    let old = sim.apply(numbered(1));
    sim.apply(numbered(2));
    sim.limit_history(1);
    let path = format!("{SERVICES}?watch=true&resourceVersion={}", old - 1);
    let (code, gone) = get(&sim, &path).await;
    assert_eq!(
        (code, &gone["kind"], &gone["reason"]),
        (410, &json!("Status"), &json!("Expired"))
    );

    sim.gone_in_stream(true);
    let mut events = Events::open(&sim, &path).await;
    let event = events.next().await.unwrap().unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn an_open_watch_outlives_a_compaction_unless_it_is_expired() {
    let sim = sim();
    let version = sim.apply(numbered(1));
    let mut events = Events::open(&sim, &format!("{SERVICES}?watch=1&resourceVersion={version}")).await;
    sim.expire_history();
    sim.apply(numbered(2));
    assert_eq!(events.told().await.1, "s02");
    assert_eq!(
        get(&sim, &format!("{SERVICES}?watch=1&resourceVersion={version}"))
            .await
            .0,
        410
    );
    sim.expire_watches();
    let event = events.next().await.unwrap().unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["reason"]),
        (&json!("ERROR"), &json!("Expired"))
    );
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn bookmarks_come_to_those_who_ask() {
    let sim = sim();
    let version = sim.apply(numbered(1));
    let path = format!("{SERVICES}?watch=1&resourceVersion={version}");
    let mut with = Events::open(&sim, &format!("{path}&allowWatchBookmarks=true")).await;
    let mut without = Events::open(&sim, &path).await;
    // A write to another resource: only a bookmark can tell a watch of Services that time has passed.
    let newer = sim.apply(manifests::node("node-1", "192.168.50.1"));
    sim.send_bookmarks();
    let bookmark = with.next().await.unwrap().unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "Service");
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], newer.to_string());
    sim.apply(numbered(2));
    assert_eq!(with.told().await.1, "s02");
    assert_eq!(without.told().await, ("ADDED".to_owned(), "s02".to_owned(), newer + 1));
}

#[tokio::test]
async fn a_watch_ends_properly_in_time_and_after_a_last_bookmark() {
    let sim = sim();
    let path = format!(
        "{SERVICES}?watch=1&resourceVersion={}&timeoutSeconds=3&allowWatchBookmarks=1",
        sim.version()
    );
    let mut events = Events::open(&sim, &path).await;
    assert_eq!(events.told().await.0, "BOOKMARK");
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_watch_without_a_version_begins_with_what_is_there() {
    let sim = sim();
    sim.load([numbered(1), numbered(2)]);
    let mut events = Events::open(&sim, "/api/v1/services?watch=1").await;
    assert_eq!(events.told().await.1, "s01");
    assert_eq!(events.told().await.1, "s02");
    sim.apply(numbered(1));
    assert_eq!(events.told().await.0, "MODIFIED");
}

#[tokio::test]
async fn a_watch_with_a_selector_sees_objects_come_and_go() {
    let sim = sim();
    let begun = sim.version();
    sim.apply(service("shop", "web").label("app", "web").object());
    let path = format!("{SERVICES}?watch=1&resourceVersion={begun}&labelSelector=app%3Dweb");
    let mut events = Events::open(&sim, &path).await;
    assert_eq!(events.told().await.0, "ADDED");
    let left = sim.apply(service("shop", "web").label("app", "other").object());
    assert_eq!(events.told().await, ("DELETED".to_owned(), "web".to_owned(), left));
    sim.apply(service("shop", "web").label("app", "other").label("more", "x").object());
    sim.apply(service("shop", "web").label("app", "web").object());
    assert_eq!(events.told().await.0, "ADDED");
}

#[tokio::test]
async fn a_cut_watch_breaks_in_the_middle() {
    let sim = sim();
    let mut events = Events::open(&sim, &format!("{SERVICES}?watch=1&resourceVersion={}", sim.version())).await;
    sim.apply(numbered(1));
    assert_eq!(events.told().await.0, "ADDED");
    sim.cut_watches();
    events.next().await.unwrap_err();
    wait::until("no watch to be open", LIMIT, async || {
        (sim.open_watches() == 0).then_some(())
    })
    .await;
    assert_eq!(sim.served("services").watches, 1);
}

#[tokio::test]
async fn a_kubeconfig_leads_to_the_simulator() {
    let sim = sim();
    let config: Value = serde_yaml_ng::from_str(&sim.kubeconfig()).unwrap();
    let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap();
    let token = config["users"][0]["user"]["token"].as_str().unwrap();
    let answer = client()
        .get(format!("{server}/readyz"))
        .bearer_auth(token)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.text().await.unwrap(), "ok");
}

#[tokio::test]
async fn the_newest_version_and_no_newer_may_be_asked_for() {
    let sim = sim();
    let version = sim.apply(numbered(1));
    sim.apply(numbered(2));
    let list = async |query: String| get(&sim, &format!("{SERVICES}?{query}")).await;
    let (_, exact) = list(format!("resourceVersion={version}&resourceVersionMatch=Exact")).await;
    assert_eq!(names(&exact), ["s01"]);
    let (_, newest) = list(format!("resourceVersion={version}")).await;
    assert_eq!(names(&newest), ["s01", "s02"]);
    let (_, any) = list("resourceVersion=0&limit=1".to_owned()).await;
    assert_eq!(names(&any), ["s01", "s02"]);
    assert_eq!(list(format!("resourceVersion={}", version + 9)).await.0, 504);
    assert_eq!(list("watch=1&sendInitialEvents=true".to_owned()).await.0, 422);
}
