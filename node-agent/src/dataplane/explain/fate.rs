//! The answer: what a packet meets, and what happens in the end.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::Origin;
use crate::dataplane::programmed::Which;

/// What kind of address the destination is to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A Service's `ClusterIP`.
    ClusterIp,
    /// A load balancer's or external address.
    External,
    /// An address of this node on which node ports listen.
    NodePort,
    /// In a `ServiceCIDR`, but no Service has it.
    Unallocated,
    /// None of Services.
    Unknown,
}

/// Whose endpoints a VIP's connections may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Traffic policy Cluster: all.
    Cluster,
    /// Traffic policy Local: those of this node, from where the policy applies.
    Local,
}

/// One packet's way and its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fate {
    /// The traffic policy, if the table shows one.
    pub policy: Option<Policy>,
    /// Who may connect, if not everybody may.
    pub sources: Option<BTreeSet<IpNet>>,
    /// What it meets, in order.
    pub steps: Vec<Step>,
    /// From what its endpoint is picked.
    pub spread: Option<Spread>,
    /// What happens in the end.
    pub outcome: Outcome,
}

/// The same packet from somebody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Other {
    /// From whom.
    pub origin: Origin,
    /// What happens in the end.
    pub outcome: Outcome,
    /// Whether that is the same as for the one who was asked about.
    pub same: bool,
}

/// One thing that a packet meets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// In this chain.
    pub chain: String,
    /// What is found there.
    #[serde(flatten)]
    pub finding: Finding,
}

/// What is found in a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// The packet enters the table.
    Enters,
    /// A key is in a set, which leads to a chain or ends the way.
    Member {
        /// The key as `nft` writes it.
        key: String,
        /// The set.
        set: String,
        /// The element's comment.
        name: Option<String>,
        /// The chain that is next, or the verdict.
        then: String,
    },
    /// A key is in none of these sets.
    NotMember {
        /// The key as `nft` writes it.
        key: String,
        /// The sets, or what they have in common.
        sets: String,
    },
    /// Only some may connect.
    Guarded {
        /// The set of those who may.
        set: String,
        /// Whether the source is one of them; none if no source was given.
        allowed: Option<bool>,
    },
    /// The source decides.
    From {
        /// Who it is.
        origin: Origin,
        /// How pods are told from others, in words.
        pods: Option<String>,
        /// The chain that is next.
        then: String,
    },
    /// The packet is marked to be masqueraded.
    Marked {
        /// The mark's bit.
        bit: u8,
        /// Why.
        why: Mark,
    },
    /// The packet is not marked.
    Unmarked {
        /// How pods are told from others, in words; none if they can't be.
        pods: Option<String>,
    },
    /// A slot is drawn.
    Draws {
        /// From so many.
        class: u16,
        /// So many of which hold an endpoint.
        filled: usize,
    },
    /// The client's ticket decides.
    Ticket {
        /// What the client has.
        client: Client,
    },
    /// Nobody holds the tickets or slots of the set: the next rule is tried.
    Empty,
    /// The sets are looked at once more.
    SecondLook,
    /// The packet leaves, with its source changed or not.
    Leaves {
        /// Whether it is.
        masquerade: Masquerade,
    },
    /// The connection is refused.
    Refuses {
        /// How.
        by: Refusal,
    },
    /// The packet is dropped.
    Drops,
}

/// Why a packet is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// Everybody is.
    Everybody,
    /// It does not come from a pod.
    NotFromPod,
    /// All endpoints may be used from outside, and the answer must come back through this node.
    AllEndpoints,
}

/// What a client with session affinity has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Client {
    /// Nobody was asked about: a client that is not remembered draws.
    Anybody,
    /// It is not remembered, and draws.
    New,
    /// It holds a ticket.
    Holds {
        /// The ticket, from 0.
        ticket: u16,
        /// Its endpoint.
        endpoint: SocketAddr,
        /// For how many seconds it is remembered without a new connection.
        remembered_for: u64,
    },
    /// It holds a ticket whose endpoint is gone, and draws anew.
    HoldsInVain {
        /// The ticket, from 0; none if it is of no list.
        ticket: Option<u16>,
        /// For how many seconds it would have been remembered.
        remembered_for: u64,
    },
}

/// From what an endpoint is picked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// Which of the VIP's lists.
    #[serde(serialize_with = "list_name")]
    pub list: Which,
    /// The set that names the class.
    pub set: String,
    /// How many slots or tickets are drawn from.
    pub class: u16,
    /// How many of them hold an endpoint.
    pub filled: usize,
    /// All endpoints that they hold.
    pub endpoints: Vec<SocketAddr>,
    /// Session affinity, if clients stick.
    pub affinity: Option<Affinity>,
}

/// Session affinity of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Affinity {
    /// After how many seconds without a new connection a client is forgotten.
    pub timeout: u32,
    /// What the VIP's clients are remembered under.
    pub number: Option<u32>,
    /// What the client has.
    pub client: Client,
}

/// Whether the source is changed to the node's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Masquerade {
    /// No: the endpoint sees who asks.
    No,
    /// Yes, by the mark.
    Marked,
    /// Only if the endpoint is the source itself, one of these.
    Hairpin(Vec<SocketAddr>),
}

/// How a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// By a TCP reset.
    TcpReset,
    /// By ICMP port unreachable.
    PortUnreachable,
}

/// What happens in the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Sent to one of these endpoints.
    Sent {
        /// Sorted, without repetition.
        endpoints: Vec<SocketAddr>,
        /// Whether the endpoint sees the node instead of the source.
        masquerade: Masquerade,
    },
    /// Refused.
    Refused {
        /// How.
        by: Refusal,
        /// Why.
        why: RefusedFor,
    },
    /// Dropped without a word.
    Dropped {
        /// Why.
        why: DroppedFor,
    },
    /// Left alone: other rules and the routes decide.
    LeftAlone {
        /// Why.
        why: LeftFor,
    },
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedFor {
    /// The `ClusterIP` has no such port, or no endpoint for it: the table does not tell them apart.
    NoPortOrEndpoint,
    /// The Service has no endpoints.
    NoEndpoints,
}

/// Why a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DroppedFor {
    /// Its source is none of those who may connect.
    Source,
    /// Traffic policy Local, and no endpoint of the Service is on this node.
    NoLocalEndpoint,
    /// No Service has the address.
    Unallocated,
}

/// Why a packet is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftFor {
    /// The address is none of Services.
    UnknownAddress,
    /// The address is known, but no Service has this port there.
    UnknownPort,
    /// A port of the node itself without endpoints: the closed port answers.
    OwnClosedPort,
}

/// What else must be known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// Pods are told by their device, and none was given: the source was taken for somebody outside.
    DeviceNotGiven(String),
    /// The ruleset changed while it was read: what was read may be of several moments.
    Unsettled,
    /// The VIP is in several sets of a kind: a change of it is under way.
    Changing,
    /// Slot 0 or the last ticket is empty, although others are not: a connection whose draws all miss finds nobody.
    NoLastResort,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference to the field"
)]
fn list_name<S: Serializer>(which: &Which, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match which {
        Which::All => "all",
        Which::Local => "local",
    })
}
