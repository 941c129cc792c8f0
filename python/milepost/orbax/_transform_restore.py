"""A restore through transformations: only the leaves that the new tree needs are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from milepost import _structure
from milepost._errors import Mismatch


from . import _compare, _leaf_requests, _pytree
from ._leaf_args import RestoreArgs
from ._leaf_requests import Request, Unfit
from ._leaf_types import LeafTypes
from ._reading import read
from ._targets import FlatTree, Path, flatten_target, shown
from .transform_utils import RestoreTransform, Source, source_of, stored_keys
from .tree import to_flat_dict


class _Plan:
    """The leaves to read, and what to do with them."""

    def __init__(self, index: Any, metadata: Mapping[str, Any] | None) -> None:
        self.index = index
        self.stored, self.numbers = stored_keys(index.structure)
        self.types = LeafTypes(metadata, len(index.leaves))
        self.requests: list[Request] = []
        self.found: list[Mismatch] = []

    def ask(self, key: str, args: Any, target: Any) -> int:
        """Asks for a stored leaf; returns the place of its value in `read`'s result."""
        number = self.numbers[key]
        try:
            request = _leaf_requests.of_arguments(
                self.index.leaves[number],
                number,
                args,
                target,
                was_jax=self.types.is_jax(number),
                fallback_sharding=self.types.sharding(number),
            )
        except Unfit as error:
            self.found.append(Mismatch(key or "(root)", str(error)))
            return -1
        self.requests.append(request)
        return len(self.requests) - 1

    def read(self) -> list[Any]:
        """All values, or one error for all that does not fit."""
        _compare.raise_mismatches(self.found, hint=None, context={})
        wants = [request.want for request in self.requests]
        values = read(self.index, wants)
        return [request.finish(value) for request, value in zip(self.requests, values)]


def restore(
    index: Any,
    item: Any,
    restore_args: Any,
    *,
    metadata: Mapping[str, Any] | None,
    transforms: Any,
    default_to_original: bool,
    legacy_transform_fn: Callable[..., Any] | None,
) -> Any:
    """Restores `item`'s structure by transformations; see `transform_utils`.

    Raises:
        ValueError: No `item`; a transformation names a key that the checkpoint lacks.
    """
    if item is None:
        raise ValueError(
            "If providing `transforms`, must provide `item` matching structure of expected result."
        )
    target = flatten_target(item)
    found: list[Mismatch] = []
    arguments = _pytree.arguments_by_path(restore_args, target, found)
    _compare.raise_mismatches(found, hint=None, context={})
    plan = _Plan(index, metadata)
    if legacy_transform_fn is not None:
        return _legacy(plan, item, target, arguments, legacy_transform_fn)
    by_pattern = to_flat_dict(transforms, sep="/")
    sources: dict[Path, Source] = {}
    places: dict[Path, Any] = {}
    for path, leaf in target.leaves.items():
        source = source_of("/".join(path), by_pattern, plan.numbers, default_to_original)
        sources[path] = source
        if source.kind == "old":
            places[path] = plan.ask(source.key, arguments(path), leaf)
        elif source.kind == "many":
            places[path] = _inputs(plan, source.transform)
    values = plan.read()
    done = {}
    for path, leaf in target.leaves.items():
        done[path] = _value(sources[path], places.get(path), values, leaf, arguments(path))
    return target.rebuild(done)


def _inputs(plan: _Plan, transform: Any) -> dict[str, int]:
    """The leaves that a function of many needs: the places of their values by key."""
    named = getattr(transform, "multi_value_fn_input_args", None)
    if named is None:
        return {key: plan.ask(key, None, None) for key in plan.numbers}
    places: dict[str, int] = {}
    for pattern, args in named.items():
        keys = [key for key in plan.numbers if re.fullmatch(pattern, key)]
        if not keys:
            plan.found.append(Mismatch(pattern, "no stored leaf has a key like this"))
        for key in keys:
            places[key] = plan.ask(key, args, None)
    return places


def _value(source: Source, place: Any, values: list[Any], leaf: Any, args: Any) -> Any:
    if source.kind == "new":
        return leaf
    transform = source.transform
    takes_args = isinstance(transform, RestoreTransform)
    extra = ((args if args is not None else RestoreArgs()),) if takes_args else ()
    if source.kind == "many":
        tree = _nested({key: values[at] for key, at in place.items()})
        return transform.multi_value_fn(source.key, tree, *extra)  # type: ignore[union-attr,misc]
    if transform is None or transform.value_fn is None:
        return values[place]
    return transform.value_fn(values[place], *extra)


def _nested(flat: dict[str, Any]) -> Any:
    """Nested dicts of keys joined with ``/``; the lone key ``""`` is a bare leaf."""
    if list(flat) == [""]:
        return flat[""]
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *above, last = key.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def _legacy(
    plan: _Plan,
    item: Any,
    target: FlatTree,
    arguments: Callable[[Path], Any],
    transform: Callable[..., Any],
) -> Any:
    """The user's own function maps ParamInfos of the stored tree to the target's structure."""
    from .type_handlers import ParamInfo

    infos: list[Any] = [None] * len(plan.index.leaves)
    for path, number in plan.stored.leaves.items():
        infos[number] = ParamInfo(name=".".join(path), parent_dir=None, keypath=path)
    structure = _structure.unflatten(plan.index.structure, infos, exact=False)
    _, mapped = transform(item, structure, structure)
    given = flatten_target(mapped, stop=lambda value: isinstance(value, ParamInfo))
    places: dict[Path, int] = {}
    for path, leaf in target.leaves.items():
        info = given.leaves.get(path)
        if isinstance(info, ParamInfo):
            places[path] = plan.ask("/".join(info.keypath or ()), arguments(path), leaf)
        elif info is None:
            plan.found.append(Mismatch(shown(path), "legacy_transform_fn gives nothing for it"))
    values = plan.read()
    done = {
        path: values[places[path]] if path in places else given.leaves[path]
        for path in target.leaves
    }
    return target.rebuild(done)
