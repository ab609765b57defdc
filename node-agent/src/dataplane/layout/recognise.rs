//! From rules back to what they were made for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use nftfleet_domain::service::Family;

use super::{LayoutSettings, names};
use crate::dataplane::desired::{PodMatch, Pods};
use crate::dataplane::expression::{Base, Expression, Field, MetaKey};

/// The instructions of each chain's rules, as far as they are needed here: loads of headers and properties, settings of
/// properties, masks and comparisons.
pub type Instructions = BTreeMap<String, Vec<Vec<Expression>>>;

/// What a table's rules were made for; none if they are not of our making. It is a guess until the layout of the answer has
/// been compared with the whole table: here only the rules are looked at that differ from one node to another.
pub fn recognise(rules: &Instructions) -> Option<(LayoutSettings, Pods)> {
    let first = |chain: String| rules.get(&chain)?.first();
    let settings = LayoutSettings {
        masquerade_bit: masquerade_bit(rules.get("postrouting")?)?,
        masquerade_all: is_mark(first(names::of("cluster-ip", Family::V4))?),
    };
    let pods = |family| first(names::of("to-local", family)).map(|rule| pods(family, rule));
    let pods = Pods {
        v4: pods(Family::V4)?,
        v6: pods(Family::V6)?,
    };
    Some((settings, pods))
}

/// The one bit of the mark that a rule looks at.
fn masquerade_bit(rules: &[Vec<Expression>]) -> Option<u8> {
    let looked_at = |pair: &[Expression]| match pair {
        [
            Expression::LoadMeta { key: MetaKey::Mark, .. },
            Expression::Bitwise { mask, .. },
        ] => {
            let mask = u32::from_ne_bytes(mask.as_slice().try_into().ok()?);
            let bit = u8::try_from(mask.trailing_zeros()).ok()?;
            mask.is_power_of_two().then_some(bit)
        }
        _ => None,
    };
    rules.iter().flat_map(|rule| rule.windows(2)).find_map(looked_at)
}

/// Whether a rule sets the mark without asking anything before.
fn is_mark(rule: &[Expression]) -> bool {
    matches!(rule.first(), Some(Expression::LoadMeta { key: MetaKey::Mark, .. }))
}

/// Whom a rule lets through by their origin; none if it does not ask.
fn pods(family: Family, rule: &[Expression]) -> Option<PodMatch> {
    let source = |expression: &Expression| match expression {
        Expression::LoadPayload {
            base: Base::Network,
            offset,
            length,
            ..
        } if *offset == Field::Source.offset(family) => u8::try_from(length * 8).ok(),
        _ => None,
    };
    match rule {
        [
            Expression::LoadMeta {
                key: MetaKey::InputName,
                ..
            },
            Expression::Compare { value, .. },
            ..,
        ] => device(value),
        [.., load, Expression::Compare { value, .. }] if source(load).is_some() => {
            network(family, value, source(load)?)
        }
        [
            ..,
            load,
            Expression::Bitwise { mask, .. },
            Expression::Compare { value, .. },
        ] if source(load).is_some() => {
            let ones: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
            network(family, value, u8::try_from(ones).ok()?)
        }
        _ => None,
    }
}

/// A name in full is compared with the zeros after it.
fn device(value: &[u8]) -> Option<PodMatch> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    match value.iter().position(|byte| *byte == 0) {
        Some(end) => text(&value[..end]).map(PodMatch::Interface),
        None => text(value).map(PodMatch::InterfacePrefix),
    }
}

fn network(family: Family, value: &[u8], prefix: u8) -> Option<PodMatch> {
    let mut bytes = [0; 16];
    bytes.get_mut(..value.len())?.copy_from_slice(value);
    let address = match family {
        Family::V4 => IpAddr::from(*bytes.first_chunk::<4>()?),
        Family::V6 => IpAddr::from(bytes),
    };
    IpNet::new(address, prefix).ok().map(PodMatch::Source)
}
