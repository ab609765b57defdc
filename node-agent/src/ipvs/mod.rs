//! What kube-proxy's IPVS mode keeps in the kernel: seen, taken over and removed. Nothing of anybody else's is touched.
//!
//! - [`netlink`]: virtual services and their destinations, over generic netlink
//! - [`connection`], [`sockets`]: who is connected, as `/proc` tells
//! - [`known`]: which virtual services are kube-proxy's
//! - [`blocker`]: why a node must not be moved from IPVS
//! - [`handover`]: the table that keeps live connections at their endpoints
//! - [`interface`]: `kube-ipvs0`, which has the Services' addresses
//! - [`sets`]: kube-proxy's ipsets
//! - [`takeover`]: the steps of a move, in their order

pub mod blocker;
pub mod connection;
pub mod handover;
pub mod interface;
pub mod known;
pub mod netlink;
pub mod service;
pub mod sets;
pub mod sockets;
pub mod takeover;

use std::io;
use std::path::Path;

pub use blocker::Blocker;
pub use known::{Known, Sorted};
pub use netlink::Ipvs;
pub use service::{Destination, Forwarding, Frontend, VirtualService};
pub use takeover::{HandedOver, Leftover, Patience, Progress, Takeover};

use crate::dataplane::netlink::conntrack::ConntrackError;
use crate::dataplane::netlink::socket::SocketError;
use crate::dataplane::{KernelError, netlink::socket};
use crate::host::{Host, Ran};

/// IPVS can't be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// The conversation over netlink failed.
    #[error("IPVS: {what}: {source}")]
    Netlink {
        /// What was asked.
        what: String,
        /// Why it failed.
        source: socket::SocketError,
    },
    /// A message of the kernel's makes no sense.
    #[error("IPVS: the kernel lists something that makes no sense: {0}")]
    Garbled(&'static str),
    /// Somebody changes the virtual services all the time.
    #[error("IPVS: the virtual services change while they are read, each time")]
    Restless,
    /// Connection tracking can't be listed.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// `nf_tables` can't be read.
    #[error("nf_tables can't be read: {0}")]
    Tables(#[from] KernelError),
    /// A file can't be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A line of a file makes no sense.
    #[error("{path} has a line that makes no sense: {line:?}")]
    Line {
        /// Which file.
        path: String,
        /// The line.
        line: String,
    },
    /// A program can't be run.
    #[error("{program} can't be run: {source}")]
    Start {
        /// Which.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {complaint}")]
    Failed {
        /// Which.
        program: &'static str,
        /// What it said.
        complaint: String,
    },
    /// The table for the handover holds something that we did not write.
    #[error("the table {table} holds what was not written by us: {what}", table = handover::TABLE)]
    Handover {
        /// What it is.
        what: String,
    },
    /// The addresses of the node's devices can't be listed.
    #[error("the addresses of {device} can't be listed: {source}", device = crate::node_addresses::OF_IPVS)]
    Addresses {
        /// Why.
        source: io::Error,
    },
    /// Our table does not answer: without it, to take anything of IPVS away would cut Services off.
    #[error("the table inet nftfleet is not active")]
    NotActive,
    /// kube-proxy's iptables chains are to go first: one of them would reject connections that are handed over.
    #[error("kube-proxy's chain KUBE-IPVS-FILTER stands: it would reject connections that are handed over")]
    ChainsStand,
}

impl IpvsError {
    fn netlink(what: impl Into<String>) -> impl FnOnce(SocketError) -> Self {
        let what = what.into();
        |source| Self::Netlink { what, source }
    }
}

/// Reads a file of a part of the kernel that may not be loaded; then it is empty.
fn read_if_there(host: &dyn Host, path: &str) -> Result<String, IpvsError> {
    match host.read(Path::new(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        done => done.map_err(|source| IpvsError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Runs a program; its status is for the caller to judge.
fn run(host: &dyn Host, program: &'static str, arguments: &[&str], input: &str) -> Result<Ran, IpvsError> {
    host.run(program, arguments, input)
        .map_err(|source| IpvsError::Start { program, source })
}

/// Runs a program that must succeed; what it printed.
fn run_well(host: &dyn Host, program: &'static str, arguments: &[&str], input: &str) -> Result<String, IpvsError> {
    let ran = run(host, program, arguments, input)?;
    if ran.succeeded {
        Ok(ran.stdout)
    } else {
        Err(IpvsError::Failed {
            program,
            complaint: ran.stderr.trim().to_owned(),
        })
    }
}
