//! Pages: a limit, and an opaque token that holds the last key of the page before.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::parameters::{ParameterError, Parameters};

/// What part of a list is wanted.
#[derive(Debug)]
pub(super) struct Page<K> {
    /// How many items at most.
    pub(super) limit: u32,
    /// The key that the items come after.
    pub(super) after: Option<K>,
}

impl<K: Serialize + DeserializeOwned> Page<K> {
    pub(super) fn of(parameters: &Parameters) -> Result<Self, ParameterError> {
        let limit = parameters.number("limit", 1..=1000)?.unwrap_or(100);
        let bad = || ParameterError::new("pageToken", "is not the nextPageToken of a page of this list");
        let after = match parameters.text("pageToken") {
            None => None,
            Some(token) => Some(read(token).ok_or_else(bad)?),
        };
        Ok(Self {
            limit: u32::try_from(limit).unwrap_or(100),
            after,
        })
    }

    /// One more than the page holds, to see whether there is another.
    pub(super) fn one_more(&self) -> u32 {
        self.limit + 1
    }

    /// Cuts `items` to the page, and gives the token of the next one if there is one.
    pub(super) fn cut<T>(&self, items: &mut Vec<T>, key: impl Fn(&T) -> K) -> Option<String> {
        let limit = self.limit as usize;
        if items.len() <= limit {
            return None;
        }
        items.truncate(limit);
        items.last().map(|last| write(&key(last)))
    }
}

/// JSON in hexadecimal.
fn write<K: Serialize>(key: &K) -> String {
    use std::fmt::Write as _;
    let json = serde_json::to_vec(key).expect("keys have text keys only");
    json.iter().fold(String::new(), |mut token, byte| {
        // Writing to a string can't fail.
        let _ = write!(token, "{byte:02x}");
        token
    })
}

fn read<K: DeserializeOwned>(token: &str) -> Option<K> {
    let digits = token.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let json: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    serde_json::from_slice(&json?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_its_key_and_rubbish_does_not() {
        let key = ("cluster".to_owned(), "node".to_owned());
        assert_eq!(read::<(String, String)>(&write(&key)), Some(key));
        for rubbish in ["", "0", "zz", "ää", "+1+1", &write(&1)] {
            assert_eq!(read::<(String, String)>(rubbish), None, "{rubbish}");
        }
    }
}
