//! Errors: one table from kinds to the exceptions of `milepost._errors`, which knows their classes.

use milepost::{Error, ErrorKind, Mismatches};
use pyo3::{
    exceptions::PyRuntimeError,
    prelude::*,
    types::{PyDict, PyList},
};
use std::error::Error as _;

fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "NotFound",
        ErrorKind::AlreadyExists => "AlreadyExists",
        ErrorKind::Conflict => "Conflict",
        ErrorKind::Unavailable => "Unavailable",
        ErrorKind::Corrupt => "Corrupt",
        ErrorKind::Unsupported => "Unsupported",
        ErrorKind::Invalid => "Invalid",
        ErrorKind::Timeout => "SaveTimeout",
        ErrorKind::Cancelled => "Cancelled",
        _ => "Internal",
    }
}

/// Turns an error into the exception that stands for it.
pub(crate) fn raise(error: &Error) -> PyErr {
    Python::attach(|py| exception(py, error).unwrap_or_else(|e| e))
}

/// Makes the exception of an error, with its context, hint, causes and mismatches.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let context = PyDict::new(py);
    for (key, value) in error.context() {
        context.set_item(key, value)?;
    }
    let mismatches = PyList::empty(py);
    if let Some(found) = Mismatches::of(error) {
        for mismatch in found.as_slice() {
            let line = mismatch.to_string();
            let what = line.strip_prefix(&mismatch.path.to_string()).unwrap_or(&line);
            let what = what.trim_start_matches([':', ' ']).to_owned();
            mismatches.append((mismatch.path.to_string(), what))?;
        }
    }
    let mut causes = Vec::new();
    let mut cause = error.source().filter(|_| mismatches.is_empty());
    while let Some(inner) = cause {
        causes.push(inner.to_string());
        cause = inner.source();
    }
    let class = py.import("milepost._errors")?.getattr("of")?;
    let made = class.call1((
        kind_name(error.kind()),
        error.message(),
        context,
        error.hint_text(),
        causes,
        mismatches,
    ))?;
    Ok(PyErr::from_value(made))
}

/// Says that an object was made by another process, before a fork.
pub(crate) fn forked() -> PyErr {
    Python::attach(|py| {
        let say = py.import("milepost._errors").and_then(|m| m.getattr("forked"));
        match say.and_then(|say| say.call0()) {
            Ok(made) => PyErr::from_value(made),
            Err(_) => PyRuntimeError::new_err("used after fork()"),
        }
    })
}
