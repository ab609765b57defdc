//! What is measured, and how often.

use std::time::Duration;

use crate::cluster::Size;
use crate::shapes::Shape;

/// A whole run.
pub struct Plan {
    /// The clusters, the smallest first, and which shapes are loaded with them. The others are marked as not run.
    pub programming: Vec<(Size, Vec<Shape>)>,
    /// How often a load or a change is repeated, if that stays within the budget.
    pub runs: usize,
    /// How often the engine's small changes are repeated.
    pub engine_runs: usize,
    /// A measurement that is slow is not repeated once its repetitions have taken this long together.
    pub budget: Duration,
    /// What takes longer is slow. Quick ones are repeated as often as said.
    pub slow: Duration,
    /// A restart is measured with up to so many endpoints in all: the kernel gives out a map a few hundred elements at a time, and
    /// walks from the map's beginning each time.
    pub restart_endpoints: u32,
    /// First packets and established flows.
    pub traffic: Traffic,
}

/// What packets are sent through.
pub struct Traffic {
    /// Services of our table and of iptables, one endpoint each.
    pub services: u32,
    /// Services of kube-proxy's nftables table.
    pub kube_proxy_services: u32,
    /// Connections to each Service that is tried.
    pub connections: usize,
    /// How often the subjects take turns.
    pub rounds: usize,
    /// How long a stream flows in each of [`Traffic::stream_rounds`].
    pub stream: Duration,
    /// How many streams each subject gets.
    pub stream_rounds: usize,
}

/// kube-proxy's nftables shapes and `iptables-nft` cost the square of their Services, and more. In one transaction, which
/// holds a core, the earlier shape takes half a minute at 5,000 x 10, that of 1.36 at 10,000 x 10, and neither is loaded with
/// more; `iptables-nft` takes seconds at 1,000 x 10 and more than 100 s at 5,000 x 10.
const ALL: &[Shape] = &Shape::ALL;
const NOT_IPTABLES_NFT: &[Shape] = &[
    Shape::KubeProxyChains,
    Shape::KubeProxyMaps,
    Shape::IptablesLegacy,
    Shape::OursText,
    Shape::Engine,
];
const LARGEST_OF_KUBE_PROXY: &[Shape] = &[
    Shape::KubeProxyMaps,
    Shape::IptablesLegacy,
    Shape::OursText,
    Shape::Engine,
];
const LEGACY_AND_OURS: &[Shape] = &[Shape::IptablesLegacy, Shape::OursText, Shape::Engine];
const LEGACY_AND_ENGINE: &[Shape] = &[Shape::IptablesLegacy, Shape::Engine];
const OURS: &[Shape] = &[Shape::OursText, Shape::Engine];
const ENGINE: &[Shape] = &[Shape::Engine];

fn sizes(plan: &[(u32, u32, &[Shape])]) -> Vec<(Size, Vec<Shape>)> {
    plan.iter()
        .map(|(services, endpoints, shapes)| {
            let (services, endpoints) = (*services, *endpoints);
            (Size { services, endpoints }, shapes.to_vec())
        })
        .collect()
}

impl Plan {
    /// The full run, some fifteen minutes.
    pub fn full() -> Self {
        Self {
            programming: sizes(&[
                (1_000, 1, LEGACY_AND_OURS),
                (1_000, 10, ALL),
                (1_000, 100, OURS),
                (5_000, 1, LEGACY_AND_ENGINE),
                (5_000, 10, NOT_IPTABLES_NFT),
                (5_000, 100, ENGINE),
                (10_000, 1, LEGACY_AND_ENGINE),
                (10_000, 10, LARGEST_OF_KUBE_PROXY),
                (10_000, 100, ENGINE),
                (30_000, 1, LEGACY_AND_ENGINE),
                (30_000, 10, OURS),
                (30_000, 100, ENGINE),
                (100_000, 1, ENGINE),
                (100_000, 10, ENGINE),
            ]),
            runs: 5,
            engine_runs: 200,
            budget: Duration::from_secs(5),
            slow: Duration::from_secs(2),
            restart_endpoints: 300_000,
            traffic: Traffic {
                services: 30_000,
                kube_proxy_services: 5_000,
                connections: 20_000,
                rounds: 40,
                stream: Duration::from_secs(2),
                stream_rounds: 5,
            },
        }
    }

    /// The engine beside kube-proxy's 1.36 shape alone.
    pub fn pair(services: u32) -> Self {
        Self {
            programming: sizes(&[(services, 10, &[Shape::KubeProxyMaps, Shape::Engine])]),
            ..Self::full()
        }
    }

    /// The same in less than two minutes.
    pub fn quick() -> Self {
        Self {
            programming: sizes(&[
                (500, 10, ALL),
                (1_000, 10, NOT_IPTABLES_NFT),
                (5_000, 10, LEGACY_AND_OURS),
                (30_000, 10, ENGINE),
            ]),
            runs: 3,
            engine_runs: 200,
            budget: Duration::from_millis(800),
            slow: Duration::from_millis(100),
            restart_endpoints: 300_000,
            traffic: Traffic {
                services: 10_000,
                kube_proxy_services: 2_000,
                connections: 4_000,
                rounds: 16,
                stream: Duration::from_millis(400),
                stream_rounds: 5,
            },
        }
    }

    /// Everything once, and small.
    pub fn smoke() -> Self {
        Self {
            programming: sizes(&[(50, 2, ALL), (200, 2, OURS)]),
            runs: 1,
            engine_runs: 5,
            budget: Duration::from_millis(100),
            slow: Duration::ZERO,
            restart_endpoints: 300_000,
            traffic: Traffic {
                services: 100,
                kube_proxy_services: 50,
                connections: 60,
                rounds: 2,
                stream: Duration::from_millis(100),
                stream_rounds: 1,
            },
        }
    }
}
