//! What else is found in a node's iptables, and is nobody's but its owner's.

use super::Family;

/// firewalld's own table in the shape of firewalld 1.3, cut down to one zone that accepts all (`--set-default-zone=trusted`, as
/// it must be for pods to be reached) and a port that is closed.
pub(super) const FIREWALLD: &str = "
table inet firewalld {
    chain mangle_PREROUTING {
        type filter hook prerouting priority mangle + 10; policy accept;
        jump mangle_PREROUTING_ZONES
    }
    chain mangle_PREROUTING_ZONES {
        goto mangle_PRE_trusted
    }
    chain mangle_PRE_trusted {
    }
    chain nat_PREROUTING {
        type nat hook prerouting priority dstnat + 10; policy accept;
        jump nat_PREROUTING_ZONES
    }
    chain nat_PREROUTING_ZONES {
        goto nat_PRE_trusted
    }
    chain nat_PRE_trusted {
        tcp dport 8443 redirect to :443
    }
    chain nat_POSTROUTING {
        type nat hook postrouting priority srcnat + 10; policy accept;
        jump nat_POSTROUTING_ZONES
    }
    chain nat_POSTROUTING_ZONES {
        goto nat_POST_trusted
    }
    chain nat_POST_trusted {
    }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname lo accept
        jump filter_INPUT_ZONES
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname lo accept
        jump filter_FORWARD_ZONES
    }
    chain filter_OUTPUT {
        type filter hook output priority filter + 10; policy accept;
        ct state { established, related } accept
        oifname lo accept
    }
    chain filter_INPUT_ZONES {
        goto filter_IN_trusted
    }
    chain filter_FORWARD_ZONES {
        goto filter_FWD_trusted
    }
    chain filter_IN_trusted {
        tcp dport 9998 reject with icmpx admin-prohibited
        accept
    }
    chain filter_FWD_trusted {
        accept
    }
}
";

/// kubelet's chains: two that only mark that kubelet was here, and a rule against packets from outside to localhost.
pub(super) fn kubelet(family: Family) -> String {
    let firewall = match family {
        Family::V4 => {
            ":KUBE-FIREWALL - [0:0]\n\
             -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet \
             connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n\
             -I OUTPUT -j KUBE-FIREWALL\n\
             -I INPUT -j KUBE-FIREWALL\n"
        }
        Family::V6 => "",
    };
    format!(
        "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n\
         *filter\n:KUBE-KUBELET-CANARY - [0:0]\n{firewall}COMMIT\n\
         *nat\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"
    )
}

/// Docker's chain and masquerade, a CNI's host port to a pod of the lab's network, and a rule that the site's people
/// put in by hand.
pub(super) fn foreign(family: Family) -> String {
    let (bridge, local, pod, pod_port) = match family {
        Family::V4 => ("172.17.0.0/16", "127.0.0.0/8", "10.128.1.10/32", "10.128.1.10:80"),
        Family::V6 => ("fd00:17::/64", "::1/128", "fd00:128:1::10/128", "[fd00:128:1::10]:80"),
    };
    format!(
        "*nat\n\
         :DOCKER - [0:0]\n\
         :CNI-HOSTPORT-DNAT - [0:0]\n\
         :CNI-HOSTPORT-MASQ - [0:0]\n\
         :CNI-HOSTPORT-SETMARK - [0:0]\n\
         :CNI-DN-5f0bbc4f3a4b2a1dd6b21 - [0:0]\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
         -A OUTPUT ! -d {local} -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
         -A POSTROUTING -s {bridge} ! -o docker0 -j MASQUERADE\n\
         -A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ\n\
         -A DOCKER -i docker0 -j RETURN\n\
         -A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --or-mark 0x2000\n\
         -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\n\
         -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"cbr0\\\" id: \\\"5f0b\\\"\" -m multiport \
         --dports 18080 -j CNI-DN-5f0bbc4f3a4b2a1dd6b21\n\
         -A CNI-DN-5f0bbc4f3a4b2a1dd6b21 -s {pod} -p tcp -m tcp --dport 18080 -j CNI-HOSTPORT-SETMARK\n\
         -A CNI-DN-5f0bbc4f3a4b2a1dd6b21 -p tcp -m tcp --dport 18080 -j DNAT --to-destination {pod_port}\n\
         COMMIT\n\
         *filter\n\
         -A INPUT -p tcp -m tcp --dport 9999 -m comment --comment \"site: no metrics from outside\" -j DROP\n\
         COMMIT\n"
    )
}
