//! The name of an object, shared by all that speak of the object.

use std::fmt;
use std::sync::Arc;

use nftfleet_domain::service::ObjectName;

/// Between namespace and name: in neither, and before every letter, so that texts sort as the pairs do.
const BETWEEN: char = '\0';

/// A namespace and a name in one piece of memory; a clone is the same piece.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(Arc<str>);

impl Id {
    /// Of this namespace, which is empty for kinds without, and name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self([namespace, name].join(&BETWEEN.to_string()).into())
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once(BETWEEN).unwrap_or_default()
    }

    /// The name in two pieces.
    pub fn name(&self) -> ObjectName {
        let (namespace, name) = self.parts();
        ObjectName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespace, name) = self.parts();
        write!(f, "{namespace}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_as_the_names_do() {
        let ids = [("", "z"), ("a", "x"), ("a", "y"), ("a-b", "a"), ("b", "")].map(|(a, b)| Id::new(a, b));
        assert!(ids.is_sorted() && ids.iter().map(Id::name).is_sorted());
        assert_eq!(ids[3].to_string(), ids[3].name().to_string());
    }
}
