//! Our table as text for `nft`: what the agent's engine wrote and `nft` printed, and changes as the elements that the engine
//! would change.

use std::fmt::Write as _;

use nftfleet_agent::dataplane::diff::diff;
use nftfleet_agent::dataplane::layout::{TABLE, names};
use nftfleet_agent::dataplane::programmed::{Change, Element, Programmed, Which};
use nftfleet_agent::dataplane::{Dataplane, Desired};
use nftfleet_domain::service::Family;
use nftfleet_tests::netns::{Netns, Prefix};

use super::engine::{SETTINGS, desired, netlink, update};
use super::{NFT, Writer};
use crate::cluster::{Cluster, Delta};

/// Writes `inet nftfleet`, and remembers what it wrote.
#[derive(Default)]
pub struct Ours {
    desired: Desired,
    programmed: Programmed,
}

impl Writer for Ours {
    fn loader(&self) -> &'static [&'static str] {
        NFT
    }

    fn listing(&self) -> Option<&'static [&'static str]> {
        None
    }

    fn whole(&mut self, cluster: &Cluster) -> String {
        self.desired = desired(cluster);
        self.programmed = Programmed::default();
        let keys = self.desired.keys();
        self.programmed.apply(diff(&self.desired, &self.programmed, &keys));
        let netns = Netns::create(&Prefix::unique(), "print");
        let mut dataplane = Dataplane::new(netlink(&netns), SETTINGS);
        dataplane
            .load(&self.desired, false)
            .expect("an empty namespace takes our table");
        let elements = dataplane.elements();
        // A listing that meets a hash table while the kernel lets it grow leaves elements out without saying so: the engine
        // reads until the table is found right, and by then it has grown.
        let differences = dataplane.compare(&self.desired).expect("the table is read");
        assert!(
            differences.is_empty() && dataplane.elements() == elements,
            "{differences:?}"
        );
        netns.pipe("nft", &["list", "table", "inet", TABLE], "")
    }

    fn change(&mut self, _: &Cluster, deltas: &[Delta]) -> Vec<String> {
        let keys = self.desired.apply(update(deltas));
        let mut transactions = Vec::new();
        loop {
            let changes = diff(&self.desired, &self.programmed, &keys);
            if changes.is_empty() {
                return transactions;
            }
            transactions.push(text(&changes));
            self.programmed.apply(changes);
        }
    }
}

/// Removals first, as the engine has it.
fn text(changes: &[Change]) -> String {
    let mut text = String::new();
    for (verb, removals) in [("delete", true), ("add", false)] {
        let of_verb = changes
            .iter()
            .filter(|change| matches!(change, Change::Remove(_)) == removals);
        for change in of_verb {
            let (set, element) = element(change.element(), removals);
            writeln!(text, "{verb} element inet {TABLE} {set} {{ {element} }}").expect("a String takes every line");
        }
    }
    text
}

/// An element's set and how `nft` writes it; a removal names no data.
fn element(element: &Element, removed: bool) -> (String, String) {
    let family = Family::V4;
    match element {
        Element::Slot(vip, Which::All, slot, endpoint) => {
            let key = format!("{} . tcp . {} . {slot}", vip.address, vip.port);
            let data = format!(" : {} . {}", endpoint.address, endpoint.port);
            (names::endpoints(family), key + if removed { "" } else { &data })
        }
        Element::Member(vip, which, group) => {
            let key = format!("{} . tcp . {}", vip.address, vip.port);
            (names::group(family, *which, *group), key)
        }
        Element::ClusterIp(address, name) => {
            let comment = format!(" comment \"{name}\"");
            let key = address.to_string() + if removed { "" } else { &comment };
            (names::cluster_ips(family), key)
        }
        other => panic!("{other:?} is of no Service of this cluster"),
    }
}
