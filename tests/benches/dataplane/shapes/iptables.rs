//! kube-proxy's iptables mode, as it writes clusters of more than 1,000 endpoints: without comments on Services' rules.
//!
//! A change is a partial restore: the chains of the Services that changed, and `KUBE-SERVICES`, which is always written whole.

use std::fmt::Write as _;

use data_encoding::BASE32;
use nftfleet_domain::service::Endpoint;
use nftfleet_tests::kube_proxy::Backend;
use nftfleet_tests::lab::CLUSTER_CIDR4;
use sha2::{Digest as _, Sha256};

use super::Writer;
use crate::cluster::{Cluster, Delta, SERVICE_PORT, name, vip};

/// From the kernel's chains into kube-proxy's, written once.
const JUMPS: &str = "-I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
     -I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
     -I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n";

/// Writes the table `nat` through this backend.
pub struct Iptables(pub Backend);

impl Writer for Iptables {
    fn loader(&self) -> &'static [&'static str] {
        match self.0 {
            Backend::Nft => &["iptables-nft-restore", "--noflush"],
            // One lock for all namespaces of the machine.
            Backend::Legacy => &["iptables-legacy-restore", "--noflush", "--wait", "60"],
        }
    }

    fn listing(&self) -> Option<&'static [&'static str]> {
        Some(match self.0 {
            Backend::Nft => &["iptables-nft-save", "-t", "nat"],
            Backend::Legacy => &["iptables-legacy-save", "-t", "nat"],
        })
    }

    fn whole(&mut self, cluster: &Cluster) -> String {
        let mut nat = Nat::new(cluster);
        for (number, endpoints) in &cluster.services {
            nat.service(*number, endpoints);
        }
        nat.finish(JUMPS)
    }

    fn change(&mut self, cluster: &Cluster, deltas: &[Delta]) -> Vec<String> {
        let mut nat = Nat::new(cluster);
        for Delta { number, before, after } in deltas {
            if let Some(endpoints) = after {
                nat.service(*number, endpoints);
            }
            let gone = before.iter().flatten();
            for endpoint in gone.filter(|endpoint| !after.as_ref().is_some_and(|after| after.contains(endpoint))) {
                nat.delete(&endpoint_chain(*number, endpoint));
            }
            if after.is_none() {
                nat.delete(&service_chain(*number));
            }
        }
        vec![nat.finish("")]
    }
}

/// The input for one table: chains, then rules, then chains to delete.
struct Nat {
    chains: String,
    rules: String,
    deletions: String,
}

impl Nat {
    /// With what is written every time.
    fn new(cluster: &Cluster) -> Self {
        let mut nat = Self {
            chains: "*nat\n".to_owned(),
            rules: String::new(),
            deletions: String::new(),
        };
        for chain in ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"] {
            nat.chain(chain);
        }
        nat.rule(format_args!(
            "KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN"
        ));
        nat.rule(format_args!("KUBE-POSTROUTING -j MARK --xor-mark 0x4000"));
        nat.rule(format_args!("KUBE-POSTROUTING -j MASQUERADE --random-fully"));
        nat.rule(format_args!("KUBE-MARK-MASQ -j MARK --or-mark 0x4000"));
        for number in cluster.services.keys() {
            let address = vip(*number).address;
            let to = service_chain(*number);
            nat.rule(format_args!(
                "KUBE-SERVICES -m tcp -p tcp -d {address}/32 --dport {SERVICE_PORT} -j {to}"
            ));
        }
        nat.rule(format_args!(
            "KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
        ));
        nat
    }

    /// A Service's chain and those of its endpoints.
    fn service(&mut self, number: u32, endpoints: &[Endpoint]) {
        let chain = service_chain(number);
        let address = vip(number).address;
        self.chain(&chain);
        self.rule(format_args!(
            "{chain} -m tcp -p tcp -d {address}/32 --dport {SERVICE_PORT} ! -s {CLUSTER_CIDR4} -j KUBE-MARK-MASQ"
        ));
        for (left, endpoint) in (1_u32..=u32::try_from(endpoints.len()).expect("few"))
            .rev()
            .zip(endpoints)
        {
            let to = endpoint_chain(number, endpoint);
            if left == 1 {
                self.rule(format_args!("{chain} -j {to}"));
            } else {
                let chance = 1.0 / f64::from(left);
                self.rule(format_args!(
                    "{chain} -m statistic --mode random --probability {chance:.10} -j {to}"
                ));
            }
            self.chain(&to);
            self.rule(format_args!("{to} -s {}/32 -j KUBE-MARK-MASQ", endpoint.address));
            self.rule(format_args!("{to} -m tcp -p tcp -j DNAT --to-destination {endpoint}"));
        }
    }

    fn chain(&mut self, name: &str) {
        writeln!(self.chains, ":{name} - [0:0]").expect("a String takes every line");
    }

    fn rule(&mut self, rule: std::fmt::Arguments<'_>) {
        writeln!(self.rules, "-A {rule}").expect("a String takes every line");
    }

    /// Empties a chain and deletes it at the end.
    fn delete(&mut self, chain: &str) {
        self.chain(chain);
        writeln!(self.deletions, "-X {chain}").expect("a String takes every line");
    }

    fn finish(self, jumps: &str) -> String {
        self.chains + &self.rules + jumps + &self.deletions + "COMMIT\n"
    }
}

fn service_chain(number: u32) -> String {
    format!("KUBE-SVC-{}", hash(&format!("{}:httptcp", name(number))))
}

fn endpoint_chain(number: u32, endpoint: &Endpoint) -> String {
    format!("KUBE-SEP-{}", hash(&format!("{}:httptcp{endpoint}", name(number))))
}

/// Sixteen letters, so that a name stays below iptables' limit of 28.
fn hash(name: &str) -> String {
    BASE32.encode(&Sha256::digest(name))[..16].to_owned()
}
