//! A thread inside a namespace with a tokio runtime of its own.
//!
//! tokio's own worker threads stay in the namespace of the test; sockets must be made by a thread that has entered the
//! right one. So every server and every client of a lab gets a thread with a single-threaded runtime.

use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::Netns;

/// A running thread; it is told to stop, and waited for, on [`RuntimeThread::stop`] or drop.
#[derive(Debug)]
pub(crate) struct RuntimeThread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Resolves when the owner wants the thread to end.
pub(crate) type Stopped = oneshot::Receiver<()>;

impl RuntimeThread {
    /// Runs `body` in `netns`, or, without one, in the namespace of the calling thread. Tasks that `body` spawned and did not wait
    /// for are dropped when it returns.
    pub(crate) fn start<F>(netns: Option<&Netns>, body: impl FnOnce(Stopped) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()>,
    {
        let (stop, stopped) = oneshot::channel();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a tokio runtime for a lab thread");
            runtime.block_on(body(stopped));
        };
        let thread = match netns {
            Some(netns) => netns.spawn(work),
            None => std::thread::spawn(work),
        };
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Asks the body to end and waits until it has. A panic of the body goes on here.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
        let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) else {
            return;
        };
        if !std::thread::panicking() {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for RuntimeThread {
    fn drop(&mut self) {
        self.stop();
    }
}
