//! From the packet's destination to the chain that picks an endpoint, refuses or drops.

use ipnet::IpNet;
use nftfleet_domain::service::Family;

use super::{REJECT, VIP, chain, drop_packet, goto, is_family, is_in, jump, names, set_mark};
use crate::dataplane::desired::{PodMatch, Route};
use crate::dataplane::expression::{Base, Comparison, Expression, Field, MetaKey, Rule, load_fields, register_of_word};
use crate::dataplane::layout::{Chain, LayoutSettings};
use crate::dataplane::programmed::{Group, Which};

/// `RTN_LOCAL`: an address of the node itself.
const LOCAL: u32 = 2;

const SECOND_LOOK: &str = "second look: a commit fell between two lookups";

/// Finds the group of a VIP.
pub(in super::super) fn pick(family: Family, which: Which, groups: &[Group]) -> Chain {
    let rule = |group: &Group| {
        let mut expressions = is_family(family);
        expressions.extend(is_in(family, &VIP, names::group(family, which, *group)));
        expressions.push(goto(names::picking(family, which, *group)));
        Rule::new(expressions)
    };
    chain(names::pick(family, which), groups.iter().map(rule).collect())
}

/// The chains between a hook and [`pick`], in the order in which they must be made.
pub(in super::super) fn dispatch(family: Family, settings: LayoutSettings, pods: Option<&PodMatch>) -> [Chain; 6] {
    let pods = pods.filter(|pods| fits(family, pods));
    [
        pick_or_reject(family),
        to_all(family, settings),
        to_local(family, pods),
        cluster_ip(family, settings, pods),
        external(family),
        services(family),
    ]
}

/// An address of the other family would match what it must not, and a network of all addresses tells nobody apart.
fn fits(family: Family, pods: &PodMatch) -> bool {
    match pods {
        PodMatch::Source(network) => Family::of(network.addr()) == family && network.prefix_len() > 0,
        PodMatch::Interface(_) | PodMatch::InterfacePrefix(_) => true,
    }
}

fn look(family: Family, which: Which) -> Rule {
    Rule::new(vec![jump(names::pick(family, which))])
}

fn look_again(family: Family, which: Which) -> Rule {
    Rule::with_comment(vec![jump(names::pick(family, which))], SECOND_LOOK)
}

fn reject() -> Rule {
    Rule::new(vec![goto(REJECT.to_owned())])
}

fn pick_or_reject(family: Family) -> Chain {
    let rules = vec![look(family, Which::All), look_again(family, Which::All), reject()];
    chain(names::of("pick-or-reject", family), rules)
}

/// Traffic policy Cluster: any endpoint, and the answer must come back through this node.
fn to_all(family: Family, settings: LayoutSettings) -> Chain {
    let rules = vec![
        Rule::new(set_mark(settings).to_vec()),
        Rule::new(vec![goto(names::of("pick-or-reject", family))]),
    ];
    chain(names::of("to-all", family), rules)
}

/// Traffic policy Local: who is in the cluster may use every endpoint, others those of this node.
fn to_local(family: Family, pods: Option<&PodMatch>) -> Chain {
    let mut rules = Vec::new();
    if let Some(pods) = pods {
        let mut expressions = from_pods(family, pods, Comparison::Equal);
        expressions.push(goto(names::of("pick-or-reject", family)));
        rules.push(Rule::new(expressions));
    }
    rules.push(Rule::new(vec![
        Expression::LoadSourceKind { register: 1 },
        Expression::Compare {
            register: 1,
            comparison: Comparison::Equal,
            value: LOCAL.to_ne_bytes().to_vec(),
        },
        goto(names::of("to-all", family)),
    ]));
    rules.extend([
        look(family, Which::Local),
        look_again(family, Which::Local),
        Rule::new(vec![drop_packet()]),
    ]);
    chain(names::of("to-local", family), rules)
}

fn cluster_ip(family: Family, settings: LayoutSettings, pods: Option<&PodMatch>) -> Chain {
    let mut rules = Vec::new();
    let everybody = settings.masquerade_all.then(Vec::new);
    let others = || pods.map(|pods| from_pods(family, pods, Comparison::NotEqual));
    if let Some(mut expressions) = everybody.or_else(others) {
        expressions.extend(set_mark(settings));
        rules.push(Rule::new(expressions));
    }
    let mut nowhere = is_family(family);
    nowhere.extend(is_in(family, &VIP, names::route(family, Route::NoLocalEndpoints)));
    nowhere.push(drop_packet());
    rules.extend([
        look(family, Which::All),
        look(family, Which::Local),
        Rule::new(nowhere),
        look_again(family, Which::All),
        look_again(family, Which::Local),
        reject(),
    ]);
    chain(names::of("cluster-ip", family), rules)
}

/// Load balancers' and external addresses, and node ports. A port that no Service has is none of ours, but only at the second
/// look: a VIP changes from one of these sets to another in one commit.
fn external(family: Family) -> Chain {
    let mut refused = is_family(family);
    refused.extend(is_in(family, &VIP, names::firewalled(family)));
    refused.extend(load_interval_fields(family));
    refused.push(Expression::Lookup {
        register: 1,
        set: names::firewall_sources(family),
        into: None,
        inverted: true,
    });
    refused.push(drop_packet());
    let route = |route, target: String| {
        let mut expressions = is_family(family);
        expressions.extend(is_in(family, &VIP, names::route(family, route)));
        expressions.push(goto(target));
        expressions
    };
    let routes = [
        route(Route::ToAll, names::of("to-all", family)),
        route(Route::ToLocal, names::of("to-local", family)),
        route(Route::NoEndpoints, REJECT.to_owned()),
    ];
    let again = |expressions: &Vec<Expression>| Rule::with_comment(expressions.clone(), SECOND_LOOK);
    let again: Vec<Rule> = routes.iter().map(again).collect();
    let rules = [Rule::new(refused)].into_iter();
    let rules = rules.chain(routes.map(Rule::new)).chain(again).collect();
    chain(names::of("external", family), rules)
}

fn services(family: Family) -> Chain {
    let addressed = |set: String, verdict: Expression| {
        let mut expressions = is_family(family);
        expressions.extend(is_in(family, &[Field::Destination], set));
        expressions.push(verdict);
        Rule::new(expressions)
    };
    let external = || jump(names::of("external", family));
    let rules = vec![
        addressed(names::cluster_ips(family), goto(names::of("cluster-ip", family))),
        addressed(names::external_ips(family), external()),
        addressed(names::nodeport_ips(family), external()),
        addressed(names::service_cidrs(family), drop_packet()),
    ];
    chain(names::of("services", family), rules)
}

/// A VIP and a source, as nft loads them to look into a set of ranges: it turns the bytes of the protocol, which is one.
fn load_interval_fields(family: Family) -> Vec<Expression> {
    let fields = [VIP[0], VIP[1], VIP[2], Field::Source];
    let mut expressions = load_fields(family, &fields);
    let register = register_of_word(Field::Destination.words(family));
    expressions.insert(
        2,
        Expression::ByteOrder {
            register,
            length: 1,
            size: 2,
        },
    );
    expressions
}

/// Compares the packet's origin with where pods are, as nft writes it.
fn from_pods(family: Family, pods: &PodMatch, comparison: Comparison) -> Vec<Expression> {
    let compare = |value| Expression::Compare {
        register: 1,
        comparison,
        value,
    };
    let device = Expression::LoadMeta {
        key: MetaKey::InputName,
        register: 1,
    };
    match pods {
        PodMatch::Source(network) => {
            let mut expressions = is_family(family);
            expressions.extend(load_prefix(family, network));
            expressions.push(compare(prefix_value(network)));
            expressions
        }
        PodMatch::Interface(name) => {
            let mut value = name.as_bytes().to_vec();
            value.resize(INTERFACE_NAME, 0);
            vec![device, compare(value)]
        }
        PodMatch::InterfacePrefix(prefix) => vec![device, compare(prefix.as_bytes().to_vec())],
    }
}

/// `IFNAMSIZ`.
const INTERFACE_NAME: usize = 16;

/// Loads what is compared of a source address: nft takes whole bytes where it can, and masks otherwise.
fn load_prefix(family: Family, network: &IpNet) -> Vec<Expression> {
    let (whole, rest) = (u32::from(network.prefix_len() / 8), network.prefix_len() % 8);
    let all = 4 * Field::Source.words(family);
    let load = |length| Expression::LoadPayload {
        base: Base::Network,
        offset: Field::Source.offset(family),
        length,
        register: 1,
    };
    if rest == 0 {
        return vec![load(whole)];
    }
    let mask = match network.netmask() {
        std::net::IpAddr::V4(mask) => mask.octets().to_vec(),
        std::net::IpAddr::V6(mask) => mask.octets().to_vec(),
    };
    let masked = Expression::Bitwise {
        register: 1,
        xor: vec![0; mask.len()],
        mask,
    };
    vec![load(all), masked]
}

fn prefix_value(network: &IpNet) -> Vec<u8> {
    let mut value = match network.network() {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
    if network.prefix_len().is_multiple_of(8) {
        value.truncate(usize::from(network.prefix_len() / 8));
    }
    value
}
