//! From kube-proxy's IPVS mode to our table, on a kernel that has IPVS. Needs root; `make test-vm` boots such a kernel.

mod listing;
mod local;
mod refusals;
mod takeover;
mod talks;
mod world;
