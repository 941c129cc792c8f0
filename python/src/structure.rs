//! Trees between Python and Rust: the nodes of `milepost._structure`, with leaves by number.

use milepost::{Container, Tree, formats::index::Key};
use pyo3::{
    exceptions::{PyIndexError, PyTypeError, PyValueError},
    prelude::*,
    sync::PyOnceLock,
    types::{PyInt, PyString, PyTuple},
};

/// Neither side builds deeper trees.
const DEPTH_MAX: usize = 512;

static CLASSES: PyOnceLock<(Py<PyAny>, Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();

/// Returns the classes `Branch`, `Attr` and `Index`.
fn classes(py: Python<'_>) -> PyResult<&(Py<PyAny>, Py<PyAny>, Py<PyAny>)> {
    CLASSES.get_or_try_init(py, || {
        let module = py.import("milepost._structure")?;
        let class = |name: &str| module.getattr(name).map(Bound::unbind);
        Ok((class("Branch")?, class("Attr")?, class("Index")?))
    })
}

/// Builds a tree of the leaves whose numbers the node holds.
pub(crate) fn to_tree<L: Clone>(node: &Bound<'_, PyAny>, leaves: &[L]) -> PyResult<Tree<L>> {
    build(node, leaves, 0)
}

fn build<L: Clone>(node: &Bound<'_, PyAny>, leaves: &[L], depth: usize) -> PyResult<Tree<L>> {
    if depth > DEPTH_MAX {
        return Err(PyValueError::new_err(format!("a tree is deeper than {DEPTH_MAX}")));
    }
    if node.is_none() {
        return Ok(Tree::None);
    }
    if node.is_instance_of::<PyInt>() {
        let position: usize = node.extract()?;
        let missing = || PyIndexError::new_err(format!("a tree has no leaf {position}"));
        return leaves.get(position).cloned().map(Tree::Leaf).ok_or_else(missing);
    }
    let (kind, type_name, keys, below): (
        String,
        Option<String>,
        Bound<'_, PyAny>,
        Bound<'_, PyAny>,
    ) = node.extract()?;
    let type_name = type_name.unwrap_or_default();
    let container = match kind.as_str() {
        "dict" => Container::Dict,
        "list" => Container::List,
        "tuple" => Container::Tuple,
        "namedtuple" => Container::NamedTuple { type_name },
        "object" => Container::Object { type_name },
        _ => return Err(PyValueError::new_err(format!("no such container: {kind}"))),
    };
    let mut children = Vec::with_capacity(below.len()?);
    for (key, child) in keys.try_iter()?.zip(below.try_iter()?) {
        children.push((to_key(&key?)?, build(&child?, leaves, depth + 1)?));
    }
    if children.len() != below.len()? || children.len() != keys.len()? {
        return Err(PyValueError::new_err("a container has not one key a child"));
    }
    Ok(Tree::Branch { container, children })
}

fn to_key(key: &Bound<'_, PyAny>) -> PyResult<Key> {
    if let Ok(name) = key.cast::<PyString>() {
        return Ok(Key::Name(name.to_str()?.to_owned()));
    }
    if key.is_instance_of::<PyInt>() {
        return key.extract().map(Key::Int);
    }
    if let Ok(name) = key.getattr("name") {
        return name.extract().map(Key::Attr);
    }
    let position = key
        .getattr("position")
        .map_err(|_| PyTypeError::new_err("a key is a str, an int, an Attr or an Index"))?;
    position.extract().map(Key::Index)
}

/// Turns a tree into nodes; `leaf` gives the number of a leaf.
pub(crate) fn to_node<'py, L>(
    py: Python<'py>,
    tree: &Tree<L>,
    leaf: &mut impl FnMut(&L) -> usize,
) -> PyResult<Bound<'py, PyAny>> {
    let (container, children) = match tree {
        Tree::Leaf(value) => return Ok(leaf(value).into_pyobject(py)?.into_any()),
        Tree::None => return Ok(py.None().into_bound(py)),
        Tree::Branch { container, children } => (container, children),
    };
    let (kind, type_name) = match container {
        Container::Dict => ("dict", None),
        Container::List => ("list", None),
        Container::Tuple => ("tuple", None),
        Container::NamedTuple { type_name } => ("namedtuple", Some(type_name)),
        Container::Object { type_name } => ("object", Some(type_name)),
    };
    let mut keys = Vec::with_capacity(children.len());
    let mut below = Vec::with_capacity(children.len());
    for (key, child) in children {
        keys.push(from_key(py, key)?);
        below.push(to_node(py, child, leaf)?);
    }
    let (branch, ..) = classes(py)?;
    branch.bind(py).call1((kind, type_name, PyTuple::new(py, keys)?, PyTuple::new(py, below)?))
}

/// Turns a key into Python's.
pub(crate) fn from_key<'py>(py: Python<'py>, key: &Key) -> PyResult<Bound<'py, PyAny>> {
    let (_, attr, index) = classes(py)?;
    match key {
        Key::Name(name) => Ok(PyString::new(py, name).into_any()),
        Key::Int(value) => Ok(value.into_pyobject(py)?.into_any()),
        Key::Attr(name) => attr.bind(py).call1((name,)),
        Key::Index(position) => index.bind(py).call1((position,)),
    }
}

/// Returns the text form of a key path, as it is in the index and in errors.
#[pyfunction]
pub(crate) fn text(keys: Vec<Bound<'_, PyAny>>) -> PyResult<String> {
    let mut path = milepost::KeyPath::root();
    for key in keys {
        path.push(to_key(&key)?);
    }
    Ok(path.to_string())
}
