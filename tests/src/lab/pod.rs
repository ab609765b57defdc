//! A second pod on a node, for those who care which pod of a node it is.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::wiring::put;
use super::{Lab, address};
use crate::netns::{Netns, Prefix};

/// One more pod on a node that has both families. The node's device to it is `pod1`, as that to the first one is `pod0`.
#[derive(Clone, Debug)]
pub struct SecondPod {
    /// Its namespace.
    pub netns: Netns,
    /// 10.128.K.130, in the network of the node's pods.
    pub address4: Ipv4Addr,
    /// `fd00:128:K:0:8000::10`.
    pub address6: Ipv6Addr,
    /// The node's address on the device `pod1`, from which a masqueraded packet comes here.
    pub gateway4: Ipv4Addr,
    /// The IPv6 address of the same.
    pub gateway6: Ipv6Addr,
}

impl Lab {
    /// Puts a second pod on the node with this number, from 1.
    pub fn add_pod(&self, number: usize) -> SecondPod {
        let node = self.node(number);
        let netns = Netns::create(&Prefix::unique(), &format!("pod-{number}-2"));
        let [gateway4, address4] = address::second_pod4(number);
        let [gateway6, address6] = address::second_pod6(number);

        let mut script = format!("link add pod1 type veth peer name eth0 netns {}\n", netns.name());
        put(&mut script, format!("addr add {gateway4}/25 dev pod1"));
        put(&mut script, format!("addr add {gateway6}/80 dev pod1 nodad"));
        put(&mut script, "link set pod1 up");
        node.netns.batch(&script);

        let mut script = format!("addr add {address4}/25 dev eth0\n");
        put(&mut script, format!("addr add {address6}/80 dev eth0 nodad"));
        put(&mut script, "link set eth0 up");
        put(&mut script, format!("route add default via {gateway4}"));
        put(&mut script, format!("route add default via {gateway6}"));
        netns.batch(&script);

        // The first pod takes the whole network of the node's pods for its own cable.
        let [a, b, c, _] = node.pod4.octets();
        let mut script = format!("route add {a}.{b}.{c}.128/25 via {a}.{b}.{c}.1\n");
        let pod6 = node.ipv6.expect("a node with IPv6").pod;
        let [a, b, c, ..] = pod6.segments();
        put(
            &mut script,
            format!("route add {a:x}:{b:x}:{c:x}:0:8000::/80 via {a:x}:{b:x}:{c:x}::1"),
        );
        node.pod.batch(&script);
        SecondPod {
            netns,
            address4,
            address6,
            gateway4,
            gateway6,
        }
    }
}
