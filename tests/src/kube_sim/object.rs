//! An object of the store, and its text: thousands of objects are printed for every list, and printed once.

use std::ops::Deref;
use std::sync::OnceLock;

use serde::ser::{SerializeMap as _, Serializer};
use serde_json::Value;

/// An object as it was written.
#[derive(Debug)]
pub(super) struct Object {
    value: Value,
    /// As an item of a list, once it was in one.
    item: OnceLock<String>,
}

impl Object {
    pub(super) fn new(value: Value) -> Self {
        Self {
            value,
            item: OnceLock::new(),
        }
    }

    /// Its JSON as an item of a list. Items do not repeat the type that the list's own kind tells.
    pub(super) fn item(&self) -> &str {
        self.item.get_or_init(|| {
            let fields = self.value.as_object().into_iter().flatten();
            let fields = fields.filter(|(name, _)| *name != "kind" && *name != "apiVersion");
            let mut text = Vec::new();
            let mut printer = serde_json::Serializer::new(&mut text);
            let mut map = printer.serialize_map(None).expect("JSON has maps");
            for (name, value) in fields {
                map.serialize_entry(name, value)
                    .expect("a value of JSON can be printed");
            }
            map.end().expect("a map can end");
            String::from_utf8(text).expect("JSON is UTF-8")
        })
    }
}

impl Deref for Object {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.value
    }
}
