"""Pytrees: what is a container and what a leaf, and how containers are built again.

A tree becomes a *structure* and its leaves. A structure is made of nodes: an ``int`` is a leaf by its number, ``None``
is None, a `Branch` is a container with typed keys. JAX's registered nodes are asked for their children, without importing
JAX. Types are never imported because a checkpoint names them: what is loaded or registered is used, else a plain named
tuple or dict.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Union

import numpy as np

from . import _milepost
from ._errors import Invalid

DEPTH_MAX = 500


class Attr(NamedTuple):
    """The name of a field, as a key."""

    name: str


class Index(NamedTuple):
    """A position in a list, tuple or registered node, as a key."""

    position: int


class Branch(NamedTuple):
    """A container: ``dict``, ``list``, ``tuple``, ``namedtuple`` or ``object``, with one key a child."""

    kind: str
    type_name: str | None
    keys: tuple
    children: tuple


Key = Union[str, int, Attr, Index]
Node = Union[int, None, Branch]
Rebuild = Callable[[Sequence[Any]], Any]

# Types that were found to be leaves: most values of a tree are of few types.
_leaf_types: set[type] = set()
_LEAVES = (np.ndarray, np.generic, bool, int, float, complex, str, bytes, bytearray, memoryview)


def type_name(cls: type) -> str:
    """The name under which a type is recorded, and looked for again."""
    return f"{cls.__module__}.{cls.__qualname__}"


def text(keys: Sequence[Key]) -> str:
    """The text form of a key path: ``params/h_0/kernel``."""
    return _milepost.text(list(keys))


def _positions(children: Sequence[Any]) -> tuple[Index, ...]:
    return tuple(Index(i) for i in range(len(children)))


def _dict_keys(tree: Mapping, path: tuple) -> tuple:
    for key in tree:
        if type(key) is str:
            continue
        if not isinstance(key, (str, int)) or isinstance(key, bool):
            raise Invalid(
                f"a dict has a key of type {type(key).__name__}",
                context={"leaf": _text_or_root(path), "key": repr(key)},
                hint="keys are strings or integers",
            )
        if isinstance(key, int) and not -(2**63) <= key < 2**63:
            raise Invalid(
                "a dict has an integer key of more than 64 bits",
                context={"leaf": _text_or_root(path), "key": repr(key)},
                hint="use its text as the key",
            )
    return tuple(tree)


def _text_or_root(path: tuple) -> str:
    return text(path) or "(root)"


def _children(tree: Any, path: tuple) -> tuple[str, str | None, tuple, Sequence, Rebuild] | None:
    """Kind, type name, keys, children and the way back of a container; None for a leaf."""
    cls = type(tree)
    if cls in _leaf_types:
        return None
    if cls is dict:
        keys = _dict_keys(tree, path)
        return "dict", None, keys, list(tree.values()), lambda c: dict(zip(keys, c, strict=True))
    if cls is list:
        return "list", None, _positions(tree), tree, list
    if cls is tuple:
        return "tuple", None, _positions(tree), tree, tuple
    if isinstance(tree, _LEAVES):
        _leaf_types.add(cls)
        return None
    if isinstance(tree, tuple) and hasattr(cls, "_fields"):
        keys = tuple(Attr(name) for name in cls._fields)
        return "namedtuple", type_name(cls), keys, tree, lambda c: cls(*c)
    registered = _registered(tree)
    if registered is not None:
        return registered
    if isinstance(tree, Mapping):
        keys = _dict_keys(tree, path)
        return "dict", None, keys, list(tree.values()), lambda c: _mapping(tree, keys, c)
    if isinstance(tree, (list, tuple)):
        kind = "list" if isinstance(tree, list) else "tuple"
        return kind, None, _positions(tree), list(tree), lambda c: cls(c)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type) and not _is_array_like(tree):
        names = [field.name for field in dataclasses.fields(tree)]
        values = [getattr(tree, name) for name in names]
        keys = tuple(Attr(name) for name in names)
        return "object", type_name(cls), keys, values, lambda c: _replaced(tree, names, c)
    return None


def _mapping(tree: Any, keys: Sequence[Any], children: Sequence[Any]) -> Mapping:
    made = zip(keys, children, strict=True)
    if isinstance(tree, collections.defaultdict):
        return type(tree)(tree.default_factory, made)
    return type(tree)(made)


def _is_array_like(tree: Any) -> bool:
    return hasattr(tree, "shape") and hasattr(tree, "dtype")


def _replaced(tree: Any, names: Sequence[str], children: Sequence[Any]) -> Any:
    given = dict(zip(names, children, strict=True))
    fixed = {f.name for f in dataclasses.fields(tree) if not f.init}
    new = dataclasses.replace(tree, **{k: v for k, v in given.items() if k not in fixed})
    for name in fixed:
        object.__setattr__(new, name, given[name])
    return new


def _registered(tree: Any):
    """Asks JAX, where it is loaded, for the children of a registered node."""
    jax = sys.modules.get("jax")
    if jax is None or not hasattr(jax, "tree_util"):
        return None
    if isinstance(tree, jax.Array):
        _leaf_types.add(type(tree))
        return None
    util = jax.tree_util
    outer = lambda node: node is not tree  # noqa: E731
    with_paths, treedef = util.tree_flatten_with_path(tree, is_leaf=outer)
    if util.treedef_is_leaf(treedef) and len(with_paths) == 1 and with_paths[0][1] is tree:
        return None
    keys = tuple(_jax_key(util, path[0]) for path, _ in with_paths)
    children = [child for _, child in with_paths]
    kind: str = "object"
    name: str | None = type_name(type(tree))
    if isinstance(tree, Mapping) and all(isinstance(key, (str, int)) for key in keys):
        # FrozenDict, OrderedDict and their like are dicts to everybody else.
        if not _is_nnx_state(tree):
            kind, name = "dict", None
    elif isinstance(tree, (list, tuple)):
        kind, name = ("list" if isinstance(tree, list) else "tuple"), None
        keys = _positions(children)
    return kind, name, keys, children, lambda c: util.tree_unflatten(treedef, c)


def _is_nnx_state(tree: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(tree, nnx.State)


def _jax_key(util: Any, key: Any) -> Key:
    if isinstance(key, util.DictKey):
        inner = key.key
        plain = isinstance(inner, (str, int)) and not isinstance(inner, bool)
        return inner if plain else str(inner)
    if isinstance(key, util.GetAttrKey):
        return Attr(key.name)
    if isinstance(key, util.SequenceKey):
        return Index(key.idx)
    if isinstance(key, util.FlattenedIndexKey):
        return Index(key.key)
    return str(key)


def flatten(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> tuple[Node, list[Any]]:
    """Takes a tree apart: its structure, and its leaves in the order of their numbers."""
    leaves: list[Any] = []

    def walk(tree: Any, path: tuple) -> Node:
        if is_leaf is not None and is_leaf(tree):
            leaves.append(tree)
            return len(leaves) - 1
        if tree is None:
            return None
        if len(path) > DEPTH_MAX:
            raise Invalid(
                f"a tree is deeper than {DEPTH_MAX}",
                context={"leaf": f"{text(path[:8])}/…"},
                hint="does it hold itself?",
            )
        if type(tree) is dict:
            kind, name, keys, children = "dict", None, _dict_keys(tree, path), tree.values()
        else:
            parts = _children(tree, path)
            if parts is None:
                leaves.append(tree)
                return len(leaves) - 1
            kind, name, keys, children, _ = parts
        below: list[Node] = []
        for key, child in zip(keys, children, strict=True):  # a comprehension is one more frame
            if is_leaf is None and type(child) in _leaf_types:  # most are: a save's caller waits for this
                below.append(len(leaves))
                leaves.append(child)
            else:
                below.append(walk(child, (*path, key)))
        return Branch(kind, name, keys, tuple(below))

    try:
        return walk(tree, ()), leaves
    except RecursionError:
        raise Invalid("a tree is too deep", hint="does it hold itself?") from None
    finally:
        del walk  # it names itself: the cycle would keep every leaf until the collector comes


def rebuild(
    tree: Any, leaves: Sequence[Any], is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """Puts other leaves into the containers of a tree; the opposite of `flatten`."""
    values = iter(leaves)

    def walk(tree: Any) -> Any:
        if is_leaf is not None and is_leaf(tree):
            return next(values)
        if tree is None:
            return None
        parts = _children(tree, ())
        if parts is None:
            return next(values)
        *_, children, back = parts
        restored = []
        for child in children:
            restored.append(walk(child))
        return back(restored)

    try:
        return walk(tree)
    finally:
        del walk  # as in `flatten`


def key_paths(node: Node) -> list[tuple[Key, ...]]:
    """The key path of each leaf, in the order of the leaves' numbers."""
    found: dict[int, tuple[Key, ...]] = {}

    def walk(node: Node, path: tuple[Key, ...]) -> None:
        if isinstance(node, Branch):
            for key, child in zip(node.keys, node.children, strict=True):
                walk(child, (*path, key))
        elif node is not None:
            found[node] = path

    walk(node, ())
    return [found[number] for number in sorted(found)]


def positions(node: Node) -> Iterator[int]:
    """The numbers of the leaves of a structure, in tree order."""
    if isinstance(node, Branch):
        for child in node.children:
            yield from positions(child)
    elif node is not None:
        yield node


_REBUILDERS: dict[str, Callable[[dict[str, Any]], Any]] = {}


def register_type(cls: type, from_children: Callable[[dict[str, Any]], Any] | None = None) -> None:
    """Says how containers of a type are built again where no target is given.

    ``from_children`` gets the children by the text of their keys; without it the type is called with them as keywords.
    """
    _REBUILDERS[type_name(cls)] = from_children or (lambda children: cls(**children))


def key_text(key: Key) -> str:
    """The text of one key, as it is; not escaped."""
    if isinstance(key, Attr):
        return key.name
    if isinstance(key, Index):
        return str(key.position)
    return str(key)


def unflatten(node: Node, leaves: Sequence[Any] | Mapping[int, Any], exact: bool = True) -> Any:
    """Builds the saved containers around leaves; with ``exact=False`` dicts with string keys and lists only."""
    if node is None:
        return None
    if not isinstance(node, Branch):
        return leaves[node]
    children = []
    for child in node.children:
        children.append(unflatten(child, leaves, exact))
    if node.kind == "list" or (node.kind == "tuple" and not exact):
        return children
    if not exact:
        return {key_text(key): child for key, child in zip(node.keys, children, strict=True)}
    if node.kind == "dict":
        return dict(zip(node.keys, children, strict=True))
    if node.kind == "tuple":
        return tuple(children)
    return _built(node, children)


def _loaded(name: str) -> type | None:
    """The type of that name, where its module is loaded already."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:cut]))
        if found is None:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found if isinstance(found, type) else None
    return None


def _built(node: Branch, children: list[Any]) -> Any:
    named = {key_text(key): child for key, child in zip(node.keys, children, strict=True)}
    name = node.type_name or ""
    if name in _REBUILDERS:
        return _REBUILDERS[name](named)
    cls = _loaded(name)
    if cls is not None:
        made = _made(cls, node, named, children)
        if made is not None:
            return made
    if all(isinstance(key, Attr) for key in node.keys):
        return _plain_type(name.rpartition(".")[2], tuple(named))(*children)
    return {
        key if isinstance(key, (str, int)) else key_text(key): child
        for key, child in zip(node.keys, children, strict=True)
    }


def _made(cls: type, node: Branch, named: dict[str, Any], children: list[Any]) -> Any:
    """An instance of a loaded type, where one can be made of the children alone; else None."""
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return cls(*children) if tuple(named) == cls._fields else None
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(getattr(nnx, "State", None), type):
        if issubclass(cls, nnx.State):
            return cls(dict(zip((_nnx_key(key) for key in node.keys), children, strict=True)))
        if issubclass(cls, nnx.Variable):
            return cls(children[0]) if len(children) == 1 else None
    if dataclasses.is_dataclass(cls):
        fields = dataclasses.fields(cls)
        needed = {
            f.name
            for f in fields
            if f.init
            and f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        }
        if needed <= set(named) <= {f.name for f in fields if f.init}:
            return cls(**named)
    return None


def _nnx_key(key: Key) -> Any:
    if isinstance(key, Attr):
        return key.name
    return key.position if isinstance(key, Index) else key


@functools.lru_cache(maxsize=256)
def _plain_type(name: str, fields: tuple[str, ...]) -> type:
    name = name if name.isidentifier() else "Node"
    return collections.namedtuple(name, fields, rename=True)
