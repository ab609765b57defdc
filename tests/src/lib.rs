//! The test harness of nftfleet: a cluster in network namespaces with everything around the code under test.
//!
//! - [`wait`]: wait for a fact instead of for a time
//! - [`netns`]: one network namespace, its threads and commands
//! - [`lab`]: nodes, clients, pods and backends, wired like a cluster
//! - [`backends`]: servers behind Services, which say who they are and remember who asked
//! - [`sctp`]: the beginning of an SCTP association, by hand
//! - [`traffic`]: clients that notice every loss
//! - [`manifests`]: Kubernetes objects, captured and built
//! - [`kube_sim`]: a Kubernetes API server for clients that list, watch and patch
//! - [`kube_proxy`]: kube-proxy's rules and those of its neighbours, and kube-proxy as something that lives
//! - [`rulesets`]: all that a node's packet filters hold, as text
//! - [`load`]: what a node's clients do all the time
//! - [`fault`]: what can be broken on a node
//! - [`guard`]: the dead-man's switch of a node
//! - [`process`]: a program of ours as its shipped binary
//! - [`small_disk`]: a file system that can be filled up
//! - [`standalone`]: nodes with a living kube-proxy and an agent, without a server
//! - [`cluster`]: lab, Kubernetes API and endpoints, which every world begins with
//! - [`api`]: the operator's side of the REST API
//! - [`world`]: all of it together, with a server and an agent on every node
//!
//! Everything here needs root and a kernel with namespaces, `nf_tables` and iptables. A harness that lacks something
//! fails and says what; it never skips.

#![expect(
    clippy::missing_panics_doc,
    reason = "a harness reports what it expected by panicking; there is no caller to recover"
)]

pub mod api;
pub mod backends;
pub mod cluster;
pub mod fault;
pub mod guard;
pub mod kube_proxy;
pub mod kube_sim;
pub mod lab;
pub mod load;
pub mod manifests;
pub mod netns;
pub mod process;
pub mod rulesets;
pub mod sctp;
pub mod small_disk;
pub mod standalone;
pub mod traffic;
pub mod wait;
pub mod world;
