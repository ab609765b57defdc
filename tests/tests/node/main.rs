//! What the agent finds on a node, and what it takes away: the real `iptables` and `nft` of a namespace, and no server.
//! Needs root.

mod cleanup;
mod detection;
mod foreign;
mod host;
mod nftables;
