//! Saves on their way: starting one that stands alone, and the handle of any.

use crate::{
    engine::Place,
    errors::{exception, raise},
    json::{to_dict, to_members, to_value},
    leaf::{Item, ItemData},
    options::{SaveOptions, priority},
    together::Together,
    wait::{Owned, call, detached},
};
use milepost::{Borrowed, CheckpointWriter, ProgressSnapshot, Saved, formats::record::Record};
use pyo3::{
    prelude::*,
    types::{PyDict, PyList},
};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What is saved: the items and what is said of them and of the checkpoint.
pub(crate) struct Payload {
    pub(crate) items: Vec<(String, ItemData)>,
    pub(crate) handlers: BTreeMap<String, String>,
    pub(crate) item_metadata: Vec<(String, Value)>,
    pub(crate) metadata: Map<String, Value>,
    pub(crate) metrics: BTreeMap<String, f64>,
}

impl Payload {
    /// Reads a payload: `{"items", "handlers", "item_metadata", "metadata", "metrics"}`, all but the items optional.
    pub(crate) fn new(payload: &Bound<'_, PyDict>) -> PyResult<Self> {
        let part = |name: &str| -> PyResult<Option<Bound<'_, PyDict>>> {
            match payload.get_item(name)?.filter(|part| !part.is_none()) {
                Some(part) => Ok(Some(part.cast_into::<PyDict>()?)),
                None => Ok(None),
            }
        };
        let mut items = Vec::new();
        for (name, item) in part("items")?.iter().flatten() {
            items.push((name.extract()?, item.cast::<Item>()?.get().data()));
        }
        let mut item_metadata = Vec::new();
        for (name, value) in part("item_metadata")?.iter().flatten() {
            let name: String = name.extract()?;
            let value = to_value(&value, &format!("item_metadata[{name:?}]"))?;
            item_metadata.push((name, value));
        }
        let extract = |part: Option<Bound<'_, PyDict>>| match part {
            Some(part) => part.extract(),
            None => Ok(BTreeMap::new()),
        };
        let metrics = match part("metrics")? {
            Some(part) => part.extract()?,
            None => BTreeMap::new(),
        };
        Ok(Self {
            items,
            handlers: extract(part("handlers")?)?,
            item_metadata,
            metadata: to_members(part("metadata")?.as_ref(), "metadata")?,
            metrics,
        })
    }
}

/// Starts a save that stands alone; returns when the state is captured.
#[pyfunction]
#[pyo3(signature = (place, payload, options, priority="foreground", together=None))]
pub(crate) fn start(
    py: Python<'_>,
    place: &Place,
    payload: &Bound<'_, PyDict>,
    options: &SaveOptions,
    priority: &str,
    together: Option<&Together>,
) -> PyResult<SaveHandle> {
    let (engine, place) = place.get()?;
    let together = together.map(Together::get).transpose()?;
    let payload = Payload::new(payload)?;
    let priority = self::priority(priority)?;
    let options = options.get();
    let start = move |begun: &Begun| {
        let mut borrowed = Borrowed::new();
        let writer = CheckpointWriter::standalone(&engine, &place);
        let mut writer = writer.options(options).priority(priority).metadata(payload.metadata);
        if let Some((rendezvous, deadline)) = together {
            writer = writer.together(rendezvous, deadline);
        }
        for (name, item) in &payload.items {
            writer = writer.item(name, item.item(&mut borrowed).map_err(|e| e.with("item", name))?);
        }
        for (name, handler) in payload.handlers {
            writer = writer.item_handler(name, handler);
        }
        for (name, value) in payload.item_metadata {
            writer = writer.item_metadata(name, value);
        }
        for (name, value) in payload.metrics {
            writer = writer.metric(name, value);
        }
        writer.start_telling(&borrowed, |handle| begun.is(handle))
    };
    let handle = captured(py, start)?.map_err(|e: milepost::Error| raise(&e))?;
    Ok(SaveHandle::new(handle))
}

/// A save that may have begun, and whether its caller has gone.
#[derive(Clone, Default)]
pub(crate) struct Begun(Arc<Mutex<(Option<milepost::SaveHandle>, bool)>>);

impl Begun {
    fn lock(&self) -> MutexGuard<'_, (Option<milepost::SaveHandle>, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the handle of a save that has begun; nobody waits for it where the caller has gone.
    pub(crate) fn is(&self, handle: &milepost::SaveHandle) {
        let mut state = self.lock();
        state.0 = Some(handle.clone());
        if state.1 {
            handle.cancel();
        }
    }

    fn give_up(&self) {
        let mut state = self.lock();
        state.1 = true;
        if let Some(handle) = &state.0 {
            handle.cancel();
        }
    }
}

/// Runs what starts a save; where a signal's exception comes meanwhile, what it starts is cancelled: nobody has its handle,
/// and the memory that it still reads may change.
pub(crate) fn captured<T: Send + 'static>(
    py: Python<'_>,
    start: impl FnOnce(&Begun) -> T + Send + 'static,
) -> PyResult<T> {
    let begun = Begun::default();
    let noted = begun.clone();
    call(py, move || start(&noted)).inspect_err(|_| begun.give_up())
}

/// A save on its way.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct SaveHandle(Owned<milepost::SaveHandle>);

impl SaveHandle {
    pub(crate) fn new(handle: milepost::SaveHandle) -> Self {
        Self(Owned::new(handle))
    }
}

#[pymethods]
impl SaveHandle {
    /// The step, where it is one.
    #[getter]
    fn step(&self) -> PyResult<Option<u64>> {
        Ok(self.0.get()?.step())
    }

    /// Tells whether it has ended, well or badly.
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        let handle = self.0.get()?;
        Ok(detached(py, || handle.is_done()))
    }

    /// Asks it to stop; how it ended, the outcome tells.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        let handle = self.0.get()?;
        detached(py, || handle.cancel());
        Ok(())
    }

    /// The counters as they stand.
    fn progress<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let handle = self.0.get()?;
        let snapshot = detached(py, || handle.progress());
        progress_dict(py, &snapshot)
    }

    /// Waits until it has ended, at most so many seconds, and returns what was saved.
    #[pyo3(signature = (timeout=None))]
    fn wait<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyDict>> {
        const SLICE: Duration = Duration::from_millis(50);
        let handle = self.0.get()?;
        let mut left = timeout.map(seconds).transpose()?;
        loop {
            let slice = left.map_or(SLICE, |left| left.min(SLICE));
            let outcome = detached(py, || handle.wait_timeout(slice));
            match outcome {
                Ok(saved) => return saved_dict(py, &saved),
                // The save itself may have timed out; then it has ended.
                Err(error) if handle.is_done() || left.is_some_and(|left| left <= slice) => {
                    let error = match detached(py, || handle.wait_timeout(Duration::ZERO)) {
                        Ok(saved) => return saved_dict(py, &saved),
                        Err(last) if handle.is_done() => last,
                        Err(_) => error,
                    };
                    return Err(exception(py, &error)?);
                }
                Err(_) => {
                    left = left.map(|left| left.saturating_sub(slice));
                    py.check_signals()?;
                }
            }
        }
    }
}

pub(crate) fn seconds(value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value.max(0.0)).or(Ok(Duration::MAX))
}

/// Returns the counters of an operation as a dict.
pub(crate) fn progress_dict<'py>(
    py: Python<'py>,
    snapshot: &ProgressSnapshot,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("bytes_done", snapshot.bytes_done)?;
    dict.set_item("bytes_total", snapshot.bytes_total)?;
    dict.set_item("chunks_done", snapshot.chunks_done)?;
    dict.set_item("chunks_total", snapshot.chunks_total)?;
    dict.set_item("leaves_total", snapshot.leaves_total)?;
    dict.set_item("elapsed", snapshot.elapsed.as_secs_f64())?;
    dict.set_item("bytes_per_second", snapshot.bytes_per_second())?;
    dict.set_item("eta", snapshot.eta().map(|eta| eta.as_secs_f64()))?;
    Ok(dict)
}

fn saved_dict<'py>(py: Python<'py>, saved: &Saved) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("url", saved.place.to_string())?;
    dict.set_item("step", saved.record.step)?;
    dict.set_item("data_bytes", saved.data_bytes)?;
    dict.set_item("stored_bytes", saved.stored_bytes)?;
    let stages = PyDict::new(py);
    for stage in &saved.stages {
        stages.set_item(stage.name, stage.time.as_secs_f64())?;
    }
    dict.set_item("stages", stages)?;
    dict.set_item("record", record_dict(py, &saved.record)?)?;
    Ok(dict)
}

/// Returns a commit record as a dict, with Python's own floats.
pub(crate) fn record_dict<'py>(py: Python<'py>, record: &Record) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("step", record.step)?;
    dict.set_item("writer", &record.writer)?;
    dict.set_item("created_ms", record.created_ms)?;
    dict.set_item("committed_ms", record.committed_ms)?;
    let items = PyList::empty(py);
    for item in &record.items {
        let entry = PyDict::new(py);
        entry.set_item("name", &item.name)?;
        entry.set_item("kind", item.kind.as_str())?;
        entry.set_item("leaves", item.leaves)?;
        entry.set_item("data_bytes", item.data_bytes)?;
        entry.set_item("stored_bytes", item.stored_bytes)?;
        entry.set_item("objects", item.objects)?;
        entry.set_item("handler", item.handler.as_deref())?;
        entry.set_item("metadata", crate::json::to_python(py, &item.metadata)?)?;
        items.append(entry)?;
    }
    dict.set_item("items", items)?;
    dict.set_item("metadata", to_dict(py, &record.metadata)?)?;
    dict.set_item("metrics", to_dict(py, &record.metrics)?)?;
    let timings = PyDict::new(py);
    for timing in &record.timings {
        timings.set_item(&timing.stage, timing.ms / 1e3)?;
    }
    dict.set_item("timings", timings)?;
    dict.set_item("notes", &record.notes)?;
    Ok(dict)
}
