//! Removes the tables of kube-proxy's nftables mode, `ip kube-proxy` and `ip6 kube-proxy`, which hold nothing of anybody else's.

use crate::dataplane::netlink::SocketError;
use crate::dataplane::{KernelError, Netlink};

/// Why the tables could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is no talking to the kernel.
    #[error("nf_tables can't be spoken to: {0}")]
    Socket(#[from] SocketError),
    /// The kernel could not say what is there, or refused. All of the tables still stand.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// They are there again. The names are those that were seen.
    #[error("still there: {}; does kube-proxy run, and write again?", .0.join(", "))]
    StillThere(Vec<&'static str>),
}

/// Deletes the tables in one transaction and looks whether they are gone. No other table is touched. Our own table must be
/// active before: with the last user of NAT in a namespace the kernel takes its hooks away, and live connections stall.
///
/// # Errors
/// See [`RemoveError`].
pub fn remove_tables() -> Result<(), RemoveError> {
    let mut netlink = Netlink::open()?;
    netlink.delete_kube_proxy_tables()?;
    // Done means observed.
    let left = netlink.kube_proxy_tables()?;
    if left.is_empty() {
        Ok(())
    } else {
        Err(RemoveError::StillThere(left.iter().map(|table| table.name).collect()))
    }
}
