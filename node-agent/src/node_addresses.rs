//! The node's own addresses, as the kernel has them.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::pause::Pause;

/// Where kube-proxy's IPVS mode puts every Service's addresses. They are the Services', not the node's.
pub const OF_IPVS: &str = "kube-ipvs0";

/// What the kernel is to tell us about: addresses of both families (`RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV6_IFADDR`). Of links it
/// need not: one that goes or is renamed is told as its addresses' change too, and pods' links come and go all day.
const GROUPS: u32 = 0x10 | 0x100;

/// How long nothing may be heard until the addresses are listed all the same.
const AT_LEAST_EVERY: Duration = Duration::from_mins(1);

/// The shortest time between two listings: kube-proxy's IPVS mode adds addresses by the ten thousands, one by one.
const AT_MOST_EVERY: Duration = Duration::from_millis(100);

/// The addresses of the calling thread's network namespace, without loopback and link-local ones, and without what IPVS holds.
///
/// # Errors
/// The kernel does not tell.
pub fn list() -> io::Result<BTreeSet<IpAddr>> {
    Ok(getifaddrs()?.filter_map(|address| of_node(&address)).collect())
}

fn of_node(found: &InterfaceAddress) -> Option<IpAddr> {
    let address = found.address?;
    let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => IpAddr::V4(v4.ip()),
        (None, Some(v6)) => IpAddr::V6(v6.ip()),
        (None, None) => return None,
    };
    let is_link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    (found.interface_name != OF_IPVS && !ip.is_loopback() && !is_link_local).then_some(ip)
}

/// Publishes the addresses of the calling thread's network namespace now, and whenever they change, until the process ends.
/// What goes wrong is logged and tried again; the last addresses stay.
pub async fn watch(publish: watch::Sender<BTreeSet<IpAddr>>) {
    let mut pause = Pause::default();
    loop {
        let error = match Changes::subscribe() {
            Ok(changes) => follow(&changes, &publish, &mut pause).await,
            Err(error) => error,
        };
        tracing::warn!(%error, "the node's addresses can't be watched; trying again");
        // They may have changed meanwhile, and listing needs no subscription.
        if let Ok(addresses) = list() {
            tell(&publish, addresses);
        }
        pause.wait().await;
    }
}

/// Lists after every change, until that fails.
async fn follow(changes: &Changes, publish: &watch::Sender<BTreeSet<IpAddr>>, pause: &mut Pause) -> io::Error {
    loop {
        match list() {
            Ok(addresses) => tell(publish, addresses),
            Err(error) => return error,
        }
        *pause = Pause::default();
        sleep(AT_MOST_EVERY).await;
        // Nothing heard for long is as good a reason to look as a change.
        if let Ok(Err(error)) = timeout(AT_LEAST_EVERY, changes.next()).await {
            return error;
        }
    }
}

fn tell(publish: &watch::Sender<BTreeSet<IpAddr>>, addresses: BTreeSet<IpAddr>) {
    publish.send_if_modified(|known| {
        let changed = *known != addresses;
        *known = addresses;
        changed
    });
}

/// The kernel's word that addresses have changed; how, a listing tells.
struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    #[expect(
        deprecated,
        reason = "its successor is unsafe for the sake of types that lie about their descriptor; an OwnedFd can't"
    )]
    fn subscribe() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        Ok(Self(AsyncFd::new(fd)?))
    }

    /// Waits for a change, and takes in all that are known by then.
    async fn next(&self) -> io::Result<()> {
        let mut heard = false;
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| forget_one(fd.get_ref())) {
                Ok(done) => {
                    done?;
                    heard = true;
                }
                Err(_) if heard => return Ok(()),
                Err(_) => {}
            }
        }
    }
}

fn forget_one(fd: &OwnedFd) -> io::Result<()> {
    match recv(fd.as_raw_fd(), &mut [0; 64], MsgFlags::empty()) {
        // Changes were lost because too many came at once: that too is a change.
        Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn ip(batch: &str) {
        let mut child = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "ip refused {batch}");
    }

    /// Runs `work` on a fresh thread in a network namespace of its own (as root).
    fn in_a_namespace<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send) {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(work());
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Waits for these addresses.
    async fn seen(published: &mut watch::Receiver<BTreeSet<IpAddr>>, wanted: &[&str]) {
        let wanted = addresses(wanted);
        let shown = timeout(Duration::from_secs(10), published.wait_for(|known| *known == wanted)).await;
        assert!(shown.is_ok(), "{:?} instead of {wanted:?}", list());
    }

    /// Waits until the kernel tells of a change.
    async fn told(changes: &Changes) {
        let next = timeout(Duration::from_secs(10), changes.next()).await;
        next.expect("the kernel tells").unwrap();
    }

    #[test]
    fn only_the_nodes_own_addresses_are_listed() {
        in_a_namespace(|| async {
            ip("link set lo up\n\
                link add eth0 type bridge\n\
                link set eth0 up\n\
                link add kube-ipvs0 type bridge\n\
                addr add 10.96.0.1/32 dev kube-ipvs0\n\
                addr add fd00:96::1/128 dev kube-ipvs0\n\
                addr add 10.0.0.1/24 dev eth0\n\
                addr add 10.0.0.2/24 dev eth0\n\
                addr add fd00::1/64 dev eth0 nodad\n\
                addr add fe80::77/64 dev eth0 nodad\n\
                addr add 127.9.9.9/8 dev eth0\n\
                addr add 192.0.2.1/32 dev lo\n");
            assert_eq!(
                list().unwrap(),
                addresses(&["10.0.0.1", "10.0.0.2", "192.0.2.1", "fd00::1"])
            );
        });
    }

    #[test]
    fn a_change_is_noticed_and_what_is_none_is_not() {
        in_a_namespace(|| async {
            ip("link add eth0 type bridge\nlink set eth0 up\n");
            let (publish, mut published) = watch::channel(BTreeSet::new());
            let watching = tokio::spawn(watch(publish));
            ip("addr add 10.0.0.1/24 dev eth0\n");
            seen(&mut published, &["10.0.0.1"]).await;
            ip("addr add fd00::1/64 dev eth0 nodad\n");
            seen(&mut published, &["10.0.0.1", "fd00::1"]).await;
            ip("addr add 10.0.0.2/24 dev eth0\n");
            seen(&mut published, &["10.0.0.1", "10.0.0.2", "fd00::1"]).await;

            // A second listener shows that the kernel has told of these, which change nothing.
            let changes = Changes::subscribe().unwrap();
            ip("link add kube-ipvs0 type bridge\naddr add 10.96.0.1/32 dev kube-ipvs0\n");
            told(&changes).await;
            sleep(AT_MOST_EVERY * 3).await;
            assert!(!published.has_changed().unwrap());

            // Without the first of a network its others go too.
            ip("addr del 10.0.0.1/24 dev eth0\naddr add 10.0.0.3/32 dev eth0\n");
            seen(&mut published, &["10.0.0.3", "fd00::1"]).await;
            ip("addr del fd00::1/64 dev eth0\n");
            seen(&mut published, &["10.0.0.3"]).await;
            // What happens to a link happens to its addresses.
            ip("link set eth0 down\nlink del kube-ipvs0\n");
            sleep(AT_MOST_EVERY * 3).await;
            ip("link set eth0 name kube-ipvs0\n");
            seen(&mut published, &[]).await;
            ip("link set kube-ipvs0 name eth1\n");
            seen(&mut published, &["10.0.0.3"]).await;
            ip("link del eth1\n");
            seen(&mut published, &[]).await;
            watching.abort();
        });
    }

    #[test]
    fn more_changes_than_the_kernel_keeps_are_a_change() {
        in_a_namespace(|| async {
            let changes = Changes::subscribe().unwrap();
            ip("link add eth0 type bridge\n");
            let many: Vec<String> = (0..4000u32)
                .map(|n| format!("addr add 10.1.{}.{}/32 dev eth0", n / 256, n % 256))
                .collect();
            ip(&many.join("\n"));
            told(&changes).await;
            assert_eq!(list().unwrap().len(), 4000);
        });
    }
}
