//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Measures nftfleet's data plane beside kube-proxy's, in network namespaces. Needs root.
#[derive(Debug, Parser)]
pub struct Flags {
    /// Smaller clusters and fewer runs: the same code in less than two minutes.
    #[arg(long)]
    pub quick: bool,
    /// The smallest run that still goes through everything, for working on the benchmark itself.
    #[arg(long)]
    pub smoke: bool,
    /// Only the engine beside kube-proxy's 1.36 shape, with so many Services of 10 endpoints, and no packets. Above 10,000 that
    /// shape holds a core for a minute and more.
    #[arg(long, value_name = "SERVICES", conflicts_with_all = ["quick", "smoke"])]
    pub pair: Option<u32>,
    /// Where the plot goes.
    #[arg(long, default_value = "target/bench/performance.svg")]
    pub plot: PathBuf,
    /// Where the table and every single measurement go.
    #[arg(long, default_value = "target/bench")]
    pub raw: PathBuf,
    /// What cargo adds to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    /// Set when this binary starts itself.
    #[command(subcommand)]
    pub child: Option<Part>,
}

/// What this binary does for itself.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// One measurement in a process of its own.
    #[command(hide = true, subcommand)]
    Child(Child),
}

/// A measurement in a process of its own.
#[derive(Debug, Subcommand)]
pub enum Child {
    /// Runs a program once.
    Program {
        /// What it gets on its standard input.
        #[arg(long)]
        input: PathBuf,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
    /// Loads a cluster once through the agent's engine.
    Engine {
        /// How many Services.
        services: u32,
        /// Endpoints of each.
        endpoints: u32,
    },
}
