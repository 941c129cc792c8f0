//! The handle of a save in the background: its end, its progress, and the way to stop it.

use super::writer::Saved;
use crate::{
    error::{Error, ErrorKind, Result},
    io::{Progress, ProgressSnapshot},
    tasks::Cancel,
};
use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
    time::{Duration, Instant},
};

type Outcome = Result<Arc<Saved>>;

#[derive(Default)]
struct State {
    outcome: Option<Outcome>,
    listeners: Vec<Waker>,
}

struct Shared {
    step: Option<u64>,
    progress: Progress,
    cancel: Cancel,
    state: Mutex<State>,
    ended: Condvar,
    /// Whether somebody was told how it ended.
    told: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, outcome: Outcome) {
        let listeners = {
            let mut state = self.lock();
            state.outcome.get_or_insert(outcome);
            std::mem::take(&mut state.listeners)
        };
        self.ended.notify_all();
        listeners.into_iter().for_each(Waker::wake);
    }
}

/// A save on its way. Clones are the same save; dropping them does not cancel it.
#[derive(Clone)]
pub struct SaveHandle(Arc<Shared>);

impl fmt::Debug for SaveHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = self.0.lock().outcome.clone();
        f.debug_struct("SaveHandle").field("step", &self.0.step).field("outcome", &outcome).finish()
    }
}

/// The other end of a [`SaveHandle`]: whoever saves says how it ended.
pub(crate) struct Completion(Arc<Shared>);

impl Completion {
    /// Ends the save; the first end counts.
    pub(crate) fn complete(self, outcome: Result<Saved>) {
        self.0.end(outcome.map(Arc::new));
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if self.0.lock().outcome.is_none() {
            self.0.end(Err(Error::cancelled("the save was given up before it ended")));
        }
    }
}

impl SaveHandle {
    pub(crate) fn new(step: Option<u64>) -> (Self, Completion) {
        let shared = Arc::new(Shared {
            step,
            progress: Progress::default(),
            cancel: Cancel::default(),
            state: Mutex::default(),
            ended: Condvar::new(),
            told: AtomicBool::new(false),
        });
        (Self(Arc::clone(&shared)), Completion(shared))
    }

    /// Tells whether the other one is of the same save.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn progress_handle(&self) -> Progress {
        self.0.progress.clone()
    }

    pub(crate) fn canceller(&self) -> Cancel {
        self.0.cancel.clone()
    }

    /// Tells whether a waiter was given the outcome.
    pub(crate) fn was_told(&self) -> bool {
        self.0.told.load(Ordering::Relaxed)
    }

    /// Returns the step, where it is one.
    #[must_use]
    pub fn step(&self) -> Option<u64> {
        self.0.step
    }

    /// Tells whether it has ended, well or badly.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.lock().outcome.is_some()
    }

    /// Returns the counters as they stand.
    #[must_use]
    pub fn progress(&self) -> ProgressSnapshot {
        self.0.progress.snapshot()
    }

    /// Asks the save to stop: nothing becomes visible and what was written is swept, unless it is being published
    /// already. How it ended, the outcome tells.
    pub fn cancel(&self) {
        self.0.cancel.cancel();
    }

    /// Waits until the save has ended; every call returns the same outcome.
    ///
    /// # Errors
    /// Those of the save; `Cancelled` after [`SaveHandle::cancel`].
    pub fn wait(&self) -> Result<Arc<Saved>> {
        let mut state = self.0.lock();
        loop {
            if let Some(outcome) = self.told(&state) {
                return outcome;
            }
            state = self.0.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits as [`SaveHandle::wait`] does, but not longer than `timeout`; the save goes on then.
    ///
    /// # Errors
    /// `Timeout` where it has not ended by then; those of the save.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Arc<Saved>> {
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.0.lock();
        loop {
            if let Some(outcome) = self.told(&state) {
                return outcome;
            }
            let Some(deadline) = deadline else {
                drop(state);
                return self.wait();
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let error = Error::new(ErrorKind::Timeout, "the save has not ended yet")
                    .hint("wait again; the save goes on");
                return Err(match self.0.step {
                    Some(step) => error.with("step", step),
                    None => error,
                });
            }
            let (guard, _) =
                self.0.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            state = guard;
        }
    }

    /// Resolves when the save has ended, on any executor; as [`SaveHandle::wait`].
    ///
    /// # Errors
    /// As [`SaveHandle::wait`].
    ///
    /// # Cancel safety
    /// Dropping the future does not cancel the save.
    pub async fn finished(&self) -> Result<Arc<Saved>> {
        std::future::poll_fn(|context| {
            let mut state = self.0.lock();
            if let Some(outcome) = self.told(&state) {
                return Poll::Ready(outcome);
            }
            if !state.listeners.iter().any(|waker| waker.will_wake(context.waker())) {
                state.listeners.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn told(&self, state: &State) -> Option<Outcome> {
        let outcome = state.outcome.clone()?;
        self.0.told.store(true, Ordering::Relaxed);
        Some(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;

    #[test]
    fn the_outcome_stays_and_every_waiter_gets_it() {
        let (handle, completion) = SaveHandle::new(Some(7));
        let error = handle.wait_timeout(Duration::ZERO).unwrap_err();
        assert_eq!((error.kind(), error.get("step")), (ErrorKind::Timeout, Some("7")));
        assert!(!handle.is_done() && !handle.was_told());
        completion.complete(Err(Error::corrupt("bad")));
        for _ in 0..2 {
            assert_eq!(handle.wait().unwrap_err().kind(), ErrorKind::Corrupt);
            assert_eq!(block_on(handle.clone().finished()).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        assert!(handle.was_told());
    }

    #[test]
    fn a_save_that_nobody_ends_is_cancelled_and_not_waited_for_in_vain() {
        let (handle, completion) = SaveHandle::new(None);
        drop(completion);
        assert_eq!(handle.wait().unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
