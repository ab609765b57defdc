//! Collects the facts. What can't be read is a missing fact with its reason, never a guess.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nftfleet_domain::inventory::{Fact, IptablesEvidence, KernelRelease, ProxyEvidence, Report};
use nftfleet_domain::readiness::owner_of_link;

use super::iptables::{Backend, evidence};
use super::{parse, proxy_mode};
use crate::dataplane::{Kernel as _, KernelError, Netlink};
use crate::host::Host;

/// Where the node's facts are found: its files, which may be mounted elsewhere in a pod, and kube-proxy.
#[derive(Clone, Debug)]
pub struct Paths {
    /// `/etc/os-release`.
    pub os_release: PathBuf,
    /// `/etc/cni/net.d`.
    pub cni: PathBuf,
    /// kube-proxy's metrics address (its `--metrics-bind-address`), where it tells its mode.
    pub kube_proxy: SocketAddr,
}

/// Collects all facts. Takes some tens of milliseconds: it runs a handful of commands. It blocks, half a second longer if
/// kube-proxy's address takes connections and does not answer.
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
        proxy: proxy_evidence(host, paths.kube_proxy),
        cni: cni(host, &paths.cni),
    }
}

/// What shows which Service proxy is at work.
pub fn proxy_evidence(host: &dyn Host, kube_proxy: SocketAddr) -> ProxyEvidence {
    let (nftfleet_table, tables) = match Netlink::open() {
        Ok(mut netlink) => (told(netlink.state()), told(netlink.kube_proxy_tables())),
        Err(error) => (Fact::Missing(error.to_string()), Fact::Missing(error.to_string())),
    };
    let named = |only_live: bool| match &tables {
        Fact::Known(tables) => {
            let named = tables.iter().filter(|table| table.live || !only_live);
            Fact::Known(named.map(|table| table.name.to_owned()).collect())
        }
        Fact::Missing(why) => Fact::Missing(why.clone()),
    };
    let links = host.list(Path::new("/sys/class/net"));
    let (ipvs_link, foreign_links) = match links {
        Ok(links) => (
            Fact::Known(links.iter().any(|link| link == IPVS_LINK)),
            Fact::Known(links.into_iter().filter(|link| owner_of_link(link).is_some()).collect()),
        ),
        Err(error) => {
            let why = format!("/sys/class/net: {error}");
            (Fact::Missing(why.clone()), Fact::Missing(why))
        }
    };
    ProxyEvidence {
        iptables_legacy: iptables(host, Backend::Legacy),
        iptables_nft: iptables(host, Backend::Nft),
        ipvs_services: match host.read(Path::new("/proc/net/ip_vs")) {
            Ok(text) => Fact::Known(parse::ipvs_services(&text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Fact::Known(0),
            Err(error) => Fact::Missing(format!("/proc/net/ip_vs: {error}")),
        },
        ipvs_link,
        kube_proxy_tables: named(false),
        live_kube_proxy_tables: named(true),
        kube_proxy_says: match proxy_mode::ask(kube_proxy) {
            Ok(word) => Fact::Known(word),
            Err(error) => Fact::Missing(format!("http://{kube_proxy}/proxyMode: {error}")),
        },
        foreign_links,
        nftfleet_table,
    }
}

/// The link on which kube-proxy's IPVS mode has the Services' addresses.
const IPVS_LINK: &str = "kube-ipvs0";

fn told<T>(answer: Result<T, KernelError>) -> Fact<T> {
    answer.map_or_else(|error| Fact::Missing(error.to_string()), Fact::Known)
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
