//! Patches through the API simulator, by hand and by the client that the agent uses, and Pods.

use kube::api::{Api, Patch, PatchParams};
use nftfleet_tests::kube_sim::{KubeSim, Verb};
use nftfleet_tests::manifests::{self, kube_proxy_pod, node, pod};
use serde_json::{Value, json};

use super::kube_sim::{Events, client, get, names, sim};

const NODE: &str = "/api/v1/nodes/node-1";
const MERGE: &str = "application/merge-patch+json";

async fn patch(sim: &KubeSim, path: &str, content_type: &str, body: &str) -> (u16, Value) {
    let answer = client()
        .patch(format!("{}{path}", sim.url()))
        .bearer_auth(sim.token())
        .header("content-type", content_type)
        .body(body.to_owned())
        .send()
        .await
        .expect("an answer from the simulator");
    let code = answer.status().as_u16();
    (code, answer.json().await.expect("an answer in JSON"))
}

fn label(object: &Value) -> &Value {
    &object["metadata"]["labels"]["nftfleet.io/service-proxy"]
}

#[tokio::test]
async fn a_merge_patch_changes_a_label_and_null_takes_it_away() {
    let sim = sim();
    let made = sim.apply(node("node-1", "192.0.2.1"));
    let mut events = Events::open(&sim, &format!("/api/v1/nodes?watch=1&resourceVersion={made}")).await;
    let on = r#"{"metadata":{"labels":{"nftfleet.io/service-proxy":"nftfleet"}}}"#;
    let (code, patched) = patch(&sim, NODE, MERGE, on).await;
    assert_eq!((code, label(&patched)), (200, &json!("nftfleet")));
    assert_eq!(patched["metadata"]["resourceVersion"], (made + 1).to_string());
    assert_eq!(patched["metadata"]["labels"]["kubernetes.io/hostname"], "node-1");
    assert_eq!(
        events.told().await,
        ("MODIFIED".to_owned(), "node-1".to_owned(), made + 1)
    );

    // What changes nothing is no write.
    let (code, again) = patch(&sim, NODE, &format!("{MERGE}; charset=utf-8"), on).await;
    assert_eq!((code, &again), (200, &patched));
    assert_eq!(sim.version(), made + 1);

    let off = r#"{"metadata":{"labels":{"nftfleet.io/service-proxy":null}}}"#;
    let (code, dry) = patch(&sim, &format!("{NODE}?dryRun=All&fieldManager=test"), MERGE, off).await;
    assert_eq!((code, label(&dry), sim.version()), (200, &Value::Null, made + 1));
    let (_, patched) = patch(&sim, NODE, MERGE, off).await;
    assert_eq!(patched["metadata"]["labels"].get("nftfleet.io/service-proxy"), None);
    assert_eq!(
        events.told().await,
        ("MODIFIED".to_owned(), "node-1".to_owned(), made + 2)
    );
    assert_eq!(sim.served("nodes").patches, 4);

    // The harness's own way.
    assert_eq!(sim.label_node("node-1", "a", Some("b")), made + 3);
    assert_eq!(events.told().await.2, made + 3);
    sim.label_node("node-1", "a", None);
    let (_, node) = get(&sim, NODE).await;
    assert_eq!(node["metadata"]["labels"].get("a"), None);
}

#[tokio::test]
async fn a_patch_that_makes_no_sense_is_refused_and_changes_nothing() {
    let sim = sim();
    sim.apply(node("node-1", "192.0.2.1"));
    let before = sim.version();
    for (path, content_type, body, code, reason) in [
        (NODE, "application/json", "{}", 415, "UnsupportedMediaType"),
        (
            NODE,
            "application/strategic-merge-patch+json",
            "{}",
            415,
            "UnsupportedMediaType",
        ),
        ("/api/v1/nodes/node-2", MERGE, "{}", 404, "NotFound"),
        ("/api/v1/wishes/node-1", MERGE, "{}", 404, "NotFound"),
        ("/api/v1/nodes", MERGE, "{}", 405, "MethodNotAllowed"),
        (NODE, MERGE, "{", 400, "BadRequest"),
        (NODE, MERGE, "[]", 400, "BadRequest"),
        (NODE, MERGE, r#"{"metadata":{"name":"node-2"}}"#, 400, "BadRequest"),
        (NODE, MERGE, r#"{"kind":"Pod"}"#, 400, "BadRequest"),
        (NODE, MERGE, r#"{"metadata":{"resourceVersion":"7"}}"#, 409, "Conflict"),
    ] {
        let (answered, status) = patch(&sim, path, content_type, body).await;
        assert_eq!(
            (answered, &status["kind"], &status["reason"]),
            (code, &json!("Status"), &json!(reason)),
            "{path} {content_type} {body}: {status}"
        );
    }
    assert_eq!(sim.version(), before);
}

#[tokio::test]
async fn a_verb_can_be_forbidden_alone() {
    let sim = sim();
    sim.apply(node("node-1", "192.0.2.1"));
    sim.forbid(Verb::Patch, "nodes");
    let (code, status) = patch(&sim, NODE, MERGE, "{}").await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
    assert_eq!(
        status["message"],
        "nodes \"node-1\" is forbidden: User \"agent\" cannot patch resource \"nodes\" in API group \"\" at the cluster scope"
    );
    assert_eq!(get(&sim, NODE).await.0, 200);
    assert_eq!(get(&sim, "/api/v1/nodes").await.0, 200);
    sim.permit(Verb::Patch, "nodes");
    assert_eq!(patch(&sim, NODE, MERGE, "{}").await.0, 200);
    sim.forbid(Verb::List, "pods");
    let (code, status) = get(&sim, "/api/v1/namespaces/kube-system/pods").await;
    assert_eq!(code, 403);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .ends_with("in the namespace \"kube-system\"")
    );
    assert_eq!(get(&sim, "/api/v1/namespaces/kube-system/pods/a").await.0, 404);
}

#[tokio::test]
async fn the_client_of_the_agent_patches() {
    let sim = sim();
    sim.apply(node("node-1", "192.0.2.1"));
    // An answer of "already installed" is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = kube::config::Kubeconfig::from_yaml(&sim.kubeconfig()).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let kind = kube::api::ApiResource::from_gvk(&kube::api::GroupVersionKind::gvk("", "v1", "Node"));
    let nodes: Api<kube::api::DynamicObject> = Api::all_with(client, &kind);
    let set = async |value: Value| {
        let patch = json!({"metadata": {"labels": {"nftfleet.io/service-proxy": value}}});
        let patched = nodes
            .patch("node-1", &PatchParams::default(), &Patch::Merge(patch))
            .await;
        patched.map(|node| node.metadata.labels.unwrap().get("nftfleet.io/service-proxy").cloned())
    };
    assert_eq!(set(json!("nftfleet")).await.unwrap().as_deref(), Some("nftfleet"));
    assert_eq!(set(Value::Null).await.unwrap(), None);
    sim.forbid(Verb::Patch, "nodes");
    let refused = set(json!("nftfleet")).await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 403));
}

#[tokio::test]
async fn the_pod_of_kube_proxy_on_a_node_is_found_and_watched() {
    let sim = sim();
    sim.load(["node-1", "node-2"].map(|node| kube_proxy_pod(node).running().object()));
    sim.apply(
        pod("kube-system", "dns")
            .node("node-1")
            .label("k8s-app", "kube-dns")
            .object(),
    );
    sim.apply(pod("shop", "web").node("node-1").object());
    let query = "labelSelector=k8s-app%3Dkube-proxy&fieldSelector=spec.nodeName%3Dnode-1";
    let path = format!("/api/v1/namespaces/kube-system/pods?{query}");
    let (_, list) = get(&sim, &path).await;
    assert_eq!(names(&list), ["kube-proxy-node-1"]);
    assert_eq!(list["items"][0]["status"]["phase"], "Running");
    let (_, running) = get(&sim, "/api/v1/pods?fieldSelector=status.phase%3DRunning").await;
    assert_eq!(names(&running).len(), 2);

    let version = sim.version();
    let mut events = Events::open(&sim, &format!("{path}&watch=1&resourceVersion={version}")).await;
    sim.delete("Pod", "kube-system", "kube-proxy-node-2");
    sim.delete("Pod", "kube-system", "kube-proxy-node-1");
    let told = |kind: &str, version| (kind.to_owned(), "kube-proxy-node-1".to_owned(), version);
    assert_eq!(events.told().await, told("DELETED", version + 2));
    sim.apply(kube_proxy_pod("node-1").object());
    assert_eq!(events.told().await, told("ADDED", version + 3));
    assert_eq!(sim.objects().remove("Pod", "kube-system", "never-there"), None);
    assert_eq!(manifests::kube_proxy_daemon_set()["kind"], "DaemonSet");
}
