//! Waits until no packet is under way through a table as it was.

use std::sync::Once;
use std::time::Duration;

use super::sys;

/// Where the kernel offers nothing to wait for: longer than any packet is under way through a table, a machine's hiccup
/// included.
const INSTEAD: Duration = Duration::from_millis(200);

static TOLD: Once = Once::new();

/// Returns when every packet that was in the table at the call has left it: the kernel walks a packet through a hook inside
/// one read-side section of RCU. Takes some 10 to 20 ms.
pub fn wait_for_packets() {
    if let Err(error) = sys::membarrier() {
        TOLD.call_once(|| tracing::info!(%error, "no membarrier(2): waiting for packets by the clock"));
        std::thread::sleep(INSTEAD);
    }
}
