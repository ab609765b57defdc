//! Waiting for a fact instead of for a time.
//!
//! Tests never sleep: they ask again and again until the fact is there. Only this module knows how often, and a fact
//! that does not come ends the test with its name.

use std::time::{Duration, Instant};

/// The pause between two looks: short enough not to slow a test, long enough not to starve what is waited for.
const PAUSE: Duration = Duration::from_millis(10);

/// The pause between two tries of something that the caller's own limit ends.
pub async fn pause() {
    tokio::time::sleep(PAUSE).await;
}

/// Looks with `probe` until it finds something and returns that.
///
/// Panics with `what` when `limit` has passed, even if a look itself hangs.
pub async fn until<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let look = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let Ok(found) = tokio::time::timeout(limit, look).await else {
        panic!("waited {limit:?} in vain for {what}");
    };
    found
}

/// The blocking twin of [`until`], for threads without a runtime. A look that hangs is not interrupted.
pub fn until_blocking<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(PAUSE);
    }
}

/// How long something takes that the harness plays itself, such as a kubelet's reaction: not a wait for a fact.
pub(crate) async fn taking(time: Duration) {
    tokio::time::sleep(time).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_what_was_found() {
        let mut looks = 0;
        let found = until_blocking("the third look", Duration::from_secs(5), || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(found, 3);
    }

    #[test]
    #[should_panic(expected = "in vain for a thing that never comes")]
    fn names_what_did_not_come() {
        until_blocking("a thing that never comes", Duration::from_millis(30), || None::<()>);
    }

    #[tokio::test]
    #[should_panic(expected = "in vain for a look that hangs")]
    async fn a_hanging_look_ends_too() {
        until("a look that hangs", Duration::from_millis(30), async || {
            std::future::pending::<()>().await;
            None::<()>
        })
        .await;
    }
}
