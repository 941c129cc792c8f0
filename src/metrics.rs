//! What is told about steps: events to callbacks, to `tracing` and to a log of JSON lines; and totals.

use crate::error::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use std::{
    fmt,
    fs::File,
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Something that happened to a step.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// It is committed.
    Saved {
        /// The step.
        step: u64,
        /// Where it is; the backup run's where the first place failed.
        place: String,
        /// Stored bytes.
        bytes: u64,
        /// From the capture to the commit.
        took: Duration,
    },
    /// It was not saved, on purpose.
    Skipped {
        /// The step.
        step: u64,
        /// Why.
        reason: String,
    },
    /// Saving, deleting or verifying it failed.
    Failed {
        /// The step.
        step: u64,
        /// `save`, `delete` or `verify`.
        action: &'static str,
        /// What happened.
        error: Error,
    },
    /// It was deleted, or moved to the trash.
    Deleted {
        /// The step.
        step: u64,
    },
    /// It was verified and is whole.
    Verified {
        /// The step.
        step: u64,
    },
}

impl Event {
    /// Returns the event as a line of the log shows it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Saved { step, place, bytes, took } => json!({"event": "saved", "step": step,
                "place": place, "bytes": bytes, "seconds": took.as_secs_f64()}),
            Self::Skipped { step, reason } => {
                json!({"event": "skipped", "step": step, "reason": reason})
            }
            Self::Failed { step, action, error } => json!({"event": "failed", "step": step,
                "action": action, "error": error.to_string()}),
            Self::Deleted { step } => json!({"event": "deleted", "step": step}),
            Self::Verified { step } => json!({"event": "verified", "step": step}),
        }
    }
}

/// The totals of a manager since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Steps committed.
    pub saved: u64,
    /// Requests skipped.
    pub skipped: u64,
    /// Saves failed.
    pub failed: u64,
    /// Steps deleted.
    pub deleted: u64,
    /// Saves tried again.
    pub retries: u64,
    /// How long callers of `save` were blocked in all.
    pub blocked: Duration,
    /// How long the committed saves took in all, from capture to commit.
    pub saving: Duration,
    /// Stored bytes of the committed saves.
    pub bytes: u64,
    /// The most bytes of the engine's budget that were ever in use at once.
    pub budget_high_water: u64,
}

impl Stats {
    /// Returns 10⁹ stored bytes per second of saving.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn gigabytes_per_second(&self) -> f64 {
        let seconds = self.saving.as_secs_f64();
        if seconds > 0.0 { self.bytes as f64 / 1e9 / seconds } else { 0.0 }
    }
}

type Callback = Arc<dyn Fn(&Event) + Send + Sync>;

/// Who is told.
#[derive(Default)]
pub(crate) struct Observers {
    callbacks: Mutex<Vec<Callback>>,
    log: Mutex<Option<File>>,
    stats: Mutex<Stats>,
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observers({:?})", self.stats())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observers {
    /// Opens the log at `path`, to append to it.
    pub(crate) fn log_to(&self, path: &Path) -> Result<()> {
        let file = File::options().create(true).append(true).open(path).map_err(|e| {
            Error::unavailable("the log of events cannot be opened")
                .with("path", path.display())
                .because(e)
        })?;
        *lock(&self.log) = Some(file);
        Ok(())
    }

    /// Adds one to tell.
    pub(crate) fn add(&self, callback: Callback) {
        lock(&self.callbacks).push(callback);
    }

    /// Returns the totals.
    pub(crate) fn stats(&self) -> Stats {
        *lock(&self.stats)
    }

    /// Changes the totals.
    pub(crate) fn count(&self, f: impl FnOnce(&mut Stats)) {
        f(&mut lock(&self.stats));
    }

    /// Tells everybody; a callback that panics is passed over.
    pub(crate) fn tell(&self, unix_ms: u64, event: &Event) {
        self.count(|stats| match event {
            Event::Saved { bytes, took, .. } => {
                stats.saved += 1;
                stats.bytes += bytes;
                stats.saving += *took;
            }
            Event::Skipped { .. } => stats.skipped += 1,
            Event::Failed { action: "save", error, .. } if error.kind() != ErrorKind::Cancelled => {
                stats.failed += 1;
            }
            Event::Deleted { .. } => stats.deleted += 1,
            Event::Failed { .. } | Event::Verified { .. } => {}
        });
        let mut line = event.to_json();
        if matches!(event, Event::Failed { .. }) {
            tracing::warn!(%line, "a step failed");
        } else {
            tracing::info!(%line, "a step");
        }
        if let (Some(file), Value::Object(members)) = (&mut *lock(&self.log), &mut line) {
            members.insert("unix_ms".to_owned(), unix_ms.into());
            if let Err(error) = writeln!(file, "{line}") {
                tracing::warn!(%error, "the log of events cannot be written");
            }
        }
        // Called outside the lock: one may add another, or ask the manager.
        let callbacks = lock(&self.callbacks).clone();
        for callback in &callbacks {
            if catch_unwind(AssertUnwindSafe(|| callback(event))).is_err() {
                tracing::error!("a callback for events panicked");
            }
        }
    }
}
