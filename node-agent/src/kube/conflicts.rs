//! Tells the owner of a Service that another one has its address.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use super::index::Conflict;

/// Logs the conflict and writes an Event to the Service that lost, in the background. Nothing depends on the Event.
pub(super) fn report(client: &kube::Client, node: &str, conflict: &Conflict) {
    let (vip, holder, loser) = (conflict.vip, &conflict.holder, &conflict.loser);
    tracing::warn!(%vip, %holder, %loser, "two Services claim one address; the older one keeps it");
    let reporter = Reporter {
        controller: "nftfleet-agent".to_owned(),
        instance: Some(node.to_owned()),
    };
    let recorder = Recorder::new(client.clone(), reporter);
    let event = Event {
        type_: EventType::Warning,
        reason: "AddressConflict".to_owned(),
        note: Some(format!(
            "{vip} belongs to the older Service {holder}; it is not served for this one"
        )),
        action: "Program".to_owned(),
        secondary: None,
    };
    let reference = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        namespace: Some(loser.namespace.clone()),
        name: Some(loser.name.clone()),
        ..ObjectReference::default()
    };
    tokio::spawn(async move {
        if let Err(error) = recorder.publish(&event, &reference).await {
            tracing::warn!(%error, "the Event about an address conflict could not be written");
        }
    });
}
