//! The harness, tested: what the other suites stand on must be true first. Needs root.

mod kube_sim;
mod nftables;
mod packets;
