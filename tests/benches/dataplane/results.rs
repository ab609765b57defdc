//! What was found.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::cluster::{Change, Size};
use crate::latency::Latency;
use crate::sample::Sample;
use crate::shapes::Shape;
use crate::throughput::Throughput;

/// What is measured of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Column {
    /// Seconds to load the whole cluster into an empty namespace.
    FullLoad,
    /// Seconds of a start that finds everything as it should be.
    Restart,
    /// Seconds of a change.
    Change(Change),
    /// Seconds of the listing that precedes each change.
    Listing,
    /// What the loaded table takes in the kernel, in KiB.
    KernelMemory,
    /// The loader's largest resident memory, in KiB.
    LoaderMemory,
}

impl Column {
    /// In the order of the table.
    pub const ALL: [Self; 10] = [
        Self::FullLoad,
        Self::Restart,
        Self::Listing,
        Self::Change(Change::ALL[0]),
        Self::Change(Change::ALL[1]),
        Self::Change(Change::ALL[2]),
        Self::Change(Change::ALL[3]),
        Self::Change(Change::ALL[4]),
        Self::KernelMemory,
        Self::LoaderMemory,
    ];

    /// Its heading.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FullLoad => "full load",
            Self::Restart => "restart, no change",
            Self::Change(Change::OneEndpoint) => "1 endpoint changed",
            Self::Change(Change::ServiceAdded) => "1 Service added",
            Self::Change(Change::ServiceRemoved) => "1 Service removed",
            Self::Change(Change::HundredEndpoints) => "100 endpoints changed",
            Self::Change(Change::ThousandCounts) => "1,000 Services get 1 endpoint more",
            Self::Listing => "listing before each change",
            Self::KernelMemory => "kernel memory",
            Self::LoaderMemory => "loader's peak memory",
        }
    }

    /// Whether this shape has such a thing at all: kube-proxy lists before it writes and starts by writing, we read at a start.
    pub const fn applies_to(self, shape: Shape) -> bool {
        match self {
            Self::Restart => matches!(shape, Shape::Engine),
            Self::Listing => !matches!(shape, Shape::Engine | Shape::OursText),
            _ => true,
        }
    }

    /// Whether it is in KiB and not in seconds.
    pub const fn is_memory(self) -> bool {
        matches!(self, Self::KernelMemory | Self::LoaderMemory)
    }
}

/// Where the engine's full load goes, in seconds; one value of each per run.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    /// How many elements are written.
    pub elements: usize,
    /// All of it.
    pub whole: Sample,
    /// In commits.
    pub commit: Sample,
    /// In commits, inside the kernel.
    pub kernel: Sample,
}

/// Everything.
#[derive(Default)]
pub struct Results {
    /// Programming, by size, shape and column. What is missing was not run.
    pub cells: BTreeMap<(Size, Shape), BTreeMap<Column, Sample>>,
    /// Where the engine's full loads go.
    pub shares: BTreeMap<Size, Shares>,
    /// First packets.
    pub latency: Vec<Latency>,
    /// Established flows.
    pub throughput: Vec<Throughput>,
}

impl Results {
    /// The measurements of one cell.
    pub fn cell(&self, size: Size, shape: Shape, column: Column) -> Option<&Sample> {
        self.cells
            .get(&(size, shape))?
            .get(&column)
            .filter(|sample| sample.runs() > 0)
    }

    /// Every single measurement, for other programs.
    pub fn to_json(&self) -> Value {
        let cells = self.cells.iter().flat_map(|((size, shape), columns)| {
            columns.iter().map(move |(column, sample)| {
                json!({
                    "services": size.services,
                    "endpoints": size.endpoints,
                    "shape": shape.name(),
                    "what": column.name(),
                    "unit": if column.is_memory() { "KiB" } else { "s" },
                    "values": sample,
                })
            })
        });
        let shares = self.shares.iter().map(|(size, shares)| {
            json!({
                "services": size.services,
                "endpoints": size.endpoints,
                "elements": shares.elements,
                "whole_s": shares.whole,
                "commit_s": shares.commit,
                "kernel_s": shares.kernel,
            })
        });
        let latency = self.latency.iter().map(|latency| {
            json!({
                "subject": latency.subject,
                "service": latency.service,
                "connect_s": latency.connect,
            })
        });
        let throughput = self
            .throughput
            .iter()
            .map(|throughput| json!({ "subject": throughput.subject, "bytes_per_s": throughput.rate }));
        json!({
            "programming": cells.collect::<Vec<_>>(),
            "full_load_shares": shares.collect::<Vec<_>>(),
            "first_packet": latency.collect::<Vec<_>>(),
            "established": throughput.collect::<Vec<_>>(),
        })
    }
}
