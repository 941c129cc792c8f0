//! The manager of a run.

use crate::{
    checkpoint::Checkpoint,
    engine::Place,
    errors::raise,
    json::{to_dict, to_members, to_python},
    options::{SaveOptions, priority, unknown},
    policy::{Plan, Preservation, Raised, SaveDecision},
    save::{Payload, SaveHandle, captured, seconds},
    together::Together,
    wait::{Owned, attached, block, call, detached},
};
use milepost::{
    Burial, ManagerOptions, Queue, SaveOutcome, SaveRequest, StepEntry, StepFormat, StepFormats,
    StepLease, StepState, WatchOptions, Which,
};
use pyo3::{
    prelude::*,
    types::{PyDict, PyList},
};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

/// Saves, finds and keeps the steps of a run.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct Manager {
    inner: Owned<Arc<milepost::Manager>>,
    raised: Raised,
    kept: Raised,
}

/// Keeps a step from being deleted, until it is dropped.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct Lease(#[expect(dead_code, reason = "it is held, nothing else")] Owned<StepLease>);

fn queue(word: &str) -> PyResult<Queue> {
    match word {
        "wait" => Ok(Queue::Wait),
        "skip" => Ok(Queue::Skip),
        "replace_pending" => Ok(Queue::ReplacePending),
        _ => Err(unknown("queue", word, "\"wait\", \"skip\" or \"replace_pending\"")),
    }
}

fn formats(write: Option<(String, usize)>, read: Vec<(String, usize)>) -> Option<StepFormats> {
    let format = |(prefix, width)| StepFormat { prefix, width };
    if write.is_none() && read.is_empty() {
        return None;
    }
    let write = write.map(format).unwrap_or_default();
    Some(StepFormats { write, read: read.into_iter().map(format).collect() })
}

fn entry_dict<'py>(py: Python<'py>, entry: &StepEntry) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("step", entry.step)?;
    dict.set_item("url", entry.place.to_string())?;
    match &entry.state {
        StepState::Committed(checkpoint) => {
            let record = checkpoint.record();
            dict.set_item("damaged", false)?;
            dict.set_item("error", py.None())?;
            dict.set_item("committed_ms", record.committed_ms)?;
            dict.set_item("metrics", to_dict(py, &record.metrics)?)?;
            dict.set_item("metadata", to_dict(py, &record.metadata)?)?;
        }
        StepState::Damaged(error) => {
            dict.set_item("damaged", true)?;
            dict.set_item("error", error)?;
            dict.set_item("committed_ms", 0)?;
            dict.set_item("metrics", PyDict::new(py))?;
            dict.set_item("metadata", PyDict::new(py))?;
        }
    }
    Ok(dict)
}

impl Manager {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        ask: impl FnOnce(&milepost::Manager) -> T + Send,
    ) -> PyResult<T> {
        let manager = self.inner.get()?;
        Ok(detached(py, || ask(manager)))
    }

    /// Runs what may wait long on a thread of its own, so that Ctrl-C is heard.
    fn call<T: Send + 'static>(
        &self,
        py: Python<'_>,
        ask: impl FnOnce(&milepost::Manager) -> milepost::Result<T> + Send + 'static,
    ) -> PyResult<T> {
        let manager = Arc::clone(self.inner.get()?);
        call(py, move || ask(&manager))?.map_err(|e| raise(&e))
    }
}

#[pymethods]
impl Manager {
    #[new]
    #[pyo3(signature = (run, options, *, decision=None, preservation=None, queue="wait", max_in_flight=1,
        timeout=None, retries=0, backup=None, trash=None, sweep_at_start=false, read_only=false, write_format=None,
        read_formats=Vec::new(), metadata=None, log=None, together=None))]
    #[expect(clippy::too_many_arguments, reason = "the options of a manager")]
    fn new(
        py: Python<'_>,
        run: &Place,
        options: &SaveOptions,
        decision: Option<&SaveDecision>,
        preservation: Option<&Preservation>,
        queue: &str,
        max_in_flight: usize,
        timeout: Option<f64>,
        retries: u32,
        backup: Option<&Place>,
        trash: Option<String>,
        sweep_at_start: bool,
        read_only: bool,
        write_format: Option<(String, usize)>,
        read_formats: Vec<(String, usize)>,
        metadata: Option<&Bound<'_, PyDict>>,
        log: Option<PathBuf>,
        together: Option<&Together>,
    ) -> PyResult<Self> {
        let (engine, place) = run.get()?;
        let default = ManagerOptions::default();
        let options = ManagerOptions {
            decision: decision.map_or(default.decision, |d| d.policy.clone()),
            preservation: preservation.map_or(default.preservation, |p| p.policy.clone()),
            save: options.get(),
            queue: self::queue(queue)?,
            max_in_flight,
            timeout: timeout.map(seconds).transpose()?,
            retries,
            backup: backup.map(|place| place.get().map(|(_, place)| place)).transpose()?,
            burial: trash.map_or(Burial::Delete, Burial::MoveTo),
            sweep_at_start,
            read_only,
            formats: formats(write_format, read_formats),
            metadata: to_members(metadata, "metadata")?,
            log,
            together: together.map(|together| together.with_deadline(timeout)).transpose()?,
        };
        let raised = decision.map(|d| d.raised.clone()).unwrap_or_default();
        let kept = preservation.map(|p| p.raised.clone()).unwrap_or_default();
        let manager = call(py, move || milepost::Manager::open(&engine, &place, options))?;
        let inner = Owned::new(Arc::new(manager.map_err(|e| raise(&e))?));
        Ok(Self { inner, raised, kept })
    }

    /// Saves a step where the policy says so: a handle, or why it was skipped.
    #[pyo3(signature = (step, payload, *, options=None, force=false, overwrite=false, priority="background", queue=None))]
    #[expect(clippy::too_many_arguments, reason = "the options of one save")]
    fn save(
        &self,
        py: Python<'_>,
        step: u64,
        payload: &Bound<'_, PyDict>,
        options: Option<&SaveOptions>,
        force: bool,
        overwrite: bool,
        priority: &str,
        queue: Option<&str>,
    ) -> PyResult<(Option<SaveHandle>, Option<String>)> {
        let manager = Arc::clone(self.inner.get()?);
        let payload = Payload::new(payload)?;
        let priority = self::priority(priority)?;
        let queue = queue.map(self::queue).transpose()?;
        let options = options.map(SaveOptions::get);
        let outcome = captured(py, move |begun| -> milepost::Result<SaveOutcome> {
            let mut borrowed = milepost::Borrowed::new();
            let mut request = SaveRequest::new(step).priority(priority).metadata(payload.metadata);
            for (name, item) in &payload.items {
                let made = item.item(&mut borrowed).map_err(|e| e.with("item", name))?;
                request = request.item(name, made);
            }
            for (name, handler) in payload.handlers {
                request = request.item_handler(name, handler);
            }
            for (name, value) in payload.item_metadata {
                request = request.item_metadata(name, value);
            }
            for (name, value) in payload.metrics {
                request = request.metric(name, value);
            }
            request = if force { request.force() } else { request };
            request = if overwrite { request.overwrite() } else { request };
            request = queue.into_iter().fold(request, SaveRequest::queue);
            request = options.into_iter().fold(request, SaveRequest::options);
            let begun = begun.clone();
            request = request.on_start(move |handle| begun.is(handle));
            manager.save(request.borrowing(borrowed))
        })?;
        self.raised.check()?;
        Ok(match outcome.map_err(|e| raise(&e))? {
            SaveOutcome::Started(handle) => (Some(SaveHandle::new(handle)), None),
            SaveOutcome::Skipped(reason) => (None, Some(reason.to_string())),
        })
    }

    /// Why the policy does not want a step saved, which is told; `None` where it does.
    fn skip(&self, py: Python<'_>, step: u64) -> PyResult<Option<String>> {
        let skipped = self.with(py, |manager| manager.skip(step))?;
        self.raised.check()?;
        let skipped = skipped.map_err(|e| raise(&e))?;
        Ok(skipped.map(|reason| reason.to_string()))
    }

    /// Opens a step, after what is in flight has ended; and which newer ones were bad, and why.
    fn open(
        &self,
        py: Python<'_>,
        which: &Bound<'_, PyAny>,
    ) -> PyResult<(Checkpoint, Vec<(u64, String)>)> {
        let which = match which.extract::<u64>() {
            Ok(step) => Which::Step(step),
            Err(_) => match which.extract::<String>()?.as_str() {
                "latest" => Which::Latest,
                "latest_good" => Which::LatestGood,
                "best" => Which::Best,
                word => {
                    return Err(unknown(
                        "step",
                        word,
                        "a number, \"latest\", \"latest_good\" or \"best\"",
                    ));
                }
            },
        };
        let opened = self.call(py, move |manager| manager.restore(which))?;
        let bad = opened.bad.into_iter().map(|(step, error)| (step, error.to_string())).collect();
        Ok((Checkpoint::new(opened.checkpoint), bad))
    }

    /// The steps as last listed, damaged ones too.
    fn entries<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let entries = self.with(py, milepost::Manager::steps)?;
        let entries = entries.iter().map(|entry| entry_dict(py, entry));
        PyList::new(py, entries.collect::<PyResult<Vec<_>>>()?)
    }

    /// The numbers of the committed steps, in order.
    fn steps(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        self.with(py, |manager| {
            let steps = manager.steps().into_iter();
            steps.filter(|e| matches!(e.state, StepState::Committed(_))).map(|e| e.step).collect()
        })
    }

    /// The newest committed step.
    fn latest_step(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        self.with(py, milepost::Manager::latest_step)
    }

    /// The best step by the metric of the preservation policy, the latest where it has none.
    fn best_step(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        let best = self.with(py, milepost::Manager::best_step)?;
        self.kept.check()?;
        Ok(best)
    }

    /// Whether the policy would save a step now, and why.
    fn should_save(&self, py: Python<'_>, step: u64) -> PyResult<(bool, String)> {
        let decision = self.with(py, |manager| manager.should_save(step))?;
        self.raised.check()?;
        Ok((decision.save, decision.reason))
    }

    /// What the preservation policy would keep and delete now.
    fn plan(&self, py: Python<'_>) -> PyResult<Plan> {
        let plan = self.call(py, milepost::Manager::plan)?;
        self.kept.check()?;
        Ok((plan.keep, plan.delete))
    }

    /// Lists the run again.
    fn reload(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, milepost::Manager::reload)
    }

    /// Waits until nothing is in flight and nothing is left to delete.
    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, milepost::Manager::wait)?;
        self.kept.check()
    }

    /// Waits, and refuses every later save.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, milepost::Manager::close)?;
        self.kept.check()
    }

    /// Whether a save is in flight or pending.
    fn is_saving(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, milepost::Manager::is_saving)
    }

    /// Deletes a step on purpose.
    fn delete(&self, py: Python<'_>, step: u64) -> PyResult<()> {
        self.call(py, move |manager| manager.delete(step))
    }

    /// Keeps a step from ever being deleted.
    fn pin(&self, py: Python<'_>, step: u64, why: String) -> PyResult<()> {
        let run = self.inner.get()?.run().clone();
        block(py, async move { run.pin(step, &why).await })
    }

    /// Takes a pin back; tells whether there was one.
    fn unpin(&self, py: Python<'_>, step: u64) -> PyResult<bool> {
        let run = self.inner.get()?.run().clone();
        block(py, async move { run.unpin(step).await })
    }

    /// The pins: step, reason, Unix milliseconds.
    fn pins(&self, py: Python<'_>) -> PyResult<Vec<(u64, String, u64)>> {
        let run = self.inner.get()?.run().clone();
        let pins = block(py, async move { run.pins().await })?;
        Ok(pins.into_iter().map(|pin| (pin.step, pin.why, pin.since_ms)).collect())
    }

    /// Keeps a step from being deleted as long as the lease lives.
    fn lease(&self, py: Python<'_>, step: u64) -> PyResult<Lease> {
        let run = self.inner.get()?.run().clone();
        Ok(Lease(Owned::new(block(py, async move { run.lease(step).await })?)))
    }

    /// Waits for a step above one; `None` after the timeout. Seconds.
    #[pyo3(signature = (above=None, timeout=None, interval=1.0))]
    fn wait_for_step(
        &self,
        py: Python<'_>,
        above: Option<u64>,
        timeout: Option<f64>,
        interval: f64,
    ) -> PyResult<Option<(u64, Checkpoint)>> {
        let timeout = timeout.map(seconds).transpose()?;
        let interval = seconds(interval)?;
        let options = WatchOptions { above, timeout, interval, lease: false };
        let new = self.call(py, move |manager| manager.run().wait_for_step(&options))?;
        Ok(new.map(|new| (new.step, Checkpoint::new(new.checkpoint))))
    }

    /// Calls `callback` with every event as a dict, on the thread where it happens.
    fn on_event(&self, py: Python<'_>, callback: Py<PyAny>) -> PyResult<()> {
        self.with(py, |manager| {
            manager.on_event(move |event| {
                attached(|py| {
                    let told = to_python(py, &event.to_json())
                        .and_then(|event| callback.bind(py).call1((event,)));
                    if let Err(error) = told {
                        error.write_unraisable(py, Some(callback.bind(py)));
                    }
                });
            });
        })
    }

    /// The totals since the manager was opened; times in seconds.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.with(py, milepost::Manager::stats)?;
        let dict = PyDict::new(py);
        dict.set_item("saved", stats.saved)?;
        dict.set_item("skipped", stats.skipped)?;
        dict.set_item("failed", stats.failed)?;
        dict.set_item("deleted", stats.deleted)?;
        dict.set_item("retries", stats.retries)?;
        dict.set_item("blocked_seconds", stats.blocked.as_secs_f64())?;
        dict.set_item("saving_seconds", stats.saving.as_secs_f64())?;
        dict.set_item("bytes", stats.bytes)?;
        dict.set_item("gigabytes_per_second", stats.gigabytes_per_second())?;
        dict.set_item("budget_high_water", stats.budget_high_water)?;
        Ok(dict)
    }

    /// Sets or clears the preemption flag.
    fn preempt(&self, on: bool) -> PyResult<()> {
        self.inner.get()?.preemption().store(on, Ordering::SeqCst);
        Ok(())
    }

    /// Whether preemption was signalled.
    fn preempted(&self) -> PyResult<bool> {
        Ok(self.inner.get()?.preemption().load(Ordering::SeqCst))
    }

    /// The run's metadata.
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        to_dict(py, self.inner.get()?.run().metadata())
    }

    /// How new steps are named: prefix and width.
    fn write_format(&self) -> PyResult<(String, usize)> {
        let format = self.inner.get()?.run().formats().write.clone();
        Ok((format.prefix, format.width))
    }
}
