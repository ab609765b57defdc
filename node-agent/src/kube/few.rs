//! A map of a few entries, in one piece of memory.

use std::borrow::Borrow;
use std::collections::BTreeMap;

/// Sorted entries. There is one such map for every Service, and most have a single entry; a `BTreeMap` would take room for
/// eleven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Few<K, V>(Box<[(K, V)]>);

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<K: Ord, V> From<BTreeMap<K, V>> for Few<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        Self(map.into_iter().collect())
    }
}

impl<K: Ord, V> Few<K, V> {
    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let at = self.0.binary_search_by(|(found, _)| found.borrow().cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_their_keys() {
        let few = Few::from(BTreeMap::from([(3, 'c'), (1, 'a')]));
        assert_eq!(
            [1, 2, 3].map(|key| few.get(&key).copied()),
            [Some('a'), None, Some('c')]
        );
        assert_eq!(few.keys().copied().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(Few::<u8, u8>::default().get(&1), None);
    }
}
