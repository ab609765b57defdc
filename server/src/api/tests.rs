//! The API over real HTTP, on a real Postgres, with simulated agents.

mod agents;
mod operators;
mod refusals;
mod rollouts;
mod routes;
mod world;
