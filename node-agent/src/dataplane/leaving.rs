//! VIPs that still stand where packets under way may look for them.
//!
//! A packet reads one set after another while commits go by. A VIP that moves from one set to another stands in both until
//! every packet that may have missed it in the new one has left the table: a grace period of the kernel's RCU, some 10 to 20
//! ms, since the kernel walks a packet through the table inside one read-side section. Other commits go on meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use nftfleet_domain::service::Vip;

use super::desired::Key;

/// Names a grace period: whoever has waited for one hands it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grace(u64);

/// The VIPs that wait, and the grace period that frees each.
#[derive(Debug, Default)]
pub struct Leaving {
    waiting: BTreeMap<Vip, u64>,
    /// The grace period that has not begun yet.
    next: u64,
    under_way: bool,
}

impl Leaving {
    /// These VIPs have entered something just now and left something behind: they wait from now on, whatever they waited for
    /// before. A change in which a VIP enters nothing makes it wait no longer, or one that changes all the time would never
    /// leave.
    pub fn note(&mut self, vips: impl IntoIterator<Item = Vip>) {
        self.waiting.extend(vips.into_iter().map(|vip| (vip, self.next)));
    }

    /// Whether the VIP waits.
    pub fn waits(&self, vip: &Vip) -> bool {
        self.waiting.contains_key(vip)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Begins a grace period, unless one is under way or nobody waits.
    pub fn begin(&mut self) -> Option<Grace> {
        if self.under_way || self.waiting.is_empty() {
            return None;
        }
        self.under_way = true;
        self.next += 1;
        Some(Grace(self.next - 1))
    }

    /// The grace period is over: gives those that have waited for it, and forgets them.
    pub fn end(&mut self, grace: Grace) -> BTreeSet<Key> {
        self.under_way = false;
        let free = self.waiting.extract_if(.., |_, since| *since <= grace.0);
        free.map(|(vip, _)| Key::Vip(vip)).collect()
    }

    /// A grace period has gone by in which nothing was written: gives all that wait, and forgets them.
    pub fn end_all(&mut self) -> BTreeSet<Key> {
        let free = std::mem::take(&mut self.waiting);
        free.into_keys().map(Key::Vip).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use nftfleet_domain::service::Protocol;

    use super::*;

    fn vip(port: u16) -> Vip {
        Vip {
            address: IpAddr::from([10, 96, 0, 1]),
            protocol: Protocol::Tcp,
            port,
        }
    }

    #[test]
    fn who_comes_while_a_grace_period_is_under_way_waits_for_the_next() {
        let mut leaving = Leaving::default();
        assert_eq!(leaving.begin(), None);
        leaving.note([vip(1), vip(2)]);
        let first = leaving.begin().unwrap();
        assert_eq!(leaving.begin(), None);
        // The second enters something again: what it leaves behind now may be looked for by packets that are newer.
        leaving.note([vip(2), vip(3)]);
        assert_eq!(leaving.end(first), [Key::Vip(vip(1))].into());
        assert!(!leaving.waits(&vip(1)) && leaving.waits(&vip(2)));
        let second = leaving.begin().unwrap();
        assert_eq!(leaving.end(second), [Key::Vip(vip(2)), Key::Vip(vip(3))].into());
        assert!(leaving.is_empty());
    }
}
