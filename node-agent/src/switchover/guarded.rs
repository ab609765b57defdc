//! The guard's part in a move: no flip without one that is armed, and no clean-up with one.

use std::time::Duration;

use super::position::{Armed, Job};
use super::steps::Tools;
use crate::guard::client::GuardError;
use crate::guard::protocol::Refusal;

impl Tools {
    /// Sees that the guard is armed for this attempt until the deadline, and arms it if it is not, as after its death.
    ///
    /// # Errors
    /// Why it is not, in words. Then the table must not be active.
    pub async fn arm_guard(&self, job: &Job, armed: &Armed) -> Result<(), String> {
        let left = armed.deadline.duration_since(self.clock.now());
        // A clock that was set back makes the wait no longer than it was.
        let within = Duration::from_secs(u64::from(job.confirm_within_seconds));
        let left = Duration::try_from(left).unwrap_or(Duration::ZERO).min(within);
        if left.is_zero() {
            return Err(format!("not confirmed within {} s of the flip", within.as_secs()));
        }
        match self.guard.arm(attempt(job), left).await {
            Ok(()) => Ok(()),
            Err(GuardError::Refused(Refusal::Fired)) => Err(fired(job)),
            Err(error) => Err(format!("the dead-man's switch can't be armed: {error}")),
        }
    }

    /// A round while the flip waits for its confirmation: guarded, and everything that answered before answers.
    ///
    /// # Errors
    /// Why the node must go back, in words.
    pub async fn guarded_and_proven(&self, job: &Job, armed: &Armed) -> Result<(), String> {
        self.arm_guard(job, armed).await?;
        let Err(why) = self.proven(&armed.baseline).await else {
            return Ok(());
        };
        // It may have fired in the middle of the round; that explains it.
        match self.guard.query().await {
            Ok(Some(state)) if state.has_fired(&attempt(job)) => Err(fired(job)),
            _ => Err(why),
        }
    }

    /// Sees that the guard does not fire for this attempt any more.
    ///
    /// # Errors
    /// It may still, and why that is not known, in words.
    pub async fn disarm_guard(&self, job: &Job) -> Result<(), String> {
        let released = self.guard.disarm(attempt(job)).await;
        released.map_err(|error| format!("the dead-man's switch can't be disarmed: {error}"))
    }
}

/// By which the guard knows an attempt.
fn attempt(job: &Job) -> String {
    format!("{}/{}", job.task, job.attempt)
}

fn fired(job: &Job) -> String {
    let seconds = job.confirm_within_seconds;
    format!("the dead-man's switch fired: not confirmed within {seconds} s of the flip")
}
