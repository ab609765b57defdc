//! kube-proxy's nftables mode, `ip kube-proxy`: chains, maps and comments as its 1.36.2 writes them for `ClusterIP`s, and the
//! chain per endpoint of the releases before.

use std::fmt::Write as _;

use nftfleet_domain::service::Endpoint;
use nftfleet_tests::kube_proxy::Family;
use nftfleet_tests::kube_proxy::nftables::{self, hash};
use nftfleet_tests::lab::CLUSTER_CIDR4;

use super::{NFT, Writer};
use crate::cluster::{Cluster, Delta, SERVICE_PORT, name, vip};

/// Writes `ip kube-proxy`.
pub struct KubeProxy {
    /// Whether endpoints have chains, as before 1.36.
    pub per_endpoint: bool,
}

impl Writer for KubeProxy {
    fn loader(&self) -> &'static [&'static str] {
        NFT
    }

    fn listing(&self) -> Option<&'static [&'static str]> {
        Some(&["nft", "--json", "list", "chains", "ip"])
    }

    fn whole(&mut self, cluster: &Cluster) -> String {
        let mut text = nftables::base(Family::V4);
        for (number, endpoints) in &cluster.services {
            self.service(&mut text, *number, endpoints);
            enter(&mut text, *number);
        }
        text
    }

    /// A Service that stays has its chain written anew. What goes is taken away in the same transaction, where kube-proxy empties
    /// chains now and deletes them in a later one: the cost of both is counted, that of the second `nft` is not.
    fn change(&mut self, _: &Cluster, deltas: &[Delta]) -> Vec<String> {
        let mut text = String::new();
        for Delta { number, before, after } in deltas {
            if before.is_some() && after.is_none() {
                leave(&mut text, *number);
            }
            if before.is_some() {
                put(
                    &mut text,
                    format_args!("flush chain ip kube-proxy {}", service_chain(*number)),
                );
            }
            if let Some(endpoints) = after {
                self.service(&mut text, *number, endpoints);
            }
            if before.is_none() {
                enter(&mut text, *number);
            }
            let gone = before.iter().flatten();
            let gone = gone.filter(|endpoint| !after.as_ref().is_some_and(|after| after.contains(endpoint)));
            for endpoint in gone.filter(|_| self.per_endpoint) {
                delete(&mut text, &endpoint_chain(*number, endpoint));
            }
            if after.is_none() {
                delete(&mut text, &service_chain(*number));
            }
        }
        vec![text]
    }
}

impl KubeProxy {
    /// A Service's chain, which is empty or missing, and those of its endpoints.
    fn service(&self, text: &mut String, number: u32, endpoints: &[Endpoint]) {
        let chain = service_chain(number);
        put(text, format_args!("add chain ip kube-proxy {chain}"));
        let count = endpoints.len();
        if !self.per_endpoint {
            let pairs = endpoints
                .iter()
                .enumerate()
                .map(|(n, e)| format!("{n} : {} . {}", e.address, e.port));
            let pairs = pairs.collect::<Vec<_>>().join(", ");
            put(
                text,
                format_args!(
                    "add rule ip kube-proxy {chain} meta l4proto tcp dnat ip to numgen random mod {count} map {{ {pairs} }}"
                ),
            );
            return;
        }
        let mut verdicts = Vec::new();
        for (n, endpoint) in endpoints.iter().enumerate() {
            let to = endpoint_chain(number, endpoint);
            put(text, format_args!("add chain ip kube-proxy {to}"));
            put(text, format_args!("flush chain ip kube-proxy {to}"));
            put(
                text,
                format_args!(
                    "add rule ip kube-proxy {to} ip saddr {} jump mark-for-masquerade",
                    endpoint.address
                ),
            );
            put(
                text,
                format_args!("add rule ip kube-proxy {to} meta l4proto tcp dnat to {endpoint}"),
            );
            verdicts.push(format!("{n} : goto {to}"));
        }
        let address = vip(number).address;
        put(
            text,
            format_args!(
                "add rule ip kube-proxy {chain} ip daddr {address} tcp dport {SERVICE_PORT} ip saddr != {CLUSTER_CIDR4} \
                 jump mark-for-masquerade"
            ),
        );
        let verdicts = verdicts.join(", ");
        put(
            text,
            format_args!("add rule ip kube-proxy {chain} numgen random mod {count} vmap {{ {verdicts} }}"),
        );
    }
}

fn enter(text: &mut String, number: u32) {
    let (address, chain) = (vip(number).address, service_chain(number));
    put(
        text,
        format_args!("add element ip kube-proxy cluster-ips {{ {address} }}"),
    );
    put(
        text,
        format_args!("add element ip kube-proxy service-ips {{ {address} . tcp . {SERVICE_PORT} : goto {chain} }}"),
    );
}

fn leave(text: &mut String, number: u32) {
    let address = vip(number).address;
    put(
        text,
        format_args!("delete element ip kube-proxy cluster-ips {{ {address} }}"),
    );
    put(
        text,
        format_args!("delete element ip kube-proxy service-ips {{ {address} . tcp . {SERVICE_PORT} }}"),
    );
}

fn delete(text: &mut String, chain: &str) {
    put(text, format_args!("flush chain ip kube-proxy {chain}"));
    put(text, format_args!("delete chain ip kube-proxy {chain}"));
}

fn service_chain(number: u32) -> String {
    let rest = format!("{}/tcp/http", name(number));
    format!("service-{}-{rest}", hash(&rest))
}

fn endpoint_chain(number: u32, endpoint: &Endpoint) -> String {
    let rest = format!("{}/tcp/http__{}/{}", name(number), endpoint.address, endpoint.port);
    format!("endpoint-{}-{rest}", hash(&rest))
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes every line");
}
