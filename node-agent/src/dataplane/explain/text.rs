//! An explanation as a person reads it.

use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;

use nftfleet_domain::inventory::TableState;

use super::{
    Affinity, Client, DroppedFor, Explanation, Fate, Finding, Kind, LeftFor, Mark, Masquerade, Note, Origin, Outcome,
    Policy, Refusal, RefusedFor, Spread,
};
use crate::dataplane::desired::PodMatch;
use crate::dataplane::programmed::Which;

/// How many endpoints a person wants to see.
const SHOWN: usize = 20;

/// How pods are told from others.
pub fn pods(pods: &PodMatch) -> String {
    match pods {
        PodMatch::Source(network) => format!("from {network}"),
        PodMatch::Interface(name) => format!("through device {name}"),
        PodMatch::InterfacePrefix(prefix) => format!("through devices {prefix}*"),
    }
}

impl Display for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.address, self.protocol, self.port)?;
        if let Some(service) = &self.service {
            write!(f, " is {service}")?;
        }
        if let Some(kind) = self.kind {
            write!(f, ", {kind}")?;
        }
        if let Some(policy) = self.fate.as_ref().and_then(|fate| fate.policy) {
            write!(f, ", traffic policy {policy}")?;
        }
        match self.from {
            Some(from) => writeln!(f, "\nfrom {from}: {}", self.origin)?,
            None => writeln!(f, "\nfrom {}", self.origin)?,
        }
        match self.table {
            TableState::Absent => {
                return writeln!(f, "\nThere is no table inet nftfleet: nothing is done here.");
            }
            TableState::Dormant => {
                writeln!(f, "\nThe table is dormant: nothing of this happens. If it were active:")?;
            }
            TableState::Active => {}
        }
        if let Some(fate) = &self.fate {
            write!(f, "\n{fate}")?;
        }
        if !self.others.is_empty() {
            writeln!(f)?;
        }
        for other in &self.others {
            let who = match other.origin {
                Origin::Outside => "Somebody outside",
                Origin::Pod => "A pod",
                Origin::Node => "The node itself",
            };
            let whoever = if self.fate.as_ref().is_some_and(Fate::is_open_who) {
                ", if it may connect"
            } else {
                ""
            };
            if other.same {
                writeln!(f, "{who}{whoever}: the same.")?;
            } else {
                writeln!(f, "{who}{whoever}: {}.", other.outcome)?;
            }
        }
        for note in &self.notes {
            writeln!(f, "\nNote: {note}.")?;
        }
        Ok(())
    }
}

impl Fate {
    /// Whether it depends on the source, which was not given, whether all this happens.
    fn is_open_who(&self) -> bool {
        let open = |finding: &Finding| matches!(finding, Finding::Guarded { allowed: None, .. });
        self.steps.iter().any(|step| open(&step.finding))
    }
}

impl Display for Fate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let width = self.steps.iter().map(|step| step.chain.len()).max().unwrap_or(0);
        for step in &self.steps {
            writeln!(f, "  {:width$}  {}", step.chain, step.finding)?;
        }
        if let Some(sources) = &self.sources {
            writeln!(f, "\nWho may connect:")?;
            for source in sources {
                writeln!(f, "  {source}")?;
            }
        }
        let whoever = if self.is_open_who() {
            "whoever may connect is "
        } else {
            ""
        };
        writeln!(f, "\n=> {whoever}{}", self.outcome)?;
        if let Some(spread) = &self.spread {
            write!(f, "{spread}")?;
        }
        Ok(())
    }
}

impl Display for Spread {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let what = match self.list {
            Which::All => "Endpoints",
            Which::Local => "Endpoints of this node",
        };
        let numbered = if self.affinity.is_some() { "tickets" } else { "slots" };
        let (count, filled, class) = (self.endpoints.len(), self.filled, self.class);
        writeln!(
            f,
            "\n{what}: {count}, in {filled} of {class} {numbered} ({}).",
            self.set
        )?;
        for endpoint in self.endpoints.iter().take(SHOWN) {
            writeln!(f, "  {endpoint}")?;
        }
        if count > SHOWN {
            writeln!(f, "  ... and {} more", count - SHOWN)?;
        }
        if let Some(affinity) = &self.affinity {
            writeln!(f, "Session affinity: {affinity}.")?;
        }
        Ok(())
    }
}

impl Display for Affinity {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a client is forgotten {} s after its last new connection; ",
            self.timeout
        )?;
        match self.number {
            Some(number) => write!(f, "its number is {:x}:{:x}", number >> 16, number & 0xffff),
            None => f.write_str("its number is missing"),
        }
    }
}

impl Display for Client {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anybody => f.write_str("the client's ticket decides; a new client draws one"),
            Self::New => f.write_str("this client is not remembered: it draws a ticket"),
            Self::Holds {
                ticket,
                endpoint,
                remembered_for,
            } => write!(
                f,
                "this client holds ticket {ticket}, which is {endpoint}, for {remembered_for} s more"
            ),
            Self::HoldsInVain {
                ticket: Some(ticket), ..
            } => write!(
                f,
                "this client holds ticket {ticket}, whose endpoint is gone: it draws anew"
            ),
            Self::HoldsInVain { ticket: None, .. } => {
                f.write_str("this client holds a ticket of another list: it draws anew")
            }
        }
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enters => f.write_str("the packet enters the table"),
            Self::Member { key, set, name, then } => {
                write!(f, "{key} is in {set}")?;
                if let Some(name) = name {
                    write!(f, " ({name})")?;
                }
                write!(f, ": {then}")
            }
            Self::NotMember { key, sets } => write!(f, "{key} is in none of {sets}"),
            Self::Guarded { set, allowed } => match allowed {
                Some(true) => write!(f, "only some may connect; the source is in {set}"),
                Some(false) => write!(f, "only some may connect; the source is not in {set}: drop"),
                None => write!(f, "only some may connect ({set}), others: drop"),
            },
            Self::From { origin, pods, then } => match (origin, pods) {
                (Origin::Pod, Some(pods)) => write!(f, "a pod ({pods}), any endpoint will do: {then}"),
                (Origin::Pod, None) => write!(f, "a pod, any endpoint will do: {then}"),
                (Origin::Node, _) => write!(f, "the source is the node's own, any endpoint will do: {then}"),
                (Origin::Outside, Some(pods)) => write!(f, "neither a pod ({pods}) nor the node: {then}"),
                (Origin::Outside, None) => write!(f, "not the node, and pods can't be told from others: {then}"),
            },
            Self::Marked { bit, why } => write!(f, "{why}: mark 0x{:08x} is set", 1u32 << bit),
            Self::Unmarked { pods: Some(pods) } => write!(f, "a pod ({pods}): no mark"),
            Self::Unmarked { pods: None } => f.write_str("pods can't be told from others: nobody is marked"),
            Self::Draws { class, filled } => write!(f, "draws one of {class} slots, of which {filled} are filled"),
            Self::Ticket { client } => client.fmt(f),
            Self::Empty => f.write_str("nothing is filled: the packet comes back"),
            Self::SecondLook => f.write_str("looks a second time, in case a commit fell between: the same"),
            Self::Leaves { masquerade } => match masquerade {
                Masquerade::No => f.write_str("no mark: the source stays"),
                Masquerade::Marked => f.write_str("the mark is taken off, and the source becomes the node's"),
                Masquerade::Hairpin(itself) => {
                    let itself = join(itself);
                    write!(
                        f,
                        "if the endpoint is {itself}, the source itself, the source becomes the node's"
                    )
                }
            },
            Self::Refuses { by } => by.fmt(f),
            Self::Drops => f.write_str("drop"),
        }
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent { endpoints, masquerade } => {
                match endpoints.as_slice() {
                    [only] => write!(f, "sent to {only}")?,
                    several => write!(f, "sent to one of {} endpoints", several.len())?,
                }
                match masquerade {
                    Masquerade::No => f.write_str(", which sees the source's own address"),
                    Masquerade::Marked => f.write_str(", which sees the node's address (masqueraded)"),
                    Masquerade::Hairpin(_) => {
                        f.write_str(", which sees the source's own address, or the node's if it is the source itself")
                    }
                }
            }
            Self::Refused { by, why } => write!(f, "refused, {by}: {why}"),
            Self::Dropped { why } => write!(f, "dropped: {why}"),
            Self::LeftAlone { why } => write!(f, "left alone: {why}"),
        }
    }
}

impl Display for Note {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceNotGiven(pods) => write!(
                f,
                "pods of this node are known by coming {pods}; give --device for a packet that comes in, or it is taken \
                 for one from outside"
            ),
            Self::Unsettled => f.write_str(
                "the ruleset changed while it was read, so this may mix several moments; ask again to be sure",
            ),
            Self::Changing => f.write_str("the VIP is being changed right now: it is in more than one set of a kind"),
            Self::NoLastResort => {
                f.write_str("slot 0 or the last ticket is empty, so a connection whose draws all miss finds nobody")
            }
        }
    }
}

fn join(endpoints: &[SocketAddr]) -> String {
    let texts: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    texts.join(" or ")
}

/// Values that are said in a fixed text.
macro_rules! texts {
    ($type:ty: $($variant:ident => $text:literal),+ $(,)?) => {
        impl Display for $type {
            fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)+
                })
            }
        }
    };
}

texts!(Origin:
    Outside => "somebody outside",
    Pod => "a pod",
    Node => "the node itself",
);
texts!(Kind:
    ClusterIp => "a ClusterIP",
    External => "a load balancer's or external address",
    NodePort => "a node port's address",
    Unallocated => "an address of a ServiceCIDR that no Service has",
    Unknown => "no address of a Service",
);
texts!(Policy: Cluster => "Cluster", Local => "Local");
texts!(Mark:
    Everybody => "everybody is masqueraded (--masquerade-all)",
    NotFromPod => "not a pod",
    AllEndpoints => "the answer must come back through this node",
);
texts!(Refusal: TcpReset => "by a TCP reset", PortUnreachable => "by ICMP port unreachable");
texts!(RefusedFor:
    NoPortOrEndpoint => "the ClusterIP has no such port, or no endpoint for it",
    NoEndpoints => "the Service has no endpoints",
);
texts!(DroppedFor:
    Source => "the source is none of those who may connect",
    NoLocalEndpoint => "traffic policy Local, and none of the Service's endpoints is on this node",
    Unallocated => "no Service has this address",
);
texts!(LeftFor:
    UnknownAddress => "no Service has this address; routes and other rules decide",
    UnknownPort => "no Service has this port at this address; routes and other rules decide",
    OwnClosedPort => "the Service has no endpoints, and the node's own closed port answers by itself",
);
