//! Who has which address. K is the number of a node, J that of a backend; both are below 100.
//!
//! In IPv6 the decimal number is written as it is into a group, so that `10.128.7.10` and `fd00:128:7::10` look alike.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The addresses of all pods, backends included: what kube-proxy calls the cluster CIDR.
pub const CLUSTER_CIDR4: &str = "10.128.0.0/16";
/// The IPv6 addresses of all pods.
pub const CLUSTER_CIDR6: &str = "fd00:128::/32";
/// The addresses of all Services. Nobody has one; each node sends them to its default route.
pub const SERVICE_CIDR4: &str = "10.96.0.0/12";
/// The IPv6 addresses of all Services.
pub const SERVICE_CIDR6: &str = "fd00:10:96::/112";
/// The nodes and the control host.
pub const FABRIC_CIDR4: &str = "192.168.50.0/24";
/// The IPv6 addresses of the nodes and of the control host.
pub const FABRIC_CIDR6: &str = "fd00:50::/64";
/// The control host.
pub const CONTROL4: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 250);
/// The IPv6 address of the control host.
pub const CONTROL6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, 0x250);

/// The pods which stand for those of nodes outside the lab.
pub(super) const BACKENDS4: &str = "10.128.200.0/24";
pub(super) const BACKENDS6: &str = "fd00:128:200::/64";

pub(super) fn node4(k: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 50, octet(k))
}

pub(super) fn node6(k: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, group(k))
}

pub(super) fn client4(k: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, octet(k), 2)
}

pub(super) fn client6(k: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x30, group(k), 0, 0, 0, 0, 2)
}

pub(super) fn pod4(k: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 128, octet(k), 10)
}

pub(super) fn pod6(k: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x128, group(k), 0, 0, 0, 0, 0x10)
}

/// The node's and the pod's address on the cable of a second pod; its network is the upper half of the node's.
pub(super) fn second_pod4(k: usize) -> [Ipv4Addr; 2] {
    [129, 130].map(|last| Ipv4Addr::new(10, 128, octet(k), last))
}

pub(super) fn second_pod6(k: usize) -> [Ipv6Addr; 2] {
    [1, 0x10].map(|last| Ipv6Addr::new(0xfd00, 0x128, group(k), 0, 0x8000, 0, 0, last))
}

pub(super) fn backend4(j: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 128, 200, octet(j))
}

pub(super) fn backend6(j: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x128, 0x200, 0, 0, 0, 0, group(j))
}

fn octet(number: usize) -> u8 {
    u8::try_from(number).expect("a number below 100")
}

/// The hexadecimal group that reads like the decimal number.
fn group(number: usize) -> u16 {
    u16::from_str_radix(&number.to_string(), 16).expect("a number below 100")
}
