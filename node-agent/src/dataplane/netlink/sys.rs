//! System calls that no library wraps: with libnftnl's, the only `unsafe` code of the agent.

#![expect(
    unsafe_code,
    reason = "system calls that take numbers; every block says why it is sound"
)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::libc;

/// `MEMBARRIER_CMD_GLOBAL`.
const MEMBARRIER_GLOBAL: libc::c_int = 1;

/// Waits for a grace period of RCU: see `membarrier(2)`.
///
/// # Errors
/// The kernel does not offer it: it does not on machines with isolated cores (`nohz_full`).
pub fn membarrier() -> io::Result<()> {
    // SAFETY: three numbers, and no memory is handed over.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets a netlink socket's option.
fn set(socket: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the option's value is a number on this stack, of the length that is given; the descriptor is borrowed and open.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Has the kernel say with an error at which attribute of the request it stopped, and not repeat the whole request.
///
/// # Errors
/// The socket is not one of netlink.
pub fn ask_for_extended_errors(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::NETLINK_EXT_ACK, 1)?;
    set(socket, libc::NETLINK_CAP_ACK, 1)
}

/// Has the kernel tell a netlink socket what concerns a group, or tell it no more.
///
/// # Errors
/// The socket is not one of netlink, or has no such group.
pub fn subscribe(socket: BorrowedFd<'_>, group: u32, wanted: bool) -> io::Result<()> {
    let option = if wanted {
        libc::NETLINK_ADD_MEMBERSHIP
    } else {
        libc::NETLINK_DROP_MEMBERSHIP
    };
    let group = libc::c_int::try_from(group).map_err(io::Error::other)?;
    set(socket, option, group)
}
