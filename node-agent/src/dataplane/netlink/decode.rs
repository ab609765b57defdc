//! Rules from the kernel, back to instructions as plain values.

use nftnl_sys::libc;

use super::message::{attributes, find, number, text};
use crate::dataplane::expression::{Base, Comparison, Expression, MetaKey};

/// The chain of a rule that was dumped, and those of its instructions by which one node's rules differ from another's. Others
/// are left out: whoever wants to know whether a rule is as it should be compares it with the one that was meant.
pub fn rule(body: &[u8]) -> Option<(String, Vec<Expression>)> {
    let chain = text(find(body, 2)?);
    let list = find(body, 4).unwrap_or_default();
    let known = attributes(list).filter_map(|(_, entry)| expression(&text(find(entry, 1)?), find(entry, 2)?));
    Some((chain, known.collect()))
}

fn expression(name: &str, body: &[u8]) -> Option<Expression> {
    let field = |kind| find(body, kind).and_then(number);
    let value = |kind| Some(find(find(body, kind)?, 1)?.to_vec());
    Some(match name {
        "meta" => {
            let key = meta_key(field(2)?)?;
            match (field(1), field(3)) {
                (Some(register), _) => Expression::LoadMeta { key, register },
                (None, register) => Expression::SetMeta {
                    key,
                    register: register?,
                },
            }
        }
        "payload" => Expression::LoadPayload {
            base: match field(2)?.cast_signed() {
                libc::NFT_PAYLOAD_NETWORK_HEADER => Base::Network,
                libc::NFT_PAYLOAD_TRANSPORT_HEADER => Base::Transport,
                _ => return None,
            },
            offset: field(3)?,
            length: field(4)?,
            register: field(1)?,
        },
        "cmp" => Expression::Compare {
            register: field(1)?,
            comparison: match field(2)?.cast_signed() {
                libc::NFT_CMP_EQ => Comparison::Equal,
                libc::NFT_CMP_NEQ => Comparison::NotEqual,
                _ => return None,
            },
            value: value(3)?,
        },
        "bitwise" => Expression::Bitwise {
            register: field(1)?,
            mask: value(4)?,
            xor: value(5)?,
        },
        _ => return None,
    })
}

fn meta_key(number: u32) -> Option<MetaKey> {
    Some(match number.cast_signed() {
        libc::NFT_META_NFPROTO => MetaKey::Family,
        libc::NFT_META_L4PROTO => MetaKey::Protocol,
        libc::NFT_META_MARK => MetaKey::Mark,
        libc::NFT_META_PRIORITY => MetaKey::Priority,
        libc::NFT_META_IIFNAME => MetaKey::InputName,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;
    use crate::dataplane::desired::{PodMatch, Pods};
    use crate::dataplane::layout::{Instructions, Layout, LayoutSettings, recognise};
    use crate::dataplane::netlink::{message, object};

    /// The rules of a layout as they would be dumped, but the many that are alike on every node.
    fn dumped(layout: &Layout) -> Instructions {
        let mut rules = Instructions::new();
        for chain in layout.chains.iter().filter(|chain| !chain.name.contains("slots")) {
            for written in &chain.rules {
                let mut bytes = Vec::new();
                object::new_rule(&mut bytes, 1, &chain.name, written).unwrap();
                let message = message::received(&bytes).next().unwrap();
                let (name, read) = rule(message.body()).unwrap();
                rules.entry(name).or_default().push(read);
            }
        }
        rules
    }

    fn settings() -> impl Strategy<Value = LayoutSettings> {
        (0u8..32, any::<bool>()).prop_map(|(masquerade_bit, masquerade_all)| LayoutSettings {
            masquerade_bit,
            masquerade_all,
        })
    }

    fn network(address: impl Into<IpAddr>, prefix: u8) -> PodMatch {
        PodMatch::Source(IpNet::new(address.into(), prefix).unwrap().trunc())
    }

    fn device() -> impl Strategy<Value = PodMatch> {
        ("[a-z0-9.@_-]{1,15}", any::<bool>()).prop_map(|(name, whole)| {
            if whole {
                PodMatch::Interface(name)
            } else {
                PodMatch::InterfacePrefix(name)
            }
        })
    }

    fn pods() -> impl Strategy<Value = Pods> {
        let v4 = (any::<[u8; 4]>(), 1u8..=32).prop_map(|(address, prefix)| network(address, prefix));
        let v6 = (any::<[u8; 16]>(), 1u8..=128).prop_map(|(address, prefix)| network(address, prefix));
        let v4 = proptest::option::of(prop_oneof![v4, device()]);
        let v6 = proptest::option::of(prop_oneof![v6, device()]);
        (v4, v6).prop_map(|(v4, v6)| Pods { v4, v6 })
    }

    proptest! {
        #[test]
        fn every_layout_is_recognised(settings in settings(), pods in pods()) {
            let layout = Layout::new(settings, &pods, &BTreeSet::new());
            prop_assert_eq!(recognise(&dumped(&layout)), Some((settings, pods)));
        }
    }

    #[test]
    fn a_match_that_matches_nobody_or_everybody_is_none() {
        let pods = Pods {
            v4: Some(network([0u8; 16], 64)),
            v6: Some(network([0u8; 16], 0)),
        };
        let settings = LayoutSettings {
            masquerade_bit: 14,
            masquerade_all: true,
        };
        let layout = Layout::new(settings, &pods, &BTreeSet::new());
        assert_eq!(recognise(&dumped(&layout)), Some((settings, Pods::default())));
    }

    #[test]
    fn rules_of_another_make_are_not_recognised() {
        let settings = LayoutSettings {
            masquerade_bit: 14,
            masquerade_all: false,
        };
        let whole = dumped(&Layout::new(settings, &Pods::default(), &BTreeSet::new()));
        for chain in ["postrouting", "cluster-ip4", "to-local4", "to-local6"] {
            let mut rules = whole.clone();
            rules.remove(chain);
            assert_eq!(recognise(&rules), None, "{chain}");
        }
    }
}
