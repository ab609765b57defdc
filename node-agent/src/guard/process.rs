//! The guard itself: one thread that waits for requests, for its deadline and for signals, and for nothing else.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nftfleet_domain::inventory::TableState;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{chdir, setsid};

use super::conversation::Conversations;
use super::protocol::{self, Refusal, Reply, Request};
use super::switch::Switch;
use crate::dataplane::kernel::Transaction;
use crate::dataplane::netlink::SocketError;
use crate::dataplane::{Kernel as _, KernelError, Netlink};

/// How long a guard that the agent has started stays when there is nothing to guard.
const LINGER: Duration = Duration::from_mins(1);

/// Between two tries to listen while another guard does.
const ANOTHER: u16 = 1000;

/// One of so many failures in a row is logged.
const LOGGED: u32 = 50;

/// Why a guard can't guard.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The kernel can't be spoken to.
    #[error("the kernel's nf_tables: {0}")]
    Kernel(#[from] SocketError),
    /// Nobody can be listened to.
    #[error("the guard's socket: {0}")]
    Listen(#[source] io::Error),
    /// What it waits with can't be had.
    #[error("{what}: {source}")]
    Wait {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: Errno,
    },
}

fn wait_error(what: &'static str) -> impl FnOnce(Errno) -> ProcessError {
    move |source| ProcessError::Wait { what, source }
}

/// Guards the calling process's network namespace until it is asked to end. One that the agent has started ends by itself when
/// it has had nothing to guard for a while, or if another one listens already; else it waits until that one is gone.
///
/// SIGTERM, SIGINT and SIGHUP end it when it is not armed, and then only: with a pod everything in it is asked to end, also
/// in the middle of a soak, and that must not leave a node that nobody has confirmed to itself.
///
/// # Errors
/// See [`ProcessError`].
pub fn run(is_spawned: bool) -> Result<(), ProcessError> {
    if is_spawned {
        // It must outlive the agent, its terminal and its folder. A leader of a session already needs no other.
        let _ = setsid();
        chdir("/").map_err(wait_error("leave the folder"))?;
    }
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().map_err(wait_error("hold signals back"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&set, flags).map_err(wait_error("hear signals"))?;
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    let timer =
        TimerFd::new(timerfd::ClockId::CLOCK_BOOTTIME, flags).map_err(wait_error("make a timer that counts sleep"))?;
    let table = Table::open()?;
    let Some(listener) = listen(is_spawned, &signals)? else {
        return Ok(());
    };
    // Only what is used is held: the code's pages must not have to come from a disk when the time is over.
    let held = MlockAllFlags::MCL_CURRENT | MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    if let Err(error) = mlockall(held) {
        tracing::info!(%error, "the memory can't be locked");
    }
    tracing::info!(is_spawned, "the guard listens");
    let process = Process {
        switch: Switch::default(),
        table,
        conversations: Conversations::new(listener).map_err(ProcessError::Listen)?,
        timer,
        signals,
        is_spawned,
        is_ending: false,
        busy_at: now()?,
    };
    process.run()
}

/// Listens; none if it is to end instead.
fn listen(is_spawned: bool, signals: &SignalFd) -> Result<Option<UnixListener>, ProcessError> {
    let address = protocol::address().map_err(ProcessError::Listen)?;
    let mut is_told = false;
    loop {
        match UnixListener::bind_addr(&address) {
            Ok(listener) => return Ok(Some(listener)),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => return Err(ProcessError::Listen(error)),
            Err(_) if is_spawned => return Ok(None),
            Err(_) => {}
        }
        if !is_told {
            tracing::info!("another guard listens; waiting until it is gone");
            is_told = true;
        }
        let mut asked = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if poll(&mut asked, ANOTHER).map_err(wait_error("wait"))? > 0 {
            return Ok(None);
        }
    }
}

/// The time since boot, with what the machine was suspended for. Nobody can set it.
fn now() -> Result<Duration, ProcessError> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(wait_error("read the clock"))?;
    Ok(now.into())
}

struct Process {
    switch: Switch,
    table: Table,
    conversations: Conversations,
    timer: TimerFd,
    signals: SignalFd,
    is_spawned: bool,
    /// Whether it was asked to end.
    is_ending: bool,
    /// When it last had something to do.
    busy_at: Duration,
}

impl Process {
    fn run(mut self) -> Result<(), ProcessError> {
        loop {
            let now = now()?;
            // Before anybody is listened to: a deadline that has passed has passed.
            if self.switch.due().is_some_and(|due| due <= now) {
                self.fire()?;
                continue;
            }
            let lingers = self.lingers_until(now);
            if lingers.is_some_and(|until| until <= now) {
                tracing::info!("the guard ends");
                return Ok(());
            }
            self.wait([self.switch.due(), lingers, self.conversations.due()])?;
            if let Ok(Some(_)) = self.signals.read_signal() {
                self.is_ending = true;
                if self.switch.due().is_some() {
                    tracing::warn!("asked to end; going on until the dead-man's switch is disarmed, or has fired");
                }
            }
            self.talk()?;
        }
    }

    /// When it ends if nobody asks for anything; none while there is something to guard.
    fn lingers_until(&mut self, now: Duration) -> Option<Duration> {
        if self.switch.due().is_some() {
            self.busy_at = now;
            None
        } else if self.is_ending {
            Some(now)
        } else {
            self.is_spawned.then(|| self.busy_at.saturating_add(LINGER))
        }
    }

    /// Waits until somebody asks, a signal comes or the first of these times is reached.
    fn wait(&self, dues: [Option<Duration>; 3]) -> Result<(), ProcessError> {
        // Setting it also takes back that it has gone off.
        let set = match dues.into_iter().flatten().min() {
            Some(due) => {
                let due = Expiration::OneShot(TimeSpec::from_duration(due));
                self.timer.set(due, TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            }
            None => self.timer.unset(),
        };
        set.map_err(wait_error("set the timer"))?;
        let own = [self.timer.as_fd(), self.signals.as_fd()];
        let sources = own.into_iter().chain(self.conversations.sources());
        let mut sources: Vec<_> = sources.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut sources, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(wait_error("wait")(errno)),
        }
    }

    fn fire(&mut self) -> Result<(), ProcessError> {
        let first = matches!(self.switch, Switch::Armed { .. });
        if first {
            tracing::warn!(switch = ?self.switch, "the dead-man's switch fires: nobody has disarmed it in time");
        }
        let done = self.table.put_to_sleep();
        self.switch.tried(done.is_ok(), now()?);
        match done {
            Ok(Slept::Now) => tracing::warn!("the table is asleep"),
            Ok(Slept::Already) if first => tracing::warn!("the table was asleep already, or there is none"),
            Ok(Slept::Already) | Err(_) => {}
        }
        Ok(())
    }

    fn talk(&mut self) -> Result<(), ProcessError> {
        let now = now()?;
        let (switch, table, busy_at) = (&mut self.switch, &mut self.table, &mut self.busy_at);
        self.conversations.go_on(now, |asked| {
            *busy_at = now;
            let refused = asked.and_then(|request| handle(request, switch, table, now)).err();
            if let Some(refused) = &refused {
                tracing::warn!(%refused, "a request was refused");
            }
            let state = switch.state(now);
            Reply { refused, state }
        });
        Ok(())
    }
}

fn handle(request: Request, switch: &mut Switch, table: &mut Table, now: Duration) -> Result<(), Refusal> {
    match request {
        Request::Query => Ok(()),
        Request::Arm { id, left_ms } => {
            let mut armed = switch.clone();
            armed.arm(&id, Duration::from_millis(left_ms), now)?;
            if !switch.is_armed_for(&id) {
                table
                    .rehearse()
                    .map_err(|error| Refusal::Unable { why: error.to_string() })?;
                tracing::info!(id, left_ms, "armed");
            }
            *switch = armed;
            Ok(())
        }
        Request::Disarm { id } => {
            let was = switch.is_armed_for(&id);
            switch.disarm(&id)?;
            if was {
                tracing::info!(id, "disarmed");
            }
            Ok(())
        }
    }
}

/// Whether there was something to do.
enum Slept {
    Already,
    Now,
}

/// The table, as far as a guard knows it.
struct Table {
    kernel: Netlink,
    failures: u32,
}

impl Table {
    fn open() -> Result<Self, SocketError> {
        Ok(Self {
            kernel: Netlink::open()?,
            failures: 0,
        })
    }

    /// Puts the table to sleep, if there is one. If it can't be told whether there is, that is done as if there were: at
    /// worst the kernel makes an empty one that sleeps, which the agent replaces.
    fn put_to_sleep(&mut self) -> Result<Slept, KernelError> {
        if let Ok(TableState::Absent | TableState::Dormant) = self.kernel.state() {
            self.failures = 0;
            return Ok(Slept::Already);
        }
        let done = self.commit();
        if let Err(error) = &done {
            if self.failures.is_multiple_of(LOGGED) {
                tracing::error!(%error, "the table can't be put to sleep; trying again");
            }
            self.failures = self.failures.saturating_add(1);
            // It may be the socket.
            if let Ok(kernel) = Netlink::open() {
                self.kernel = kernel;
            }
        } else {
            self.failures = 0;
        }
        done.map(|()| Slept::Now)
    }

    /// Does all that it would do, where it changes nothing: before a flip the table sleeps. So a guard that lacks the right, or
    /// a kernel that does not take it, is found out before and not after; and what it needs of its code is in memory.
    fn rehearse(&mut self) -> Result<(), KernelError> {
        match self.kernel.state()? {
            TableState::Dormant => self.commit(),
            TableState::Active | TableState::Absent => Ok(()),
        }
    }

    fn commit(&mut self) -> Result<(), KernelError> {
        let transaction = Transaction {
            dormant: Some(true),
            ..Transaction::default()
        };
        self.kernel.commit(&transaction).map(drop)
    }
}
