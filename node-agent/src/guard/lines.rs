//! A log that never holds its writer up.

use std::io::{self, Write};
use std::os::fd::AsFd as _;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// So much is written to a pipe without waiting, if it takes anything (`PIPE_BUF`), in bytes.
const AT_ONCE: usize = 4096;

/// Standard error, for who must not wait for its reader. A container's log may be a pipe that nobody empties; a guard that
/// waited for it would not fire. What does not fit is lost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut ready, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            // A log that is gone is no reason to stop.
            let _ = stderr.lock().write_all(&line[..line.len().min(AT_ONCE)]);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
