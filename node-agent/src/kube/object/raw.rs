//! An object as the API sent it.

use std::borrow::Cow;
use std::ops::Deref;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ApiResource;
use kube::core::DynamicResourceScope;
use nftfleet_domain::service::ObjectName;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::BadObject;
use crate::kube::id::Id;

/// An object's text, of which nothing but the head is read yet. Real clusters list tens of thousands of them; a tree of
/// values for each would take more time and memory than everything else that is done with it.
#[derive(Clone, Debug)]
pub struct Object {
    /// Name, namespace and version, by which the library watches; nothing else.
    metadata: ObjectMeta,
    labels: Labels,
    created: Option<Timestamp>,
    trigger: Option<Timestamp>,
    is_going: bool,
    /// What is wrong with the head, if anything; then only the names are read of it.
    bad_head: Option<BadObject>,
    text: Box<RawValue>,
}

/// The labels that matter.
#[derive(Clone, Debug, Default, Deserialize)]
struct Labels {
    #[serde(rename = "kubernetes.io/service-name")]
    service: Option<String>,
    #[serde(rename = "topology.kubernetes.io/zone")]
    zone: Option<String>,
}

/// The annotations that matter.
#[derive(Clone, Debug, Default, Deserialize)]
struct Annotations {
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    trigger: Option<String>,
}

#[derive(Default, Deserialize)]
struct Head<M> {
    #[serde(default)]
    metadata: M,
}

/// What an object is known by.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Names {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    labels: Option<Labels>,
    annotations: Option<Annotations>,
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let head = serde_json::from_str(text.get()).map(|head: Head<Metadata>| head.metadata);
        let (metadata, bad_head) = match head {
            Ok(metadata) => (metadata, None),
            Err(error) => {
                let names = serde_json::from_str(text.get()).map(|head: Head<Names>| head.metadata);
                let names = names.unwrap_or_default();
                let metadata = Metadata {
                    name: names.name,
                    namespace: names.namespace,
                    resource_version: names.resource_version,
                    ..Metadata::default()
                };
                (metadata, Some(BadObject::new("metadata", error.to_string())))
            }
        };
        Ok(Self {
            bad_head,
            labels: metadata.labels.unwrap_or_default(),
            created: metadata.creation_timestamp.and_then(|time| time.parse().ok()),
            trigger: metadata.annotations.and_then(|its| its.trigger?.parse().ok()),
            is_going: metadata.deletion_timestamp.is_some(),
            metadata: ObjectMeta {
                name: metadata.name,
                namespace: metadata.namespace,
                resource_version: metadata.resource_version,
                ..ObjectMeta::default()
            },
            text,
        })
    }
}

impl Object {
    /// Its namespace and name.
    pub fn name(&self) -> ObjectName {
        ObjectName {
            namespace: self.metadata.namespace.clone().unwrap_or_default(),
            name: self.metadata.name.clone().unwrap_or_default(),
        }
    }

    /// The same in one piece.
    pub(in crate::kube) fn id(&self) -> Id {
        self.beside(self.metadata.name.as_deref().unwrap_or_default())
    }

    /// Of this name in its namespace.
    fn beside(&self, name: &str) -> Id {
        Id::new(self.metadata.namespace.as_deref().unwrap_or_default(), name)
    }

    /// The Service that a slice belongs to, by its label.
    ///
    /// # Errors
    /// The labels can't be read.
    pub(super) fn service(&self) -> Result<Option<Id>, BadObject> {
        self.check_head()?;
        Ok(self.labels.service.as_deref().map(|name| self.beside(name)))
    }

    fn check_head(&self) -> Result<(), BadObject> {
        self.bad_head.clone().map_or(Ok(()), Err)
    }

    /// The zone of a node, by its label.
    pub(super) fn zone(&self) -> Option<&str> {
        self.labels.zone.as_deref()
    }

    /// When it was made, if the API says so.
    pub(super) const fn created(&self) -> Option<Timestamp> {
        self.created
    }

    /// When the change happened that made it be written, if it says so: the endpoints controller does, of slices.
    pub(in crate::kube) const fn trigger(&self) -> Option<Timestamp> {
        self.trigger
    }

    /// Whether it has been deleted, and only waits for somebody to let it go.
    pub(super) const fn is_going(&self) -> bool {
        self.is_going
    }

    /// Reads fields of it, without copies of the texts in it.
    ///
    /// # Errors
    /// The first field that makes no sense, with its path.
    pub(super) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, BadObject> {
        self.check_head()?;
        if let Ok(read) = serde_json::from_str(self.text.get()) {
            return Ok(read);
        }
        // To know the path of a field costs more than to read it, and is asked for only when something is wrong. As a tree
        // of values, so that no lines and columns are told of a text that nobody has seen.
        let tree: Value =
            serde_json::from_str(self.text.get()).map_err(|error| BadObject::new(".", error.to_string()))?;
        serde_path_to_error::deserialize(tree)
            .map_err(|error| BadObject::new(error.path().to_string(), error.inner().to_string()))
    }
}

/// A text in an object.
#[derive(Debug, Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl kube::Resource for Object {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(metadata: &Value) -> Object {
        serde_json::from_value(json!({"metadata": metadata, "spec": {"text": "a\tb", "number": "x"}})).unwrap()
    }

    #[test]
    fn an_object_with_a_bad_head_is_still_known_by_its_name() {
        let bad = object(&json!({"name": "web", "namespace": "shop", "resourceVersion": "7", "labels": 5}));
        assert_eq!(bad.name().to_string(), "shop/web");
        assert_eq!(kube::ResourceExt::resource_version(&bad).as_deref(), Some("7"));
        assert_eq!(bad.read::<Value>().unwrap_err().path, "metadata");
        assert_eq!(bad.service().unwrap_err().path, "metadata");
        let nameless = object(&json!("x"));
        assert_eq!(nameless.name().to_string(), "/");
        assert_eq!(nameless.read::<Value>().unwrap_err().path, "metadata");
    }

    #[test]
    fn fields_are_read_from_the_text_and_what_is_wrong_is_named_by_its_path() {
        #[derive(Debug, Deserialize)]
        struct Given<'a> {
            #[serde(borrow)]
            text: Text<'a>,
        }
        #[derive(Debug, Deserialize)]
        struct Wanted {
            #[expect(dead_code, reason = "it can't be read")]
            number: u8,
        }
        let object = object(&json!({"name": "web"}));
        assert_eq!(&*object.read::<Spec<Given<'_>>>().unwrap().spec.text, "a\tb");
        let bad = object.read::<Spec<Wanted>>().unwrap_err();
        assert_eq!(bad.to_string(), "spec.number: invalid type: string \"x\", expected u8");
    }

    #[derive(Debug, Deserialize)]
    struct Spec<T> {
        spec: T,
    }

    #[test]
    fn the_time_of_the_change_is_read() {
        let text = r#"{"metadata": {"name": "a", "namespace": "b", "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-25T09:09:58.123456789Z"}}}"#;
        let object: Object = serde_json::from_str(text).unwrap();
        assert_eq!(
            object.trigger(),
            Some("2026-11-25T09:09:58.123456789Z".parse().unwrap())
        );
    }
}
