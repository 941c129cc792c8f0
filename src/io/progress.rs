//! Progress of one operation: counters that any front end may read or be called with.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// A named stage of an operation and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// `plan`, `write`, `sync`, `publish`, `index`, `read`, ….
    pub name: &'static str,
    /// How long it took.
    pub time: Duration,
}

/// What an operation has done so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProgressSnapshot {
    /// Decoded bytes done.
    pub bytes_done: u64,
    /// Decoded bytes in all, as far as they are planned.
    pub bytes_total: u64,
    /// Chunks done.
    pub chunks_done: u64,
    /// Chunks in all.
    pub chunks_total: u64,
    /// Leaves planned.
    pub leaves_total: u64,
    /// Since the operation began.
    pub elapsed: Duration,
}

impl ProgressSnapshot {
    /// Returns decoded bytes per second so far.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn bytes_per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.bytes_done as f64 / seconds } else { 0.0 }
    }

    /// Returns the time left at the rate so far, where there is one.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
    pub fn eta(&self) -> Option<Duration> {
        let rate = self.bytes_per_second();
        let left = self.bytes_total.saturating_sub(self.bytes_done) as f64;
        (rate > 0.0).then(|| Duration::from_secs_f64(left / rate))
    }
}

type Callback = Box<dyn Fn(&ProgressSnapshot) + Send + Sync>;

#[derive(Default)]
struct Counters {
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    chunks_done: AtomicU64,
    chunks_total: AtomicU64,
    leaves_total: AtomicU64,
    stages: Mutex<Vec<Stage>>,
    callback: Option<Callback>,
}

/// A handle on the progress of one save, restore, import, export or verify.
#[derive(Clone)]
pub struct Progress {
    counters: Arc<Counters>,
    start: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self { counters: Arc::default(), start: Instant::now() }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

impl Progress {
    /// Creates a progress that calls `callback` after every chunk, on the thread that finished it.
    #[must_use]
    pub fn with_callback(callback: impl Fn(&ProgressSnapshot) + Send + Sync + 'static) -> Self {
        let counters = Counters { callback: Some(Box::new(callback)), ..Counters::default() };
        Self { counters: Arc::new(counters), start: Instant::now() }
    }

    /// Returns the counters as they stand.
    #[must_use]
    pub fn snapshot(&self) -> ProgressSnapshot {
        let c = &self.counters;
        ProgressSnapshot {
            bytes_done: c.bytes_done.load(Relaxed),
            bytes_total: c.bytes_total.load(Relaxed),
            chunks_done: c.chunks_done.load(Relaxed),
            chunks_total: c.chunks_total.load(Relaxed),
            leaves_total: c.leaves_total.load(Relaxed),
            elapsed: self.start.elapsed(),
        }
    }

    /// Returns the stages that have ended.
    #[must_use]
    pub fn stages(&self) -> Vec<Stage> {
        self.counters.stages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins again, for another attempt at the same.
    pub(crate) fn restart(&self) {
        let c = &self.counters;
        for counter in
            [&c.bytes_done, &c.bytes_total, &c.chunks_done, &c.chunks_total, &c.leaves_total]
        {
            counter.store(0, Relaxed);
        }
        c.stages.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn plan(&self, leaves: u64, chunks: u64, bytes: u64) {
        self.counters.leaves_total.fetch_add(leaves, Relaxed);
        self.counters.chunks_total.fetch_add(chunks, Relaxed);
        self.counters.bytes_total.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn chunk_done(&self, bytes: u64) {
        self.counters.chunks_done.fetch_add(1, Relaxed);
        self.counters.bytes_done.fetch_add(bytes, Relaxed);
        if let Some(callback) = &self.counters.callback {
            callback(&self.snapshot());
        }
    }

    pub(crate) fn stage_done(&self, name: &'static str, since: Instant) {
        let stage = Stage { name, time: since.elapsed() };
        self.counters.stages.lock().unwrap_or_else(PoisonError::into_inner).push(stage);
    }
}
