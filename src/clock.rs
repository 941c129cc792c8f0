//! Time and randomness, passed in so that tests and simulations own them.

use crate::tasks;
use futures::future::BoxFuture;
use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Where time and unique ids come from.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Returns the wall clock in milliseconds since the Unix epoch.
    fn unix_ms(&self) -> u64;

    /// Returns a monotonic time since some fixed start.
    fn elapsed(&self) -> Duration;

    /// Returns 128 bits that no other writer has: the id of an attempt.
    fn unique_id(&self) -> u128;

    /// Resolves after `time` of [`Clock::elapsed`]; a simulation lets its own time pass.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tasks::sleep(time))
    }
}

/// The clock and randomness of the operating system.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
    sequence: AtomicU64,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now(), sequence: AtomicU64::new(0) }
    }
}

impl Clock for SystemClock {
    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn unique_id(&self) -> u128 {
        let mut bytes = [0_u8; 16];
        if getrandom::fill(&mut bytes).is_err() {
            // No entropy source: time, process and a counter still differ between writers in practice.
            let mixed = u128::from(self.unix_ms()) << 64
                | u128::from(std::process::id()) << 32
                | u128::from(self.sequence.fetch_add(1, Ordering::Relaxed));
            bytes = mixed.to_le_bytes();
        }
        u128::from_le_bytes(bytes)
    }
}
