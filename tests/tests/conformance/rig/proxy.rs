//! The data plane of one node, fed as the agent feeds it.

use std::process::Output;

use nftfleet_agent::dataplane::{Dataplane, Desired, Netlink, Update};
use nftfleet_agent::kube::{Event, Index, IndexSettings, Kind, Object};
use nftfleet_agent::node_addresses;
use nftfleet_tests::lab::LabNode;
use nftfleet_tests::netns::Netns;
use serde_json::Value;

use super::{Setup, kind_of};

/// What the agent of one node knows, wants, and has programmed.
pub struct Proxy {
    pub index: Index,
    pub desired: Desired,
    pub dataplane: Dataplane<Netlink>,
    node: LabNode,
}

impl Proxy {
    /// A fresh start of the agent on a node: knows these objects, and has made the table hold what they mean. Gives the number
    /// of transactions that this took too.
    pub fn start(node: &LabNode, setup: &Setup, objects: &[Value]) -> (Self, usize) {
        let mut proxy = Self {
            index: Index::new(IndexSettings {
                node: node.name.parse().expect("the name of a node"),
                nodeport_addresses: setup.nodeport_addresses.clone(),
                local_traffic: setup.local_traffic.clone(),
            }),
            desired: Desired::default(),
            dataplane: dataplane(&node.netns, setup),
            node: node.clone(),
        };
        proxy.read_addresses();
        proxy.list(objects);
        let update = proxy.index.update().expect("every first list is in");
        proxy.desired.apply(update);
        let commits = proxy.load();
        (proxy, commits)
    }

    /// Takes a list of everything, kind by kind.
    pub fn list(&mut self, objects: &[Value]) {
        for kind in Kind::ALL {
            self.index.take(kind, Event::Begin);
            for object in objects.iter().filter(|object| kind_of(object) == kind) {
                let complaints = self.take(object, Event::Listed);
                assert!(complaints.is_empty(), "{complaints:?}");
            }
            self.index.take(kind, Event::End);
        }
    }

    /// Takes one object; gives what was said against it.
    pub fn take(&mut self, object: &Value, event: impl FnOnce(Object) -> Event) -> Vec<String> {
        // The agent watches its own Node alone.
        if kind_of(object) == Kind::Node && object["metadata"]["name"] != *self.node.name {
            return Vec::new();
        }
        let parsed: Object = serde_json::from_value(object.clone()).expect("an object of Kubernetes");
        let bad = self.index.take(kind_of(object), event(parsed));
        bad.iter().map(ToString::to_string).collect()
    }

    /// Programs what has changed; gives the number of transactions.
    pub fn commit(&mut self) -> usize {
        let update = self.index.update().expect("every first list is in");
        self.program(update)
    }

    /// Programs a change, from wherever it was heard, and waits for packets under way; gives the number of transactions.
    pub fn program(&mut self, update: Update) -> usize {
        let keys = self.desired.apply(update);
        let followed = self.dataplane.follow(&self.desired, &keys);
        let settled = self.dataplane.settle(&self.desired);
        let settled = followed.and_then(|commits| Ok(commits + settled?));
        settled.unwrap_or_else(|error| panic!("{}: {error}", self.node.name))
    }

    /// Makes the table hold everything that is desired; gives the number of transactions.
    pub fn load(&mut self) -> usize {
        self.dataplane
            .load(&self.desired, false)
            .unwrap_or_else(|error| panic!("{}: {error}", self.node.name))
    }

    /// How the kernel's table differs from what is desired.
    pub fn differences(&mut self) -> Vec<String> {
        self.dataplane
            .compare(&self.desired)
            .unwrap_or_else(|error| panic!("{}: {error}", self.node.name))
    }

    /// Takes the node's own addresses from its kernel.
    pub fn read_addresses(&mut self) {
        let addresses = self.node.netns.run(node_addresses::list);
        self.index.set_addresses(addresses.expect("the kernel's addresses"));
    }

    /// What `nft` prints for these arguments on the node, which it must do without a complaint.
    pub fn nft(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self
            .node
            .netns
            .command("nft")
            .args(arguments)
            .output()
            .expect("nft starts");
        let complaint = String::from_utf8_lossy(&stderr);
        assert!(
            status.success() && complaint.is_empty(),
            "nft {arguments:?}: {status}, {complaint}"
        );
        String::from_utf8(stdout).expect("nft prints text")
    }

    /// Feeds `nft` on the node, as a stranger would.
    pub fn nft_load(&self, script: &str) {
        self.node.netns.pipe("nft", &["-f", "-"], script);
    }

    /// Our table, as a person would look at it.
    pub fn table(&self) -> String {
        self.nft(&["list", "table", "inet", "nftfleet"])
    }

    /// A person can read the table, and it holds what is desired.
    pub fn ends_well(&mut self) {
        let table = self.table();
        assert!(table.starts_with("table inet nftfleet {"), "{table}");
        assert_eq!(self.differences(), Vec::<String>::new(), "on {}", self.node.name);
    }
}

fn dataplane(netns: &Netns, setup: &Setup) -> Dataplane<Netlink> {
    let kernel = netns.run(|| Netlink::open().expect("a netlink socket"));
    Dataplane::new(kernel, setup.layout)
}
