//! Names and identities. Each is checked where it is made; after that its type is the proof.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A name that is not what it has to be, with what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} is not {allowed}")]
pub struct BadName {
    /// What was being named, for example `node name`.
    pub what: &'static str,
    /// The text as it was given.
    pub given: String,
    /// The rule in words.
    pub allowed: &'static str,
}

/// Whether `text` is a DNS-1123 subdomain of at most `longest` characters, the rule for Kubernetes object names.
fn is_dns_subdomain(text: &str, longest: usize) -> bool {
    let legal = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=longest).contains(&text.len())
        && text.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(legal) && !label.starts_with('-') && !label.ends_with('-')
        })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $longest:literal, $allowed:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                if is_dns_subdomain(text, $longest) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(BadName { what: $what, given: text.to_owned(), allowed: $allowed })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(text: String) -> Result<Self, BadName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A cluster's name, unique in the fleet: 1-63 characters of `a-z`, `0-9`, `-` and `.`.
    ClusterName,
    "cluster name",
    63,
    "1-63 characters of a-z, 0-9, '-' and '.', each label starting and ending with a letter or digit"
);
name!(
    /// A node's name as Kubernetes knows it, unique in its cluster: a DNS-1123 subdomain of at most 253 characters.
    NodeName,
    "node name",
    253,
    "1-253 characters of a-z, 0-9, '-' and '.', each label starting and ending with a letter or digit"
);
name!(
    /// A rollout's name: 1-63 characters of `a-z`, `0-9`, `-` and `.`; it need not be unique.
    RolloutName,
    "rollout name",
    63,
    "1-63 characters of a-z, 0-9, '-' and '.', each label starting and ending with a letter or digit"
);
name!(
    /// A stage's name, unique in its rollout: 1-63 characters of `a-z`, `0-9`, `-` and `.`.
    StageName,
    "stage name",
    63,
    "1-63 characters of a-z, 0-9, '-' and '.', each label starting and ending with a letter or digit"
);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// Identity of a cluster.
    ClusterId
);
id!(
    /// Identity of a node of a cluster.
    NodeId
);
id!(
    /// Identity of a rollout.
    RolloutId
);
id!(
    /// Identity of one node's piece of work in a rollout.
    TaskId
);

/// How often a row was changed; every write names the one that it read, and loses if it moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub i64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which try of a piece of work this is, from 1. Results of an older attempt are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_a_dns_subdomain() {
        for good in [
            "n",
            "node-1",
            "ip-10-0-0-1.eu-west-1.compute.internal",
            &"a".repeat(253),
        ] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a..b", ".a", "a.", "ä", &"a".repeat(254)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_name_says_what_is_allowed() {
        let error = "No".parse::<ClusterName>().unwrap_err().to_string();
        assert_eq!(
            error,
            "cluster name \"No\" is not 1-63 characters of a-z, 0-9, '-' and '.', each label starting and ending with a \
             letter or digit"
        );
    }

    #[test]
    fn names_are_checked_when_they_are_read_back() {
        assert!(serde_json::from_str::<NodeName>("\"a b\"").is_err());
    }
}
