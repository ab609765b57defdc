//! How the C library keeps freed memory.
//!
//! The first lists and the first load need tens of megabytes for a moment. glibc raises its thresholds to what was freed
//! last, and keeps a heap for every thread; so all of that would stay with the agent for good.
#![expect(
    unsafe_code,
    reason = "a setting of the C library; the one block says why it is sound"
)]

/// What is larger is mapped by itself, and so much may lie free at the end of the heap: glibc's own first values, in bytes.
#[cfg(target_env = "gnu")]
const THRESHOLD: nix::libc::c_int = 128 << 10;

/// Has freed memory given back to the kernel. To be called before threads are started.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
        for (parameter, value) in [
            (M_ARENA_MAX, 1),
            (M_MMAP_THRESHOLD, THRESHOLD),
            (M_TRIM_THRESHOLD, THRESHOLD),
        ] {
            // Sound: it takes two numbers, and locks the heap while it sets the one.
            let accepted = unsafe { mallopt(parameter, value) };
            if accepted == 0 {
                tracing::warn!(parameter, value, "the C library does not take this setting of its heap");
            }
        }
    }
}
