//! The manager: asks the policies, captures the state and hands it to its saver; what is old is swept behind it.
//!
//! ```text
//! save(request) ─► policy ─► room? ─► capture ─► in flight ─► committed ─► plan ─► buried, freed
//!   the loop's thread ──────────────────────────┘ └── saver ────────────┘ └── sweeper ──────┘
//! ```
//!
//! **Invariant:** what the manager lists is committed and not being deleted; a save that fails leaves no trace in it.

use super::{
    names::StepFormats,
    state::{Shared, infos},
    steps::{Run, StepEntry},
};
use crate::{
    checkpoint::{
        Admission, Burial, Call, Checkpoint, Ended, Engine, Job, Persistence, Place, Queue,
        RunOptions, SaveHandle, SaveOptions, SaveOutcome, SaveRequest, Together,
    },
    error::{Error, ErrorKind, Result},
    metrics::{Event, Observers, Stats},
    policy::{Decision, Plan, Preservation, SaveDecision, SkipReason},
    tasks::wait,
};
use serde_json::{Map, Value};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

/// How long a drop waits for threads that have nothing left to do.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// How a [`Manager`] saves, keeps and deletes.
#[derive(Clone, Debug)]
pub struct ManagerOptions {
    /// When to save. Default: every step that is asked for.
    pub decision: SaveDecision,
    /// What to keep. Default: everything.
    pub preservation: Preservation,
    /// How arrays are stored.
    pub save: SaveOptions,
    /// What happens to a save that is due while another is in flight. Default: it waits.
    pub queue: Queue,
    /// How many saves go on at once. Default: 1.
    pub max_in_flight: usize,
    /// A save that takes longer fails. Default: none does.
    pub timeout: Option<Duration>,
    /// How often a save is tried again where the store does not answer or is full. Default: never.
    pub retries: u32,
    /// A run that a step goes to when it cannot be saved here.
    pub backup: Option<Place>,
    /// What becomes of steps that the policy does not keep. Default: they are deleted.
    pub burial: Burial,
    /// Whether the leftovers of dead writers are swept, in the background, when the manager is opened. Default: no.
    pub sweep_at_start: bool,
    /// Whether nothing is ever written or deleted, whatever else is asked. Default: no.
    pub read_only: bool,
    /// The names of the steps of a new run, and further ones that are read. Default: plain numbers.
    pub formats: Option<StepFormats>,
    /// The run's metadata, written when the run is created and never again.
    pub metadata: Map<String, Value>,
    /// A file to which every event is appended as a line of JSON.
    pub log: Option<PathBuf>,
    /// With whom every step is saved; all participants call `save` for the same steps, in the same order, with the same
    /// options. Participant 0 alone creates the run, deletes, sweeps and logs. Default: nobody.
    pub together: Option<Together>,
}

impl ManagerOptions {
    /// Tells whether this manager looks after the run.
    pub(super) fn rules(&self) -> bool {
        self.together.as_ref().is_none_or(Together::is_first)
    }
}

impl Default for ManagerOptions {
    fn default() -> Self {
        Self {
            decision: SaveDecision::Interval(1),
            preservation: Preservation::All,
            save: SaveOptions::default(),
            queue: Queue::Wait,
            max_in_flight: 1,
            timeout: None,
            retries: 0,
            backup: None,
            burial: Burial::Delete,
            sweep_at_start: false,
            read_only: false,
            formats: None,
            metadata: Map::new(),
            log: None,
            together: None,
        }
    }
}

/// Which step is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The newest committed one.
    Latest,
    /// The newest one of which every byte is verified.
    LatestGood,
    /// The best one by the metric of the preservation policy, the latest where there is none.
    Best,
    /// This one.
    Step(u64),
}

/// A step that was opened, and the newer ones that were passed over with what is wrong with them.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The step.
    pub checkpoint: Checkpoint,
    /// Newer steps that are damaged or, for [`Which::LatestGood`], do not verify.
    pub bad: Vec<(u64, Error)>,
}

/// Saves, finds and keeps the steps of a run. Dropping it waits for what is in flight.
#[derive(Debug)]
pub struct Manager {
    shared: Arc<Shared>,
}

impl Manager {
    /// Opens the run at `place`, which its first save creates where it is not there.
    ///
    /// # Errors
    /// `Invalid` for policies that can never have been meant; the store's errors.
    pub fn open(engine: &Arc<Engine>, place: &Place, options: ManagerOptions) -> Result<Self> {
        options.decision.validate()?;
        options.preservation.validate()?;
        let odd = [
            ("read_only", options.read_only),
            ("max_in_flight", options.max_in_flight > 1),
            ("queue", options.queue != Queue::Wait),
            ("retries", options.retries > 0),
            ("backup", options.backup.is_some()),
        ];
        Together::check(options.together.as_ref(), &odd)?;
        let moves = options.burial != Burial::Delete && !options.read_only;
        if moves && !place.store().capabilities().rename {
            return Err(Error::unsupported("the store cannot move steps").with("run", place));
        }
        if options.max_in_flight == 0 {
            return Err(Error::invalid("no save may be in flight").with("max_in_flight", 0));
        }
        let run = wait(Self::found(engine, place, &options))?;
        let observers = Observers::default();
        if let (Some(path), true) = (&options.log, options.rules()) {
            observers.log_to(path)?;
        }
        let manager = Self { shared: Shared::new(engine, run, options, observers)? };
        manager.reload()?;
        let ManagerOptions { sweep_at_start, read_only, .. } = manager.shared.options;
        if sweep_at_start && !read_only && manager.shared.options.rules() {
            manager.shared.in_background(|shared| {
                let run = &shared.run;
                let swept = shared.within(async { run.sweep(&run.leftovers().await?).await });
                if let Err(error) = swept {
                    tracing::warn!(%error, "leftovers could not be swept");
                }
            });
        }
        Ok(manager)
    }

    /// Opens the run, or creates it where it is to have names or metadata of its own.
    async fn found(engine: &Arc<Engine>, place: &Place, options: &ManagerOptions) -> Result<Run> {
        let format = options.formats.as_ref().map(|formats| formats.write.clone());
        let metadata = options.metadata.clone();
        let founds = options.rules() && !options.read_only;
        let run = if !founds || (format.is_none() && metadata.is_empty()) {
            Run::open(engine, place).await
        } else {
            match Run::create(engine, place, &RunOptions { format, metadata }).await {
                // It names its steps otherwise, and that holds: others could not find ours.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => Run::open(engine, place).await,
                run => run,
            }
        }?;
        let Some(StepFormats { write, mut read }) = options.formats.clone() else {
            return Ok(run);
        };
        read.push(write);
        let write = run.formats().write.clone();
        run.with_formats(StepFormats { write, read })
    }

    /// Lists the run again: what other processes saved and deleted meanwhile.
    ///
    /// # Errors
    /// The store's; a run that is not there yet has no steps.
    pub fn reload(&self) -> Result<()> {
        loop {
            let changes = self.shared.lock().changes;
            let steps = match self.shared.run.steps_blocking() {
                Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
                steps => steps?,
            };
            let mut state = self.shared.lock();
            // What was saved or deleted here meanwhile may be missing in that list: once more.
            if state.changes == changes {
                state.steps = steps.into_iter().map(|entry| (entry.step, entry)).collect();
                return Ok(());
            }
        }
    }

    /// Returns the run.
    #[must_use]
    pub fn run(&self) -> &Run {
        &self.shared.run
    }

    /// Returns the steps as last listed, damaged ones too, and what was saved since; never those in flight.
    #[must_use]
    pub fn steps(&self) -> Vec<StepEntry> {
        self.shared.lock().steps.values().cloned().collect()
    }

    /// Returns the newest committed step.
    #[must_use]
    pub fn latest_step(&self) -> Option<u64> {
        self.shared.lock().latest()
    }

    /// Returns the best step by the metric of the preservation policy, the latest where it has none.
    #[must_use]
    pub fn best_step(&self) -> Option<u64> {
        let Some((metric, mode)) = self.shared.options.preservation.metric() else {
            return self.latest_step();
        };
        let infos = infos(&self.shared.lock(), &[]);
        metric.rank(mode, &infos).first().map(|(step, _)| *step)
    }

    /// Tells whether the policy would save `step` now, and why.
    #[must_use]
    pub fn should_save(&self, step: u64) -> Decision {
        let context = self.shared.context(&self.shared.lock(), step);
        match context.outdated() {
            _ if self.shared.options.read_only => {
                Decision { save: false, reason: SkipReason::ReadOnly.to_string() }
            }
            Some(reason) => Decision { save: false, reason: reason.to_string() },
            None => self.shared.options.decision.decide(&context),
        }
    }

    /// Returns what the preservation policy would delete now; nothing is deleted.
    ///
    /// # Errors
    /// The store's, where the pins cannot be read.
    pub fn plan(&self) -> Result<Plan> {
        self.shared.plan()
    }

    /// Saves a step in the background where the policy says so; returns when the state is captured.
    ///
    /// A save that failed and whose handle told nobody is reported by the next call, once; nothing is saved by that
    /// call. The step of a failed save can be saved again.
    ///
    /// # Errors
    /// `AlreadyExists` where the step is there and is not to be overwritten; the failure of an earlier save.
    pub fn save(&self, mut request: SaveRequest<'_>) -> Result<SaveOutcome> {
        let started = self.shared.engine.clock().elapsed();
        let step = request.step;
        let mut call = Call::default();
        let outcome = self.try_save(&mut request, &mut call);
        let blocked = self.shared.engine.clock().elapsed().saturating_sub(started);
        self.shared.observers.count(|stats| stats.blocked += blocked);
        match &outcome {
            Ok(SaveOutcome::Started(_)) => {}
            Ok(SaveOutcome::Skipped(reason)) => self.skipped(step, &call, reason),
            Err(error) => self.decline(step, &call, error.clone()),
        }
        outcome
    }

    fn skipped(&self, step: u64, call: &Call, reason: &SkipReason) {
        self.shared.tell(&Event::Skipped { step, reason: reason.to_string() });
        self.decline(step, call, Error::invalid(reason.to_string()));
    }

    fn decline(&self, step: u64, call: &Call, why: Error) {
        let together = self.shared.options.together.clone();
        self.shared.saver.decline(self.run().writer(step).joined(together), call, why);
    }

    fn try_save(&self, request: &mut SaveRequest<'_>, call: &mut Call) -> Result<SaveOutcome> {
        let (shared, step) = (&self.shared, request.step);
        if shared.options.read_only {
            return Ok(SaveOutcome::Skipped(SkipReason::ReadOnly));
        }
        if let Some(reason) = self.refusal(request, call)? {
            return Ok(SaveOutcome::Skipped(reason));
        }
        let mut writer = shared.writer(request)?;
        let (handle, completion) = SaveHandle::new(Some(step));
        let queue = request.queue.unwrap_or(shared.options.queue);
        let admission = shared.saver.admit(&handle, queue);
        if admission == Admission::Refused {
            return Ok(SaveOutcome::Skipped(SkipReason::Busy));
        }
        let began = shared.engine.clock().elapsed();
        let beyond = admission == Admission::Pending;
        let captured = self
            .check_absent(request)
            .and_then(|()| writer.capture(&request.borrowed, shared.saver.copies(), beyond));
        let service = match captured {
            Ok(service) => service,
            Err(error) => {
                shared.saver.land(&handle);
                return Err(error.with("step", step));
            }
        };
        writer.take_turn();
        shared.lock().begun = Some(began);
        let (retries, backup) = (shared.options.retries, shared.options.backup.clone());
        let again = retries > 0 || backup.is_some();
        let persistence = Persistence { timeout: shared.options.timeout, retries, backup };
        let (told, of) = (Arc::clone(shared), handle.clone());
        let ended = Box::new(move |end: Ended<'_>| told.ended(&of, began, end));
        let job = Job { writer, handle: handle.clone(), completion, persistence, ended };
        shared.saver.dispatch(job);
        request.tell_started(&handle);
        service.serve(again);
        Ok(SaveOutcome::Started(handle))
    }

    /// Says why the policy does not want `step` saved, and tells so; nothing is captured. Where it wants it, a forced
    /// save follows: so the policy is asked once, and no state is gathered in vain.
    ///
    /// # Errors
    /// The failure of an earlier save, as [`Manager::save`].
    pub fn skip(&self, step: u64) -> Result<Option<SkipReason>> {
        let mut call = Call::default();
        let refusal = if self.shared.options.read_only {
            Ok(Some(SkipReason::ReadOnly))
        } else {
            self.refusal(&SaveRequest::new(step), &mut call)
        };
        match &refusal {
            Ok(Some(reason)) => self.skipped(step, &call, reason),
            Ok(None) => {}
            Err(error) => self.decline(step, &call, error.clone()),
        }
        refusal
    }

    /// Says why a request is not followed, where the policy or the order of steps is against it.
    fn refusal(&self, request: &SaveRequest<'_>, call: &mut Call) -> Result<Option<SkipReason>> {
        let (shared, mut state) = (&*self.shared, self.shared.lock());
        let able = if state.closed {
            Err(Error::invalid("the manager is closed").with("step", request.step))
        } else {
            state.report().inspect_err(|_| call.reports = true)
        };
        let mut is_there = state.steps.contains_key(&request.step);
        drop(state);
        is_there |= shared.saver.steps().contains(&request.step);
        let replaces = request.overwrite && is_there;
        let judge = |preempted| shared.refusal((request.step, preempted), replaces);
        let policy = (&shared.options.decision, &*shared.preempted);
        let joint = (shared.options.together.as_ref(), &*shared.engine);
        call.refusal(joint, request, policy, (able, &judge))
    }

    fn check_absent(&self, request: &SaveRequest<'_>) -> Result<()> {
        let state = self.shared.lock();
        if state.closed {
            return Err(Error::invalid("the manager is closed"));
        }
        if request.overwrite || !state.steps.contains_key(&request.step) {
            return Ok(());
        }
        Err(Error::exists("the step exists already")
            .with("step", request.step)
            .with("run", self.shared.run.place())
            .hint("overwrite it on purpose, or save another step"))
    }

    /// Waits until nothing is in flight and nothing is left to delete.
    ///
    /// # Errors
    /// The failure of a save whose handle told nobody, once.
    pub fn wait(&self) -> Result<()> {
        self.shared.saver.wait_idle();
        let mut state = self.shared.lock();
        while state.sweeping > 0 {
            state = self.shared.wait(state);
        }
        state.report()
    }

    /// Waits as [`Manager::wait`] does; every later save is refused.
    ///
    /// # Errors
    /// As [`Manager::wait`].
    pub fn close(&self) -> Result<()> {
        self.shared.lock().closed = true;
        self.wait()
    }

    /// Tells whether a save is in flight or pending.
    #[must_use]
    pub fn is_saving(&self) -> bool {
        !self.shared.saver.steps().is_empty()
    }

    /// Opens a step, after what is in flight has ended; damaged steps are passed over and told. With others, the run is
    /// listed again first: what participant 0 has deleted is not there.
    ///
    /// # Errors
    /// `NotFound` where no step is left, with what is wrong with the others.
    pub fn restore(&self, which: Which) -> Result<Opened> {
        let shared = &self.shared;
        shared.saver.wait_idle();
        if !shared.options.rules() {
            self.reload()?;
        }
        let wanted = match which {
            Which::Step(step) => Some(step),
            Which::Best => self.best_step(),
            Which::Latest | Which::LatestGood => None,
        };
        if let Some(step) = wanted {
            return Ok(Opened { checkpoint: wait(shared.run.step(step))?, bad: Vec::new() });
        }
        let mut bad = Vec::new();
        for entry in self.steps().into_iter().rev() {
            match shared.check(&entry, which == Which::LatestGood) {
                Ok(checkpoint) => return Ok(Opened { checkpoint, bad }),
                // Not bad, but unknown: an older step would be restored for no reason.
                Err(e) if e.kind() == ErrorKind::Unavailable => return Err(e),
                Err(error) => bad.push((entry.step, error)),
            }
        }
        let mut error =
            Error::not_found("the run has no step to restore").with("run", shared.run.place());
        if let Some((step, why)) = bad.into_iter().next() {
            error = error.with("step", step).because(why);
        }
        Err(error)
    }

    /// Deletes a step on purpose, pinned or not in use by a reader only; its bytes are freed in the background.
    ///
    /// # Errors
    /// `NotFound` where it is not there, `Conflict` where it is pinned or leased, `Invalid` where the manager is read-only or one
    /// of participants after the first.
    pub fn delete(&self, step: u64) -> Result<()> {
        if self.shared.options.read_only || !self.shared.options.rules() {
            return Err(Error::invalid("the manager deletes nothing").with("step", step));
        }
        let grave = self.shared.bury(step)?;
        self.shared.in_background(move |shared| {
            if let Err(error) = shared.within(grave.free()) {
                tracing::warn!(step, %error, "a deleted step is left to the sweep");
            }
        });
        Ok(())
    }

    /// Calls `callback` with every event, on the thread where it happens: it must not wait for this manager.
    pub fn on_event(&self, callback: impl Fn(&Event) + Send + Sync + 'static) {
        self.shared.observers.add(Arc::new(callback));
    }

    /// Returns the totals since the manager was opened.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let budget_high_water = self.shared.engine.budget().high_water();
        Stats { budget_high_water, ..self.shared.observers.stats() }
    }

    /// Returns the flag that tells [`SaveDecision::Preemption`] to save; whoever learns of a preemption sets it.
    #[must_use]
    pub fn preemption(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.shared.preempted)
    }

    /// Sets the preemption flag on SIGTERM from now on; handlers that were there are called as before.
    ///
    /// The signal does not end the process any more, as long as it runs: the loop has to.
    ///
    /// # Errors
    /// `Unavailable` where the system refuses the handler.
    pub fn watch_sigterm(&self) -> Result<()> {
        signal_hook::flag::register(signal_hook::consts::SIGTERM, self.preemption())
            .map(|_| ())
            .map_err(|e| Error::unavailable("SIGTERM cannot be watched").because(e))
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "a save failed and nobody asked");
        }
        // The last jobs let go just after they have told of their end; then the threads are joined here.
        let deadline = Instant::now() + FAREWELL_MAX;
        while (Arc::strong_count(&self.shared) > 1 || self.shared.saver.is_shared())
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
