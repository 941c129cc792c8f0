//! How the processes of a job meet for the steps that they save together.

use crate::{
    engine::{Place, shared},
    errors::raise,
    save::{SaveHandle, seconds},
    wait::{Owned, attached, call, detached},
};
use bytes::Bytes;
use futures::{FutureExt, channel::oneshot, future::BoxFuture};
use milepost::{
    Borrowed, Callbacks, CheckpointWriter, Error, ErrorKind, Rendezvous, StoreRendezvous,
};
use pyo3::{exceptions::PyTimeoutError, prelude::*, types::PyBytes};
use std::{sync::Arc, time::Duration};

/// One process's end of a rendezvous.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct Together(Owned<(Arc<dyn Rendezvous>, Duration)>);

impl Together {
    fn new(rendezvous: impl Rendezvous + 'static, deadline: Duration) -> Self {
        Self(Owned::new((Arc::new(rendezvous), deadline)))
    }

    /// Returns the rendezvous, and how long participants wait for each other.
    pub(crate) fn get(&self) -> PyResult<(Arc<dyn Rendezvous>, Duration)> {
        self.0.get().cloned()
    }

    /// Returns with whom a manager saves; its own timeout, in seconds, goes before.
    pub(crate) fn with_deadline(&self, timeout: Option<f64>) -> PyResult<milepost::Together> {
        let (rendezvous, deadline) = self.get()?;
        let timeout = timeout.map(seconds).transpose()?;
        Ok(milepost::Together::new(rendezvous, timeout.unwrap_or(deadline)))
    }
}

#[pymethods]
impl Together {
    /// Meets by functions of a launcher: `all_gather(round, value, seconds) -> list[bytes]` and, where it has one,
    /// `broadcast(round, origin, value | None, seconds) -> bytes`. They may wait, and are called on threads of their own.
    #[staticmethod]
    #[pyo3(signature = (index, count, all_gather, broadcast, deadline))]
    fn launcher(
        index: usize,
        count: usize,
        all_gather: Py<PyAny>,
        broadcast: Option<Py<PyAny>>,
        deadline: f64,
    ) -> PyResult<Self> {
        let gather = Arc::new(all_gather);
        let all_gather = move |round: &str, value: Bytes, deadline: Duration| {
            let (gather, round) = (Arc::clone(&gather), round.to_owned());
            ask(move |py| {
                let value = PyBytes::new(py, &value);
                let values = gather.call1(py, (round, value, deadline.as_secs_f64()))?;
                let values: Vec<Vec<u8>> = values.extract(py)?;
                Ok(values.into_iter().map(Bytes::from).collect())
            })
        };
        let mut callbacks = Callbacks::new(index, count, all_gather).map_err(|e| raise(&e))?;
        if let Some(broadcast) = broadcast {
            let broadcast = Arc::new(broadcast);
            callbacks = callbacks.with_broadcast(move |round, origin, value, deadline| {
                let (broadcast, round) = (Arc::clone(&broadcast), round.to_owned());
                ask(move |py| {
                    let value = value.map(|value| PyBytes::new(py, &value).unbind());
                    let given = (round, origin, value, deadline.as_secs_f64());
                    let told: Vec<u8> = broadcast.call1(py, given)?.extract(py)?;
                    Ok(Bytes::from(told))
                })
            });
        }
        Ok(Self::new(callbacks, seconds(deadline)?))
    }

    /// Meets through nothing but the store of a run; with a session that the launcher has named, or one that is made.
    #[staticmethod]
    #[pyo3(signature = (run, index, count, session, deadline))]
    fn store(
        py: Python<'_>,
        run: &Place,
        index: usize,
        count: usize,
        session: Option<String>,
        deadline: f64,
    ) -> PyResult<Self> {
        let (engine, place) = run.get()?;
        let deadline = seconds(deadline)?;
        let join = move || match session {
            Some(session) => futures::executor::block_on(StoreRendezvous::with_session(
                &engine,
                &place,
                &session,
                (index, count),
            )),
            None => StoreRendezvous::join_blocking(&engine, &place, (index, count), deadline),
        };
        let joined = call(py, join)?.map_err(|e| raise(&e))?;
        Ok(Self::new(joined, deadline))
    }

    /// Tells the others that this process takes no part in the save that all make next, and why; in the background.
    fn decline(&self, py: Python<'_>, why: String, is_cancelled: bool) -> PyResult<SaveHandle> {
        let (rendezvous, deadline) = self.get()?;
        let engine = shared(None)?;
        let started = detached(py, move || {
            let kind = if is_cancelled { ErrorKind::Cancelled } else { ErrorKind::Invalid };
            let nowhere = engine.place("memory://declined", &[])?;
            let writer = CheckpointWriter::standalone(&engine, &nowhere);
            let writer = writer.together(rendezvous, deadline).decline(Error::new(kind, why));
            writer.start(&Borrowed::new())
        });
        started.map(SaveHandle::new).map_err(|e| raise(&e))
    }

    /// Returns what process 0 gave, or raises where it could not decide; all ask in the same order as they save.
    fn decide(&self, py: Python<'_>, own: Option<bool>) -> PyResult<bool> {
        let together = self.with_deadline(None)?;
        let engine = shared(None)?;
        let failed = || Error::new(ErrorKind::Invalid, "the decision of process 0 failed");
        let own = own.ok_or_else(failed);
        call(py, move || together.decide(&engine, own))?.map_err(|e| raise(&e))
    }

    /// Returns what everybody gave, by index; `None` says that this process failed, and all raise.
    fn gather<'py>(
        &self,
        py: Python<'py>,
        own: Option<Vec<u8>>,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let together = self.with_deadline(None)?;
        let engine = shared(None)?;
        let failed = || Error::new(ErrorKind::Invalid, "this process has nothing to give");
        let own = own.ok_or_else(failed);
        let told = call(py, move || together.gather(&engine, own))?.map_err(|e| raise(&e))?;
        Ok(told.iter().map(|value| PyBytes::new(py, value)).collect())
    }

    /// The same meeting, with another deadline.
    fn within(&self, deadline: f64) -> PyResult<Self> {
        let (rendezvous, _) = self.get()?;
        Ok(Self(Owned::new((rendezvous, seconds(deadline)?))))
    }

    /// Which of the processes this is, from 0.
    #[getter]
    fn index(&self) -> PyResult<usize> {
        Ok(self.0.get()?.0.index())
    }

    /// How many there are.
    #[getter]
    fn count(&self) -> PyResult<usize> {
        Ok(self.0.get()?.0.count())
    }

    /// Seconds that they wait for each other.
    #[getter]
    fn deadline(&self) -> PyResult<f64> {
        Ok(self.0.get()?.1.as_secs_f64())
    }
}

/// Calls Python on a thread of its own, since it may wait.
fn ask<T: Send + 'static>(
    question: impl FnOnce(Python<'_>) -> PyResult<T> + Send + 'static,
) -> BoxFuture<'static, milepost::Result<T>> {
    let (tell, told) = oneshot::channel();
    let run = move || {
        let answer = attached(|py| question(py).map_err(|e| failed(py, &e)));
        // Who asked may have given up.
        let _ = tell.send(answer);
    };
    let thread = std::thread::Builder::new().name("milepost-meet".to_owned()).spawn(run);
    async move {
        let lost = |why: &str| {
            Error::new(ErrorKind::Unavailable, format!("the launcher did not answer: {why}"))
        };
        thread.map_err(|e| lost(&e.to_string()))?;
        match told.await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(lost("the interpreter is ending")),
            Err(_) => Err(lost("its thread has ended")),
        }
    }
    .boxed()
}

fn failed(py: Python<'_>, error: &PyErr) -> Error {
    let text = error.value(py).to_string();
    let late = error.is_instance_of::<PyTimeoutError>(py);
    let kind = if late { ErrorKind::Timeout } else { ErrorKind::Unavailable };
    Error::new(kind, format!("the processes could not meet: {text}"))
}
