//! JSON values between Python and Rust; floats that JSON lacks go as `formats::record::tagged` has them.

use milepost::formats::record::tagged::{self, Tagged};
use pyo3::{
    exceptions::{PyOverflowError, PyTypeError, PyValueError},
    prelude::*,
    types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple},
};
use serde_json::{Map, Value};

/// Nothing that is nested deeper can be read back.
const DEPTH_MAX: usize = 100;

/// Converts a value to its stored form; `at` is where it is, for errors.
pub(crate) fn to_value(object: &Bound<'_, PyAny>, at: &str) -> PyResult<Value> {
    convert(object, at, 0)
}

fn convert(object: &Bound<'_, PyAny>, at: &str, depth: usize) -> PyResult<Value> {
    if depth > DEPTH_MAX {
        return Err(PyValueError::new_err(format!("{at}: nested deeper than {DEPTH_MAX}")));
    }
    if object.is_none() {
        Ok(Value::Null)
    } else if let Ok(value) = object.cast::<PyBool>() {
        Ok(value.is_true().into())
    } else if let Ok(text) = object.cast::<PyString>() {
        Ok(text.to_str()?.into())
    } else if object.is_instance_of::<PyInt>() {
        integer(object, at)
    } else if object.is_instance_of::<PyFloat>() {
        Ok(tagged::float(object.extract()?))
    } else if let Ok(dict) = object.cast::<PyDict>() {
        Ok(Value::Object(tagged::object(members(dict, at, depth)?)))
    } else if object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>() {
        let items = object.try_iter()?.enumerate();
        let items = items.map(|(i, item)| convert(&item?, &format!("{at}[{i}]"), depth + 1));
        Ok(Value::Array(items.collect::<PyResult<_>>()?))
    } else if let Some(scalar) = scalar(object)? {
        convert(&scalar, at, depth + 1)
    } else {
        let kind = object.get_type().fully_qualified_name()?.to_string();
        Err(PyTypeError::new_err(format!("{at}: a {kind} is no JSON value")))
    }
}

/// Returns what a NumPy or JAX scalar stands for.
fn scalar<'py>(object: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let is_scalar =
        object.getattr("ndim").and_then(|ndim| ndim.extract::<usize>()).is_ok_and(|ndim| ndim == 0);
    if is_scalar { object.call_method0("item").map(Some) } else { Ok(None) }
}

fn integer(object: &Bound<'_, PyAny>, at: &str) -> PyResult<Value> {
    if let Ok(value) = object.extract::<i64>() {
        return Ok(value.into());
    }
    let wide = object.extract::<u64>().map(Value::from);
    wide.map_err(|_| PyOverflowError::new_err(format!("{at}: an integer of over 64 bits")))
}

fn members(dict: &Bound<'_, PyDict>, at: &str, depth: usize) -> PyResult<Map<String, Value>> {
    let mut members = Map::with_capacity(dict.len());
    for (key, value) in dict {
        let Ok(name) = key.cast::<PyString>() else {
            return Err(PyTypeError::new_err(format!(
                "{at}: the key {} is no string",
                key.repr()?
            )));
        };
        let name = name.to_str()?;
        members.insert(name.to_owned(), convert(&value, &format!("{at}[{name:?}]"), depth + 1)?);
    }
    Ok(members)
}

/// Converts the members of a dict; the object itself is escaped by whoever stores it.
pub(crate) fn to_members(
    dict: Option<&Bound<'_, PyDict>>,
    at: &str,
) -> PyResult<Map<String, Value>> {
    dict.map_or_else(|| Ok(Map::new()), |dict| members(dict, at, 0))
}

/// Converts a stored value to Python's.
pub(crate) fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(value) => PyBool::new(py, *value).to_owned().into_any(),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => value.into_pyobject(py)?.into_any(),
            (None, Some(value)) => value.into_pyobject(py)?.into_any(),
            (None, None) => PyFloat::new(py, number.as_f64().unwrap_or(f64::NAN)).into_any(),
        },
        Value::String(text) => PyString::new(py, text).into_any(),
        Value::Array(items) => {
            let items = items.iter().map(|item| to_python(py, item));
            PyList::new(py, items.collect::<PyResult<Vec<_>>>()?)?.into_any()
        }
        Value::Object(members) => match tagged::read(members) {
            Tagged::Float(x) => PyFloat::new(py, x).into_any(),
            Tagged::Object(members) => dict(py, &members)?.into_any(),
        },
    })
}

fn dict<'py>(py: Python<'py>, members: &Map<String, Value>) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in members {
        dict.set_item(name, to_python(py, value)?)?;
    }
    Ok(dict)
}

/// Converts metadata or metrics of a record to a dict.
pub(crate) fn to_dict<'py>(
    py: Python<'py>,
    members: &Map<String, Value>,
) -> PyResult<Bound<'py, PyDict>> {
    match tagged::read(members) {
        Tagged::Object(members) => dict(py, &members),
        Tagged::Float(_) => dict(py, members),
    }
}
