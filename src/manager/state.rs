//! What a manager and its threads share: the listed steps, the policies, and whoever is told.

use super::{
    manager::ManagerOptions,
    steps::{Run, StepEntry, StepState},
};
use crate::{
    checkpoint::{
        Checkpoint, CheckpointWriter, Ended, Engine, Grave, SaveHandle, SaveRequest, Saved, Saver,
        bury, pins,
    },
    error::{Error, ErrorKind, Result},
    metrics::{Event, Observers},
    policy::{Plan, Preservation, SaveContext, SkipReason, StepInfo},
    tasks::{Pool, Priority, wait, wait_until},
};
use std::{
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

#[derive(Default)]
pub(super) struct State {
    pub(super) steps: BTreeMap<u64, StepEntry>,
    /// How often a save or a deletion of ours changed them.
    pub(super) changes: u64,
    pub(super) sweeping: usize,
    pub(super) closed: bool,
    pub(super) begun: Option<Duration>,
    committed: Option<Duration>,
    /// How saves failed, until somebody is told.
    failures: Vec<(SaveHandle, Error)>,
}

impl State {
    pub(super) fn latest(&self) -> Option<u64> {
        self.steps.values().rev().find(|entry| entry.is_committed()).map(|entry| entry.step)
    }

    /// Tells of a failed save that nobody was told of, once: the oldest.
    pub(super) fn report(&mut self) -> Result<()> {
        self.failures.retain(|(handle, _)| !handle.was_told());
        if self.failures.is_empty() { Ok(()) } else { Err(self.failures.remove(0).1) }
    }
}

pub(super) struct Shared {
    pub(super) engine: Arc<Engine>,
    pub(super) run: Run,
    pub(super) options: ManagerOptions,
    pub(super) observers: Observers,
    pub(super) saver: Saver,
    pub(super) preempted: Arc<AtomicBool>,
    state: Mutex<State>,
    changed: Condvar,
    sweeper: Pool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.run.place(), self.observers)
    }
}

impl Shared {
    pub(super) fn new(
        engine: &Arc<Engine>,
        run: Run,
        options: ManagerOptions,
        observers: Observers,
    ) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            engine: Arc::clone(engine),
            run,
            observers,
            state: Mutex::default(),
            changed: Condvar::new(),
            preempted: Arc::default(),
            saver: Saver::new(options.max_in_flight)?,
            sweeper: Pool::new("milepost-sweep", 1)?,
            options,
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tell(&self, event: &Event) {
        self.observers.tell(self.engine.clock().unix_ms(), event);
    }

    pub(super) fn context(&self, state: &State, step: u64) -> SaveContext {
        let now = self.engine.clock().elapsed();
        let saving = self.saver.steps();
        SaveContext {
            step,
            latest: saving.iter().copied().chain(state.latest()).max(),
            steps: state.steps.values().filter(|entry| entry.is_committed()).count(),
            in_flight: saving.len(),
            since_begun: state.begun.map(|then| now.saturating_sub(then)),
            since_committed: state.committed.map(|then| now.saturating_sub(then)),
            preempted: self.preempted.load(Relaxed),
        }
    }

    /// Says why a step is not saved, if so.
    pub(super) fn refusal(
        &self,
        (step, preempted): (u64, bool),
        replaces: bool,
    ) -> Option<SkipReason> {
        let context = SaveContext { preempted, ..self.context(&self.lock(), step) };
        if let Some(reason) = context.outdated().filter(|_| !replaces) {
            return Some(reason);
        }
        let decision = self.options.decision.decide(&context);
        (!decision.save).then_some(SkipReason::Policy(decision.reason))
    }

    /// Returns what writes a request, with everything but what is borrowed.
    pub(super) fn writer(&self, request: &mut SaveRequest<'_>) -> Result<CheckpointWriter> {
        let writer = self.run.writer(request.step).joined(self.options.together.clone());
        request.write(writer, &self.options.save)
    }

    /// Lists a save that ended well, remembers one that did not, and has the old steps swept.
    pub(super) fn ended(self: &Arc<Self>, handle: &SaveHandle, began: Duration, end: Ended<'_>) {
        let step = handle.step().unwrap_or_default();
        self.observers.count(|stats| stats.retries += u64::from(end.retries));
        if let Some(error) = end.lost_here {
            tracing::warn!(step, %error, "the step goes to the backup run");
        }
        match end.saved {
            Ok(saved) => {
                self.list(step, saved);
                let took = self.engine.clock().elapsed().saturating_sub(began);
                let (place, bytes) = (saved.place.to_string(), saved.stored_bytes);
                self.tell(&Event::Saved { step, place, bytes, took });
                if self.options.rules() && !matches!(self.options.preservation, Preservation::All) {
                    self.in_background(|shared| shared.retain());
                }
            }
            Err(_) if end.is_replaced => {
                let reason = SkipReason::Replaced.to_string();
                self.tell(&Event::Skipped { step, reason });
            }
            Err(error) => {
                if error.kind() != ErrorKind::Cancelled {
                    self.lock().failures.push((handle.clone(), error.clone()));
                }
                self.tell(&Event::Failed { step, action: "save", error: error.clone() });
            }
        }
    }

    fn list(&self, step: u64, saved: &Saved) {
        let mut state = self.lock();
        state.committed = Some(self.engine.clock().elapsed());
        let place = saved.place.clone();
        let (parent, run) = (place.parent(), self.run.place());
        // The backup run is another one, though two stores in memory have one URL.
        if Arc::ptr_eq(parent.store(), run.store()) && parent.prefix() == run.prefix() {
            let committed = StepState::Committed(Box::new(Checkpoint::of(&self.engine, saved)));
            state.steps.insert(step, StepEntry { step, place, state: committed });
            state.changes += 1;
        }
    }

    /// Runs `job` on the sweeper; [`super::Manager::wait`] waits for it.
    pub(super) fn in_background(self: &Arc<Self>, job: impl FnOnce(&Arc<Self>) + Send + 'static) {
        self.lock().sweeping += 1;
        let shared = Arc::clone(self);
        self.sweeper.launch(Priority::Sweep, move || {
            if catch_unwind(AssertUnwindSafe(|| job(&shared))).is_err() {
                tracing::error!("sweeping panicked");
            }
            shared.lock().sweeping -= 1;
            shared.changed.notify_all();
        });
    }

    /// Waits as long as a save may take.
    pub(super) fn within<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let timeout = self.options.timeout;
        wait_until(work, timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
            .unwrap_or_else(|| Err(Error::new(ErrorKind::Timeout, "the store took too long")))
    }

    /// Plans what to delete, by what is there now: others save and delete too. Pinned steps stay.
    pub(super) fn plan(&self) -> Result<Plan> {
        let (known, changes) = {
            let state = self.lock();
            (state.steps.clone(), state.changes)
        };
        let fresh = self.within(self.run.refresh(&known))?;
        {
            let mut state = self.lock();
            if state.changes == changes {
                state.steps = fresh;
            }
        }
        let pins = self.within(pins(self.run.place()))?;
        let pinned: Vec<u64> = pins.into_iter().map(|pin| pin.step).collect();
        let infos = infos(&self.lock(), &pinned);
        Ok(self.options.preservation.plan(&infos))
    }

    /// Buries and frees what the policy does not keep; what is in use stays until the next time.
    fn retain(&self) {
        let plan = self.plan().unwrap_or_else(|error| {
            tracing::warn!(%error, "nothing is deleted: steps or pins cannot be listed");
            Plan::default()
        });
        for step in plan.delete {
            let freed = self.bury(step).and_then(|grave| self.within(grave.free()));
            match freed {
                Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {
                    tracing::debug!(step, error = %e, "a step in use is kept for now, or gone");
                }
                Err(error) => self.tell(&Event::Failed { step, action: "delete", error }),
                Ok(_) => {}
            }
        }
    }

    /// Makes a step invisible; one that is gone already is no longer listed.
    pub(super) fn bury(&self, step: u64) -> Result<Grave> {
        let entry = self.lock().steps.get(&step).cloned();
        let entry = entry.ok_or_else(|| {
            Error::not_found("no such step").with("step", step).with("run", self.run.place())
        })?;
        let doomed = self.run.doomed(&entry, false);
        let buried = self.within(bury(&self.engine, &doomed, &self.options.burial));
        let is_gone = buried.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound);
        if buried.is_ok() || is_gone {
            let mut state = self.lock();
            if state.steps.get(&step).is_some_and(|now| now.is_same(&entry)) {
                state.steps.remove(&step);
                state.changes += 1;
            }
        }
        let grave = buried?;
        self.tell(&Event::Deleted { step });
        Ok(grave)
    }

    /// Opens a listed step, and verifies all of it where that is asked for.
    pub(super) fn check(&self, entry: &StepEntry, verify: bool) -> Result<Checkpoint> {
        let step = entry.step;
        let checkpoint = match &entry.state {
            StepState::Committed(checkpoint) => (**checkpoint).clone(),
            StepState::Damaged(why) => return Err(Error::corrupt(why).with("step", step)),
        };
        if !verify {
            return Ok(checkpoint);
        }
        let verified = wait(checkpoint.verify()).and_then(|report| report.into_result(&checkpoint));
        match verified {
            Ok(()) => self.tell(&Event::Verified { step }),
            Err(error) => {
                self.tell(&Event::Failed { step, action: "verify", error: error.clone() });
                return Err(error);
            }
        }
        Ok(checkpoint)
    }
}

/// Returns what policies may know about the listed steps.
pub(super) fn infos(state: &State, pinned: &[u64]) -> Vec<StepInfo> {
    let info = |entry: &StepEntry| {
        let pinned = pinned.contains(&entry.step);
        let mut info = StepInfo { step: entry.step, pinned, ..StepInfo::default() };
        match &entry.state {
            StepState::Committed(checkpoint) => {
                info.committed_ms = checkpoint.record().committed_ms;
                info.metrics.clone_from(&checkpoint.record().metrics);
            }
            StepState::Damaged(_) => info.damaged = true,
        }
        info
    };
    state.steps.values().map(info).collect()
}
