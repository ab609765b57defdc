//! Collects the facts. What can't be read is a missing fact with its reason, never a guess.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nftfleet_domain::inventory::{Fact, IptablesEvidence, KernelRelease, ProxyEvidence, Report};

use super::iptables::{Backend, evidence};
use super::parse;
use crate::dataplane::{Kernel as _, KernelError, Netlink};
use crate::host::Host;

/// Where the node's files are, which may be mounted elsewhere in a pod.
#[derive(Clone, Debug)]
pub struct Paths {
    /// `/etc/os-release`.
    pub os_release: PathBuf,
    /// `/etc/cni/net.d`.
    pub cni: PathBuf,
}

/// Collects all facts. Takes some tens of milliseconds: it runs a handful of commands.
pub fn collect(host: &dyn Host, paths: &Paths, now: Timestamp) -> Report {
    Report {
        taken_at: now,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: read(host, Path::new("/proc/sys/kernel/osrelease"), KernelRelease::parse),
        os: read(host, &paths.os_release, parse::os_release),
        nft: match host.run("nft", &["--version"], "") {
            Ok(ran) => parse::nft_version(&ran.stdout).map_or_else(
                || Fact::Missing(format!("nft --version printed {:?}", ran.stdout)),
                Fact::Known,
            ),
            Err(error) => Fact::Missing(format!("nft: {error}")),
        },
        proxy: proxy_evidence(host),
        cni: cni(host, &paths.cni),
    }
}

/// What shows which Service proxy is at work.
pub fn proxy_evidence(host: &dyn Host) -> ProxyEvidence {
    let (nftfleet_table, kube_proxy_tables) = match Netlink::open() {
        Ok(mut netlink) => (told(netlink.state()), told(netlink.tables().map(kube_proxys))),
        Err(error) => (Fact::Missing(error.to_string()), Fact::Missing(error.to_string())),
    };
    ProxyEvidence {
        iptables_legacy: iptables(host, Backend::Legacy),
        iptables_nft: iptables(host, Backend::Nft),
        ipvs_services: match host.read(Path::new("/proc/net/ip_vs")) {
            Ok(text) => Fact::Known(parse::ipvs_services(&text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Fact::Known(0),
            Err(error) => Fact::Missing(format!("/proc/net/ip_vs: {error}")),
        },
        kube_proxy_tables,
        nftfleet_table,
    }
}

fn told<T>(answer: Result<T, KernelError>) -> Fact<T> {
    answer.map_or_else(|error| Fact::Missing(error.to_string()), Fact::Known)
}

fn kube_proxys(tables: Vec<String>) -> Vec<String> {
    tables
        .into_iter()
        .filter(|table| table == "ip kube-proxy" || table == "ip6 kube-proxy")
        .collect()
}

fn iptables(host: &dyn Host, backend: Backend) -> Fact<IptablesEvidence> {
    let mut saved = Vec::new();
    for (save, _) in backend.commands() {
        match host.run(save, &[], "") {
            Ok(ran) if ran.succeeded => saved.push(ran.stdout),
            Ok(ran) => return Fact::Missing(format!("{save}: {}", ran.stderr.trim())),
            Err(error) => return Fact::Missing(format!("{save}: {error}")),
        }
    }
    Fact::Known(evidence(&saved))
}

fn read<T>(host: &dyn Host, path: &Path, parse: impl Fn(&str) -> Option<T>) -> Fact<T> {
    match host.read(path) {
        Ok(text) => parse(&text).map_or_else(
            || Fact::Missing(format!("{} makes no sense", path.display())),
            Fact::Known,
        ),
        Err(error) => Fact::Missing(format!("{}: {error}", path.display())),
    }
}

fn cni(host: &dyn Host, folder: &Path) -> Fact<Vec<String>> {
    let names = match host.list(folder) {
        Ok(names) => names,
        Err(error) if error.kind() == ErrorKind::NotFound => return Fact::Known(vec![]),
        Err(error) => return Fact::Missing(format!("{}: {error}", folder.display())),
    };
    let mut plugins = Vec::new();
    for name in names {
        let path = folder.join(name);
        if !path
            .extension()
            .is_some_and(|ending| ["conf", "conflist", "json"].iter().any(|known| ending == *known))
        {
            continue;
        }
        let text = match host.read(&path) {
            Ok(text) => text,
            Err(error) => return Fact::Missing(format!("{}: {error}", path.display())),
        };
        match parse::cni_plugins(&text) {
            Ok(found) => plugins.extend(found),
            Err(error) => return Fact::Missing(format!("{}: {error}", path.display())),
        }
    }
    plugins.sort();
    plugins.dedup();
    Fact::Known(plugins)
}
