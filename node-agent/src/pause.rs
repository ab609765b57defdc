//! The pause between two tries of something that others may not be ready for.

use std::time::Duration;

use rand::Rng as _;

/// The first pause; it doubles with every try up to the last.
const FIRST: Duration = Duration::from_millis(200);

/// Long enough to spare a service that comes up again, short enough that nobody waits for us after it has.
const LAST: Duration = Duration::from_secs(10);

/// A pause that doubles, with jitter, so that a fleet does not come back all at once.
#[derive(Debug)]
pub struct Pause {
    next: Duration,
    last: Duration,
}

impl Default for Pause {
    fn default() -> Self {
        Self::at_most(LAST)
    }
}

impl Pause {
    /// A pause that does not grow beyond this.
    pub const fn at_most(last: Duration) -> Self {
        Self { next: FIRST, last }
    }

    /// How long to wait now.
    pub fn length(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.last);
        pause.mul_f64(rand::rng().random_range(0.5..1.0))
    }

    /// Waits.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.length()).await;
    }
}
