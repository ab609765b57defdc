//! Repeated measurements of one thing.

use std::time::Duration;

use serde::Serialize;

/// Measurements in the order in which they were made: seconds, kibibytes, or whatever the place says where they are kept.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// One more.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// One more, in seconds.
    pub fn push_time(&mut self, time: Duration) {
        self.push(time.as_secs_f64());
    }

    /// How many.
    pub fn runs(&self) -> usize {
        self.0.len()
    }

    /// The value that `per_mille` of a thousand do not exceed; none if there are no values.
    pub fn quantile(&self, per_mille: usize) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        // The nearest rank.
        let rank = (sorted.len() * per_mille).div_ceil(1000);
        Some(sorted[rank.saturating_sub(1).min(last)])
    }

    /// The value in the middle.
    pub fn median(&self) -> Option<f64> {
        self.quantile(500)
    }
}
