//! Reports, both ways: the server takes the wire form apart, the agent puts it together.

use nftfleet_domain::inventory as domain;

use crate::types as wire;

fn fact<A, B>(fact: domain::Fact<A>, convert: impl FnOnce(A) -> B) -> wire::Fact<B> {
    match fact {
        domain::Fact::Known(value) => wire::Fact::Known(convert(value)),
        domain::Fact::Missing(why) => wire::Fact::Missing(why),
    }
}

fn told<A, B>(fact: wire::Fact<A>, convert: impl FnOnce(A) -> B) -> domain::Fact<B> {
    match fact {
        wire::Fact::Known(value) => domain::Fact::Known(convert(value)),
        wire::Fact::Missing(why) => domain::Fact::Missing(why),
    }
}

/// Structs with the same fields on both sides, converted both ways.
macro_rules! same_fields {
    ($($name:ident { $($field:ident),* })*) => {
        $(
            impl From<domain::$name> for wire::$name {
                fn from(value: domain::$name) -> Self {
                    Self { $($field: value.$field.into()),* }
                }
            }

            impl From<wire::$name> for domain::$name {
                fn from(value: wire::$name) -> Self {
                    Self { $($field: value.$field.into()),* }
                }
            }
        )*
    };
}

same_fields! {
    Version { major, minor, patch }
    KernelRelease { release, version }
    OsRelease { id, version_id, pretty_name }
    IptablesEvidence { dispatch_jumps, service_chains, reached_service_chains, endpoint_chains, ipset_rules }
}

impl From<domain::TableState> for wire::TableState {
    fn from(state: domain::TableState) -> Self {
        match state {
            domain::TableState::Absent => Self::Absent,
            domain::TableState::Dormant => Self::Dormant,
            domain::TableState::Active => Self::Active,
        }
    }
}

impl From<wire::TableState> for domain::TableState {
    fn from(state: wire::TableState) -> Self {
        match state {
            wire::TableState::Absent => Self::Absent,
            wire::TableState::Dormant => Self::Dormant,
            wire::TableState::Active => Self::Active,
        }
    }
}

impl From<domain::Report> for wire::Report {
    fn from(report: domain::Report) -> Self {
        let proxy = report.proxy;
        Self {
            taken_at: report.taken_at,
            agent_version: report.agent_version,
            kernel: fact(report.kernel, Into::into),
            os: fact(report.os, Into::into),
            nft: fact(report.nft, Into::into),
            proxy: wire::ProxyEvidence {
                iptables_legacy: fact(proxy.iptables_legacy, Into::into),
                iptables_nft: fact(proxy.iptables_nft, Into::into),
                ipvs_services: fact(proxy.ipvs_services, |n| n),
                ipvs_link: fact(proxy.ipvs_link, |l| l),
                kube_proxy_tables: fact(proxy.kube_proxy_tables, |t| t),
                live_kube_proxy_tables: fact(proxy.live_kube_proxy_tables, |t| t),
                kube_proxy_says: fact(proxy.kube_proxy_says, |w| w),
                foreign_links: fact(proxy.foreign_links, |l| l),
                nftfleet_table: fact(proxy.nftfleet_table, Into::into),
            },
            cni: fact(report.cni, |c| c),
        }
    }
}

impl From<wire::Report> for domain::Report {
    fn from(report: wire::Report) -> Self {
        let proxy = report.proxy;
        Self {
            taken_at: report.taken_at,
            agent_version: report.agent_version,
            kernel: told(report.kernel, Into::into),
            os: told(report.os, Into::into),
            nft: told(report.nft, Into::into),
            proxy: domain::ProxyEvidence {
                iptables_legacy: told(proxy.iptables_legacy, Into::into),
                iptables_nft: told(proxy.iptables_nft, Into::into),
                ipvs_services: told(proxy.ipvs_services, |n| n),
                ipvs_link: told(proxy.ipvs_link, |l| l),
                kube_proxy_tables: told(proxy.kube_proxy_tables, |t| t),
                live_kube_proxy_tables: told(proxy.live_kube_proxy_tables, |t| t),
                kube_proxy_says: told(proxy.kube_proxy_says, |w| w),
                foreign_links: told(proxy.foreign_links, |l| l),
                nftfleet_table: told(proxy.nftfleet_table, Into::into),
            },
            cni: told(report.cni, |c| c),
        }
    }
}
