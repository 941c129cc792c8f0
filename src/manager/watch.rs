//! Waiting for steps that another process saves, and holding them while they are evaluated.

use super::steps::{Run, StepState};
use crate::{
    checkpoint::{Checkpoint, StepLease},
    error::{Error, ErrorKind, Result},
    tasks::wait,
};
use std::time::{Duration, Instant};

/// How a run is watched.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// Only steps above this one are new. Default: every step is.
    pub above: Option<u64>,
    /// How long to wait for the next step. Default: for ever.
    pub timeout: Option<Duration>,
    /// How often the run is listed. Default: every second.
    pub interval: Duration,
    /// Whether a step is leased while it is evaluated, which writes a small mark below `.milepost`. Default: yes.
    pub lease: bool,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self { above: None, timeout: None, interval: Duration::from_secs(1), lease: true }
    }
}

/// A new step; where it is leased, nobody sweeps it until this is dropped.
#[derive(Debug)]
pub struct NewStep {
    /// The number, by its name in the run.
    pub step: u64,
    /// The step.
    pub checkpoint: Checkpoint,
    _lease: Option<StepLease>,
}

/// The new steps of a run as they come, always the newest: those that were passed meanwhile are left out.
#[derive(Debug)]
pub struct NewSteps {
    run: Run,
    options: WatchOptions,
}

impl Iterator for NewSteps {
    type Item = Result<NewStep>;

    /// Waits for the next step; `None` after the timeout.
    fn next(&mut self) -> Option<Self::Item> {
        let found = self.run.wait_for_step(&self.options).transpose()?;
        if let Ok(new) = &found {
            self.options.above = Some(new.step);
        }
        Some(found)
    }
}

impl Run {
    /// Waits until a step above [`WatchOptions::above`] is committed and returns the newest one; `None` after the timeout.
    ///
    /// # Errors
    /// The store's; a run that is not there yet is waited for.
    pub fn wait_for_step(&self, options: &WatchOptions) -> Result<Option<NewStep>> {
        let deadline = options.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if let Some(new) = self.newest_above(options)? {
                return Ok(Some(new));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match left {
                Some(Duration::ZERO) => return Ok(None),
                left => std::thread::sleep(options.interval.min(left.unwrap_or(Duration::MAX))),
            }
        }
    }

    /// Iterates over new steps for an evaluator.
    #[must_use]
    pub fn new_steps(&self, options: WatchOptions) -> NewSteps {
        NewSteps { run: self.clone(), options }
    }

    fn newest_above(&self, options: &WatchOptions) -> Result<Option<NewStep>> {
        let steps = match wait(self.steps_above(options.above)) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            steps => steps?,
        };
        for entry in steps.into_iter().rev() {
            let StepState::Committed(checkpoint) = entry.state else { continue };
            let lease = if options.lease {
                match wait(StepLease::take(self.engine(), self.place(), entry.step)) {
                    Ok(lease) => Some(lease),
                    // It is being deleted: an older one may still be new to us.
                    Err(e) if is_going(&e) => continue,
                    Err(error) => return Err(error),
                }
            } else {
                None
            };
            match wait(Checkpoint::open(self.engine(), checkpoint.place())) {
                Ok(checkpoint) => {
                    return Ok(Some(NewStep { step: entry.step, checkpoint, _lease: lease }));
                }
                Err(e) if is_going(&e) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

fn is_going(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict)
}
