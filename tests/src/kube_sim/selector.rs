//! Label and field selectors, as far as clients of lists and watches use them.

use serde_json::Value;

use super::resource::Resource;
use super::status::Status;

/// Which objects of a collection a request wants. The default wants all.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    namespace: Option<String>,
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

/// One condition on a label, or on a field by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    /// Also true when the label is not there at all.
    NotIn(String, Vec<String>),
}

impl Selector {
    pub(super) fn parse(
        resource: Resource,
        namespace: Option<&str>,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Self, Status> {
        let unreadable = |text: &str| Status::bad_request(format!("unable to parse requirement: {text}"));
        let labels = split(labels.unwrap_or_default())
            .into_iter()
            .map(|text| requirement(&text).ok_or_else(|| unreadable(&text)))
            .collect::<Result<_, _>>()?;
        let fields: Vec<Requirement> = split(fields.unwrap_or_default())
            .into_iter()
            .map(|text| comparison(&text).ok_or_else(|| unreadable(&text)))
            .collect::<Result<_, _>>()?;
        for field in &fields {
            let name = field.subject();
            let known = ["metadata.name", "metadata.namespace"].contains(&name);
            if !known && !resource.selectable_fields().contains(&name) {
                return Err(Status::bad_request(format!("field label not supported: {name}")));
            }
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            labels,
            fields,
        })
    }

    /// True when the request narrows the collection: then the server does not say how many objects remain.
    pub(super) fn narrows(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }

    pub(super) fn wants(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        let in_namespace = self
            .namespace
            .as_deref()
            .is_none_or(|namespace| metadata["namespace"] == namespace);
        in_namespace
            && self
                .labels
                .iter()
                .all(|requirement| requirement.holds(metadata["labels"][requirement.subject()].as_str()))
            && self.fields.iter().all(|requirement| {
                let found = requirement
                    .subject()
                    .split('.')
                    .fold(object, |value, step| &value[step]);
                // A field selector sees every field as text; one that is not set is empty.
                let text = found.as_str().map_or_else(|| plain(found), str::to_owned);
                requirement.holds(Some(&text))
            })
    }
}

fn plain(value: &Value) -> String {
    if value.is_null() {
        String::new()
    } else {
        value.to_string()
    }
}

impl Requirement {
    fn subject(&self) -> &str {
        match self {
            Self::Exists(subject) | Self::Absent(subject) | Self::In(subject, _) | Self::NotIn(subject, _) => subject,
        }
    }

    fn holds(&self, found: Option<&str>) -> bool {
        let among = |values: &[String]| found.is_some_and(|found| values.iter().any(|value| value == found));
        match self {
            Self::Exists(_) => found.is_some(),
            Self::Absent(_) => found.is_none(),
            Self::In(_, values) => among(values),
            Self::NotIn(_, values) => !among(values),
        }
    }
}

/// Splits at the commas that are not inside parentheses.
fn split(text: &str) -> Vec<String> {
    let mut depth = 0_u32;
    let mut parts = vec![String::new()];
    for letter in text.chars() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if letter == ',' && depth == 0 {
            parts.push(String::new());
        } else {
            parts.last_mut().expect("at least one part").push(letter);
        }
    }
    parts
        .into_iter()
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty())
        .collect()
}

/// `a=b`, `a==b`, `a!=b`.
fn comparison(text: &str) -> Option<Requirement> {
    let unequal = text.split_once("!=");
    let (key, value) = unequal
        .or_else(|| text.split_once("=="))
        .or_else(|| text.split_once('='))?;
    let (key, values) = (key.trim().to_owned(), vec![value.trim().to_owned()]);
    (!key.is_empty()).then_some(if unequal.is_none() {
        Requirement::In(key, values)
    } else {
        Requirement::NotIn(key, values)
    })
}

/// A comparison, `a`, `!a`, `a in (b,c)` or `a notin (b,c)`.
fn requirement(text: &str) -> Option<Requirement> {
    if let Some((head, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => Some(Requirement::In(key.to_owned(), values)),
            (Some(key), Some("notin"), None) => Some(Requirement::NotIn(key.to_owned(), values)),
            _ => None,
        };
    }
    if text.contains('=') {
        return comparison(text);
    }
    let (key, present) = text.strip_prefix('!').map_or((text, true), |key| (key.trim(), false));
    let sound = !key.is_empty() && !key.contains(char::is_whitespace);
    sound.then(|| {
        if present {
            Requirement::Exists(key.to_owned())
        } else {
            Requirement::Absent(key.to_owned())
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wants(labels: Option<&str>, fields: Option<&str>) -> bool {
        let object = json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web", "tier": ""}},
            "spec": {"clusterIP": "None"},
        });
        Selector::parse(Resource::Services, Some("shop"), labels, fields)
            .unwrap()
            .wants(&object)
    }

    #[test]
    fn labels_select() {
        for yes in [
            "app=web",
            "app==web",
            "app!=api",
            "other!=x",
            "app",
            "tier",
            "!other",
            "app=web,!other",
            "app in (api, web),tier",
            "app notin (api)",
        ] {
            assert!(wants(Some(yes), None), "{yes}");
        }
        for no in [
            "app=api",
            "app!=web",
            "other",
            "!app",
            "app=web,other",
            "app in (api)",
            "app notin (api,web)",
        ] {
            assert!(!wants(Some(no), None), "{no}");
        }
    }

    #[test]
    fn fields_select() {
        assert!(wants(None, Some("metadata.name=web")));
        assert!(!wants(None, Some("spec.clusterIP!=None")));
        assert!(wants(None, Some("metadata.namespace=shop,spec.type=")));
    }

    #[test]
    fn nonsense_is_refused() {
        for nonsense in ["a b", "=x", "a in b", "a near (b)"] {
            assert!(
                Selector::parse(Resource::Services, None, Some(nonsense), None).is_err(),
                "{nonsense}"
            );
        }
        assert!(Selector::parse(Resource::Services, None, None, Some("spec.ports=1")).is_err());
    }
}
