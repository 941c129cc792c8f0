"""A target tree, flattened to key paths and rebuilt with its own containers.

Orbax compares trees by the *text* of their keys: a tuple matches a list, a named tuple or dataclass
matches a dict. So a path here is a tuple of texts, and the same function gives it for a target and
for the structure of a stored item. Within one tree the text is unique: the engine refuses the
integer ``1`` beside the name ``"1"``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from milepost import _structure

from .metadata import Metadata

Path = tuple[str, ...]

SEQUENCES = frozenset({"list", "tuple"})
MAPPINGS = frozenset({"dict", "namedtuple"})


def shown(path: Path) -> str:
    """A path as error messages show it."""
    return "/".join(path) if path else "(root)"


@dataclasses.dataclass
class FlatTree:
    """The leaves, the empty nodes and the containers of a tree, by path, in tree order."""

    leaves: dict[Path, Any] = dataclasses.field(default_factory=dict)
    empties: dict[Path, str] = dataclasses.field(default_factory=dict)
    containers: dict[Path, tuple[str, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    build: Callable[[Mapping[Path, Any]], Any] | None = None

    def rebuild(self, values: Mapping[Path, Any]) -> Any:
        """The same tree with other leaves. ``values`` has one value for each path in ``leaves``."""
        assert self.build is not None
        return self.build(values)


def is_argument(value: Any) -> bool:
    """Whether a value is one of Orbax's objects for a leaf (args, metadata): never a container.

    Told by the class, ours or the installed Orbax's: asking values would ask every leaf of NNX.
    """
    kind = type(value)
    if isinstance(value, (type, Metadata)):
        return True
    if kind.__module__.startswith("orbax.checkpoint."):
        return any(base.__name__ in ("Metadata", "Transform") for base in kind.__mro__) or (
            is_restore_args(value) or is_save_args(value)
        )
    return is_restore_args(value) or is_save_args(value) or hasattr(kind, "use_fallback")


def is_restore_args(value: Any) -> bool:
    """Whether a value is one RestoreArgs, not a tree of them."""
    return hasattr(type(value), "restore_type")


def is_save_args(value: Any) -> bool:
    """Whether a value is one SaveArgs, not a tree of them."""
    return hasattr(type(value), "chunk_byte_size")


def flatten_target(tree: Any, stop: Callable[[Any], bool] | None = None) -> FlatTree:
    """Flattens any pytree; ``stop`` names values that are leaves whatever they hold."""
    flat = FlatTree()
    flat.build = _visit(tree, (), flat, stop or (lambda value: False))
    return flat


def _visit(
    node: Any, path: Path, flat: FlatTree, stop: Callable[[Any], bool]
) -> Callable[[Mapping[Path, Any]], Any]:
    if node is None and not stop(node):
        flat.empties[path] = "None"
        return lambda values: None
    whole = node is ... or stop(node) or is_argument(node)
    parts = None if whole else _structure._children(node, ())
    if parts is None:
        flat.leaves[path] = node
        return lambda values: values[path]
    kind, _, keys, children, remake = parts
    if not keys:
        flat.empties[path] = kind
        return lambda values: remake([])
    texts = tuple(_structure.key_text(key) for key in keys)
    flat.containers[path] = (kind, texts)
    builders = [_visit(child, (*path, text), flat, stop) for text, child in zip(texts, children)]
    return lambda values: remake([build(values) for build in builders])


def flatten_stored(structure: Any) -> FlatTree:
    """The paths of a stored item; its leaves are leaf numbers."""
    flat = FlatTree()
    pending: list[tuple[Path, Any]] = [((), structure)]
    while pending:
        path, node = pending.pop()
        if node is None:
            flat.empties[path] = "None"
        elif isinstance(node, int):
            flat.leaves[path] = node
        elif not node.children:
            flat.empties[path] = node.kind
        else:
            texts = tuple(_structure.key_text(key) for key in node.keys)
            flat.containers[path] = (node.kind, texts)
            below = [((*path, text), child) for text, child in zip(texts, node.children)]
            pending.extend(reversed(below))
    return flat
