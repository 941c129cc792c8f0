//! The engine of a process, and places: a store with a prefix.

use crate::{
    errors::raise,
    wait::{Owned, call},
};
use pyo3::prelude::*;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicPtr, Ordering},
    },
};

/// The threads, the byte budget and the buffers that all saves and restores of a process share.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct Engine(Owned<Arc<milepost::Engine>>);

/// The engine that is used where none is named, and the process that started it.
struct Default {
    pid: u32,
    engine: Arc<milepost::Engine>,
}

static DEFAULT: AtomicPtr<Default> = AtomicPtr::new(std::ptr::null_mut());

/// Returns the engine of this process; a child of a fork starts its own, with the same options.
pub(crate) fn shared(options: Option<milepost::EngineOptions>) -> PyResult<Arc<milepost::Engine>> {
    let current = DEFAULT.load(Ordering::Acquire);
    #[expect(unsafe_code, reason = "a pointer that is set once a process and never freed")]
    // SAFETY: null, or leaked by this function.
    let known = unsafe { current.as_ref() };
    if let Some(known) = known.filter(|known| known.pid == std::process::id()) {
        return Ok(Arc::clone(&known.engine));
    }
    let options = options.or_else(|| known.map(|k| k.engine.options().clone())).unwrap_or_default();
    let engine = milepost::Engine::builder().options(options).build().map_err(|e| raise(&e))?;
    let fresh = Default { pid: std::process::id(), engine: Arc::clone(&engine) };
    // No lock here: a fork may leave one held for ever. What lost the race is simply a second engine.
    let fresh = Box::into_raw(Box::new(fresh));
    let swapped =
        DEFAULT.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire).is_ok();
    if swapped { Ok(engine) } else { shared(None) }
}

#[pymethods]
impl Engine {
    /// Starts an engine of its own; what is not named is the default.
    #[new]
    #[pyo3(signature = (*, memory_bytes=None, codec_threads=None, disk_threads=None))]
    fn new(
        memory_bytes: Option<u64>,
        codec_threads: Option<usize>,
        disk_threads: Option<usize>,
    ) -> PyResult<Self> {
        let engine = milepost::Engine::builder()
            .options(engine_options(memory_bytes, codec_threads, disk_threads))
            .build()
            .map_err(|e| raise(&e))?;
        Ok(Self(Owned::new(engine)))
    }

    /// The byte budget of staging copies, encoded output and requests in flight.
    #[getter]
    fn memory_bytes(&self) -> PyResult<u64> {
        Ok(self.0.get()?.options().budget_bytes)
    }

    /// The most bytes of the budget that were ever in use at once.
    #[getter]
    fn high_water_bytes(&self) -> PyResult<u64> {
        Ok(self.0.get()?.budget().high_water())
    }
}

fn engine_options(
    memory_bytes: Option<u64>,
    codec_threads: Option<usize>,
    disk_threads: Option<usize>,
) -> milepost::EngineOptions {
    let default = milepost::EngineOptions::default();
    milepost::EngineOptions {
        budget_bytes: memory_bytes.unwrap_or(default.budget_bytes),
        codec_threads: codec_threads.unwrap_or(default.codec_threads),
        disk_threads: disk_threads.unwrap_or(default.disk_threads),
    }
}

/// Where something is: a URL or path, opened with an engine.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct Place(Owned<(Arc<milepost::Engine>, milepost::Place)>);

impl Place {
    pub(crate) fn get(&self) -> PyResult<(Arc<milepost::Engine>, milepost::Place)> {
        self.0.get().cloned()
    }

    pub(crate) fn of(engine: &Arc<milepost::Engine>, place: &milepost::Place) -> Self {
        Self(Owned::new((Arc::clone(engine), place.clone())))
    }
}

#[pymethods]
impl Place {
    /// Opens a URL or path; `options` are those of its store.
    #[new]
    #[pyo3(signature = (url, options=None, engine=None))]
    fn new(
        py: Python<'_>,
        url: String,
        options: Option<BTreeMap<String, String>>,
        engine: Option<&Engine>,
    ) -> PyResult<Self> {
        let engine = match engine {
            Some(engine) => Arc::clone(engine.0.get()?),
            None => shared(None)?,
        };
        let options: Vec<_> = options.unwrap_or_default().into_iter().collect();
        let opener = Arc::clone(&engine);
        let place = call(py, move || opener.place(&url, &options))?.map_err(|e| raise(&e))?;
        Ok(Self(Owned::new((engine, place))))
    }

    /// The path on a local disk, `None` elsewhere.
    #[getter]
    fn local_path(&self) -> PyResult<Option<std::path::PathBuf>> {
        Ok(self.0.get()?.1.local_path())
    }

    /// The place below this one.
    fn join(&self, relative: &str) -> PyResult<Self> {
        let (engine, place) = self.0.get()?;
        Ok(Self::of(engine, &place.join(relative)))
    }

    /// Tells whether it was opened with this engine.
    fn is_of(&self, engine: &Engine) -> PyResult<bool> {
        Ok(Arc::ptr_eq(&self.0.get()?.0, engine.0.get()?))
    }

    fn __str__(&self) -> PyResult<String> {
        Ok(self.0.get()?.1.to_string())
    }
}
