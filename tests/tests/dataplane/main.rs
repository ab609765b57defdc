//! The agent's data plane in real kernels of a lab, judged by packets and by what `nft` prints. Needs root.

mod answers;
mod churn;
mod explain;
mod flip;
mod foreign;
mod heard;
mod listing;
mod masquerade;
mod million;
mod recorded;
mod refusals;
mod restart;
mod scale;
mod spread;
mod transaction;
mod world;
