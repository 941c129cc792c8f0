//! Numbers of several repetitions, and what is told about them.

use rustix::time::{ClockId, clock_gettime};
use std::time::Instant;

/// Measured values, in the order they came.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds a value.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Returns how many values there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the value that came last; NaN without values.
    pub(crate) fn last(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// Returns the middle value, the mean of both where their number is even; NaN without values.
    pub(crate) fn median(&self) -> f64 {
        let sorted = self.sorted();
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    /// Returns the smallest value; NaN without values.
    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().reduce(f64::min).unwrap_or(f64::NAN)
    }

    /// Returns the largest value; NaN without values.
    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().reduce(f64::max).unwrap_or(f64::NAN)
    }

    /// Returns the smallest value that `percent` of all do not exceed (nearest rank); NaN without values.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let sorted = self.sorted();
        let rank = (sorted.len() * percent.min(100)).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

impl IntoIterator for Samples {
    type Item = f64;
    type IntoIter = std::vec::IntoIter<f64>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Wall and processor time since a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    wall: Instant,
    cpu: f64,
}

impl Watch {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self { wall: Instant::now(), cpu: cpu_seconds() }
    }

    /// Returns the wall seconds since the start.
    pub(crate) fn seconds(&self) -> f64 {
        self.wall.elapsed().as_secs_f64()
    }

    /// Returns the seconds that all threads of the process computed since the start, in the kernel too.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        cpu_seconds() - self.cpu
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a benchmark")]
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "each is one of the samples, or their exact mean")]
    fn medians_and_percentiles_are_those_of_the_definition() {
        let samples: Samples = [15.0, 20.0, 35.0, 40.0, 50.0].into_iter().rev().collect();
        assert_eq!(samples.median(), 35.0);
        let percentiles = [5, 30, 40, 50, 100].map(|p| samples.percentile(p));
        assert_eq!(percentiles.map(f64::to_bits), [15.0, 20.0, 20.0, 35.0, 50.0].map(f64::to_bits));
        assert_eq!(
            [samples.min(), samples.max()].map(f64::to_bits),
            [15.0, 50.0].map(f64::to_bits)
        );
        let even: Samples = [4.0, 1.0, 3.0, 2.0].into_iter().collect();
        assert_eq!(
            [even.median(), even.percentile(99)].map(f64::to_bits),
            [2.5, 4.0].map(f64::to_bits)
        );
        assert!(Samples::default().median().is_nan() && Samples::default().percentile(50).is_nan());
    }
}
