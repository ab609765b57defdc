//! Waits until no packet is under way through a table as it was.

#![expect(
    unsafe_code,
    reason = "no library wraps this system call; it takes and gives numbers alone"
)]

use std::io;
use std::sync::Once;
use std::time::Duration;

use nix::libc;

/// `MEMBARRIER_CMD_GLOBAL`: the kernel waits for a grace period of RCU. See `membarrier(2)`.
const GLOBAL: libc::c_int = 1;

/// Where the kernel does not offer it (it does not on machines with isolated cores, `nohz_full`): longer than any packet is
/// under way through a table, a machine's hiccup included.
const INSTEAD: Duration = Duration::from_millis(200);

static TOLD: Once = Once::new();

/// Returns when every packet that was in the table at the call has left it. Takes some 10 to 20 ms.
pub fn wait_for_packets() {
    // SAFETY: three numbers, and no memory is handed over.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if done != 0 {
        let error = io::Error::last_os_error();
        TOLD.call_once(|| tracing::info!(%error, "no membarrier(2): waiting for packets by the clock"));
        std::thread::sleep(INSTEAD);
    }
}
