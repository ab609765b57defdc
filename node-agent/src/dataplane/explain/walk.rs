//! A packet's way through the table, chain by chain as in `layout/rules`.

use std::net::SocketAddr;

use nftfleet_domain::service::{Endpoint, Family, Protocol, Vip};

use super::packet::Source;
use super::spread::{client, spread};
use super::{
    Affinity, Client, DroppedFor, Fate, Finding, LeftFor, Mark, Masquerade, Origin, Outcome, Packet, Policy, Refusal,
    RefusedFor, Step, Table, text,
};
use crate::dataplane::desired::Route;
use crate::dataplane::layout::names;
use crate::dataplane::programmed::{Held, HeldList, Which};

/// Follows a packet to its end.
pub fn walk(table: &Table, packet: &Packet, source: Source) -> Fate {
    let family = Family::of(packet.to.address);
    let mut walk = Walk {
        table,
        packet,
        source,
        family,
        held: table.programmed.vips.get(&packet.to),
        pods: table.pods.of(family).map(text::pods),
        marked: false,
        fate: Fate {
            policy: None,
            sources: None,
            steps: Vec::new(),
            spread: None,
            outcome: Outcome::LeftAlone {
                why: LeftFor::UnknownAddress,
            },
        },
    };
    walk.fate.outcome = walk.hook();
    walk.fate
}

struct Walk<'a> {
    table: &'a Table,
    packet: &'a Packet,
    source: Source,
    family: Family,
    held: Option<&'a Held>,
    pods: Option<String>,
    marked: bool,
    fate: Fate,
}

/// Each method is a chain; none means that the packet comes back from it.
impl Walk<'_> {
    fn hook(&mut self) -> Outcome {
        let hook = if self.source.origin == Origin::Node {
            "output"
        } else {
            "prerouting"
        };
        self.step(hook, Finding::Enters);
        let address = self.packet.to.address;
        if self.source.origin == Origin::Node
            && self.table.programmed.nodeport_ips.contains(&address)
            && let Some(name) = self.route(Route::NoEndpoints)
        {
            let set = names::route(self.family, Route::NoEndpoints);
            self.member("output", &set, self.vip(), Some(name), "accept");
            let why = LeftFor::OwnClosedPort;
            return Outcome::LeftAlone { why };
        }
        self.services()
    }

    fn services(&mut self) -> Outcome {
        let (address, family) = (self.packet.to.address, self.family);
        let chain = names::of("services", family);
        let programmed = &self.table.programmed;
        if let Some(name) = programmed.cluster_ips.get(&address) {
            let (set, then) = (names::cluster_ips(family), names::of("cluster-ip", family));
            self.member(&chain, &set, address.to_string(), Some(name.to_string()), &then);
            return self.cluster_ip();
        }
        let (is_external, is_node) = (
            programmed.external_ips.contains(&address),
            programmed.nodeport_ips.contains(&address),
        );
        let sets = [
            (is_external, names::external_ips(family)),
            (is_node, names::nodeport_ips(family)),
        ];
        for (_, set) in sets.iter().filter(|(is_in, _)| *is_in) {
            self.member(&chain, set, address.to_string(), None, &names::of("external", family));
            if let Some(outcome) = self.external() {
                return outcome;
            }
        }
        if programmed.service_cidrs.iter().any(|cidr| cidr.contains(&address)) {
            let set = names::service_cidrs(family);
            self.member(&chain, &set, address.to_string(), None, "drop");
            return Outcome::Dropped {
                why: DroppedFor::Unallocated,
            };
        }
        if !is_external && !is_node {
            let sets = [
                names::cluster_ips(family),
                names::external_ips(family),
                names::nodeport_ips(family),
                names::service_cidrs(family),
            ];
            self.not_member(&chain, address.to_string(), sets.join(", "));
        }
        let why = if is_external || is_node {
            LeftFor::UnknownPort
        } else {
            LeftFor::UnknownAddress
        };
        Outcome::LeftAlone { why }
    }

    fn cluster_ip(&mut self) -> Outcome {
        let chain = names::of("cluster-ip", self.family);
        let no_local = self.route(Route::NoLocalEndpoints);
        let of = |held: Option<&Held>, which| held.is_some_and(|held| !held.list(which).groups.is_empty());
        self.fate.policy = if of(self.held, Which::All) {
            Some(Policy::Cluster)
        } else if no_local.is_some() || of(self.held, Which::Local) {
            Some(Policy::Local)
        } else {
            None
        };
        if self.table.settings.masquerade_all {
            self.mark(&chain, Mark::Everybody);
        } else if self.pods.is_some() && !self.source.is_pod {
            self.mark(&chain, Mark::NotFromPod);
        } else {
            let pods = self.pods.clone();
            self.step(&chain, Finding::Unmarked { pods });
        }
        let picked = self.pick(Which::All).or_else(|| self.pick(Which::Local));
        if let Some(outcome) = picked {
            return outcome;
        }
        if let Some(name) = no_local {
            let set = names::route(self.family, Route::NoLocalEndpoints);
            self.member(&chain, &set, self.vip(), Some(name), "drop");
            return Outcome::Dropped {
                why: DroppedFor::NoLocalEndpoint,
            };
        }
        self.step(&chain, Finding::SecondLook);
        self.refused(RefusedFor::NoPortOrEndpoint)
    }

    fn external(&mut self) -> Option<Outcome> {
        let (family, chain) = (self.family, names::of("external", self.family));
        if let Some(held) = self.held.filter(|held| held.firewalled) {
            let contains = |from| held.sources.iter().any(|network| network.contains(from));
            let allowed = self.packet.from.as_ref().map(contains);
            self.fate.sources = Some(held.sources.clone());
            let set = names::firewall_sources(family);
            self.step(&chain, Finding::Guarded { set, allowed });
            if allowed == Some(false) {
                let why = DroppedFor::Source;
                return Some(Outcome::Dropped { why });
            }
        }
        // In the order of the rules: a VIP is in more than one set only while a change goes by.
        for route in [Route::ToAll, Route::ToLocal, Route::NoEndpoints] {
            let Some(name) = self.route(route) else { continue };
            let then = match route {
                Route::ToAll => names::of("to-all", family),
                Route::ToLocal => names::of("to-local", family),
                _ => REJECT.to_owned(),
            };
            self.member(&chain, &names::route(family, route), self.vip(), Some(name), &then);
            return Some(match route {
                Route::ToAll => {
                    self.fate.policy = Some(Policy::Cluster);
                    self.through_to_all()
                }
                Route::ToLocal => {
                    self.fate.policy = Some(Policy::Local);
                    self.through_to_local()
                }
                _ => self.refused(RefusedFor::NoEndpoints),
            });
        }
        let sets = [Route::ToAll, Route::ToLocal, Route::NoEndpoints].map(|route| names::route(family, route));
        self.not_member(&chain, self.vip(), sets.join(", "));
        self.step(&chain, Finding::SecondLook);
        None
    }

    fn through_to_all(&mut self) -> Outcome {
        let chain = names::of("to-all", self.family);
        self.mark(&chain, Mark::AllEndpoints);
        self.pick_or_reject()
    }

    fn through_to_local(&mut self) -> Outcome {
        let (family, origin) = (self.family, self.source.origin);
        let chain = names::of("to-local", family);
        let own = origin == Origin::Node;
        let then = match (self.source.is_pod, own) {
            (true, _) => names::of("pick-or-reject", family),
            (false, true) => names::of("to-all", family),
            (false, false) => names::pick(family, Which::Local),
        };
        let (pods, origin) = (self.pods.clone(), if self.source.is_pod { Origin::Pod } else { origin });
        self.step(&chain, Finding::From { origin, pods, then });
        if self.source.is_pod {
            return self.pick_or_reject();
        }
        if own {
            return self.through_to_all();
        }
        if let Some(outcome) = self.pick(Which::Local) {
            return outcome;
        }
        self.step(&chain, Finding::SecondLook);
        self.step(&chain, Finding::Drops);
        Outcome::Dropped {
            why: DroppedFor::NoLocalEndpoint,
        }
    }

    fn pick_or_reject(&mut self) -> Outcome {
        if let Some(outcome) = self.pick(Which::All) {
            return outcome;
        }
        self.step(&names::of("pick-or-reject", self.family), Finding::SecondLook);
        self.refused(RefusedFor::NoEndpoints)
    }

    fn pick(&mut self, which: Which) -> Option<Outcome> {
        let family = self.family;
        let chain = names::pick(family, which);
        // Groups are held in the order of the rules.
        let found = self.held.and_then(|held| {
            let list = held.list(which);
            Some((list, *list.groups.first()?))
        });
        let Some((list, group)) = found else {
            let stem = match which {
                Which::All => ["service", "affinity"],
                Which::Local => ["local", "local-affinity"],
            };
            let sets = stem.map(|stem| format!("{}-*", names::of(stem, family)));
            self.not_member(&chain, self.vip(), sets.join(", "));
            return None;
        };
        let (set, picking) = (names::group(family, which, group), names::picking(family, which, group));
        self.member(&chain, &set, self.vip(), None, &picking);
        let client = self.client(which, list);
        let (spread, picked) = spread(family, which, list, group, client);
        let finding = match spread.affinity {
            Some(Affinity { client, .. }) => Finding::Ticket { client },
            None => Finding::Draws {
                class: spread.class,
                filled: spread.filled,
            },
        };
        self.step(&picking, finding);
        self.fate.spread = Some(spread);
        if picked.is_empty() {
            self.step(&picking, Finding::Empty);
            return None;
        }
        Some(self.sent(picked))
    }

    fn client(&self, which: Which, list: &HeldList) -> Client {
        if self.packet.from.is_none() {
            return Client::Anybody;
        }
        let remembered = list.number.and_then(|number| self.table.clients.get(&number));
        remembered.map_or(Client::New, |remembered| client(which, list, *remembered))
    }

    fn sent(&mut self, endpoints: Vec<SocketAddr>) -> Outcome {
        let itself = |endpoint: &SocketAddr| {
            let as_endpoint = Endpoint {
                address: endpoint.ip(),
                port: endpoint.port(),
            };
            let hairpin = (self.packet.to.protocol, as_endpoint);
            self.packet.from == Some(endpoint.ip()) && self.table.programmed.hairpins.contains(&hairpin)
        };
        let itself: Vec<SocketAddr> = endpoints.iter().copied().filter(itself).collect();
        let masquerade = match (self.marked, itself.is_empty()) {
            (true, _) => Masquerade::Marked,
            (false, false) => Masquerade::Hairpin(itself),
            (false, true) => Masquerade::No,
        };
        let leaves = Finding::Leaves {
            masquerade: masquerade.clone(),
        };
        self.step("postrouting", leaves);
        Outcome::Sent { endpoints, masquerade }
    }

    fn refused(&mut self, why: RefusedFor) -> Outcome {
        let by = match self.packet.to.protocol {
            Protocol::Tcp => Refusal::TcpReset,
            Protocol::Udp | Protocol::Sctp => Refusal::PortUnreachable,
        };
        self.step(REJECT, Finding::Refuses { by });
        Outcome::Refused { by, why }
    }

    fn mark(&mut self, chain: &str, why: Mark) {
        self.marked = true;
        let bit = self.table.settings.masquerade_bit;
        self.step(chain, Finding::Marked { bit, why });
    }

    fn route(&self, route: Route) -> Option<String> {
        let name = self.held.and_then(|held| held.routes.get(&route));
        name.map(ToString::to_string)
    }

    fn vip(&self) -> String {
        let Vip {
            address,
            protocol,
            port,
        } = self.packet.to;
        format!("{address} . {protocol} . {port}")
    }

    fn member(&mut self, chain: &str, set: &str, key: String, name: Option<String>, then: &str) {
        let finding = Finding::Member {
            key,
            set: set.to_owned(),
            name,
            then: then.to_owned(),
        };
        self.step(chain, finding);
    }

    fn not_member(&mut self, chain: &str, key: String, sets: String) {
        self.step(chain, Finding::NotMember { key, sets });
    }

    fn step(&mut self, chain: &str, finding: Finding) {
        self.fate.steps.push(Step {
            chain: chain.to_owned(),
            finding,
        });
    }
}

/// The chain that refuses.
const REJECT: &str = "reject-connection";
