//! Time, identities and secrets come from outside, so that a test can replace them. Only `main` makes the real ones.

use jiff::Timestamp;
use rand::TryRngCore;
use rand::rngs::OsRng;
use uuid::Uuid;

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Now, in whole microseconds: what Postgres keeps, so that a time is the same before and after it was stored.
    fn now(&self) -> Timestamp;
}

/// Draws what must be unique or unguessable.
pub trait Ids: Send + Sync {
    /// A new identity; later ones sort after earlier ones.
    fn id(&self) -> Uuid;
    /// 256 bits that nobody can guess.
    fn secret(&self) -> [u8; 32];
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that main hands in")]
    fn now(&self) -> Timestamp {
        in_microseconds(Timestamp::now())
    }
}

/// Identities of UUID version 7 and secrets from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct SystemIds;

impl Ids for SystemIds {
    #[expect(clippy::disallowed_methods, reason = "these are the identities that main hands in")]
    fn id(&self) -> Uuid {
        Uuid::now_v7()
    }

    fn secret(&self) -> [u8; 32] {
        let mut secret = [0; 32];
        // Without randomness there are no secrets, and the kernel of every supported node has it.
        OsRng
            .try_fill_bytes(&mut secret)
            .expect("the kernel gives random bytes");
        secret
    }
}

/// Cut to whole microseconds.
pub fn in_microseconds(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at)
}
