"""Leaves of types that the engine does not know, through type handlers of the user's.

Such a handler writes files for all its leaves into one directory. The item's metadata remembers the
handler and its leaves; the files are a zip archive in the first of these leaves, the others are
empty bytes. So the item stays one tree, and zarr-python still reads every other leaf.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from milepost._errors import Invalid
from milepost._restore import Want, read

from . import _pytree, type_handlers
from ._leaf_args import RestoreArgs, SaveArgs
from ._targets import flatten_stored, flatten_target, is_restore_args
from .handlers import base

KEY = "leaf_files"


def packed(tree: Any, save_args: Any, registry: Any) -> tuple[Any, dict[str, Any]]:
    """The tree with bytes in place of the leaves that handlers of the user's save.

    Returns:
        The tree to save, and what the item's metadata shall remember: empty where there are none.
    """
    registry = registry or type_handlers.global_registry()
    if not _has_custom(registry):
        return tree, {}
    flat = flatten_target(tree, stop=lambda value: _handler_of(registry, value) is not None)
    groups: dict[str, tuple[Any, list[Any]]] = {}
    for path, leaf in flat.leaves.items():
        handler = _handler_of(registry, leaf)
        if handler is not None:
            groups.setdefault(handler.typestr(), (handler, []))[1].append(path)
    if not groups:
        return tree, {}
    given = {} if save_args is None else flatten_target(save_args).leaves
    values = dict(flat.leaves)
    for handler, paths in groups.values():
        args = [given.get(path) or SaveArgs() for path in paths]
        blob = _written(handler, [flat.leaves[path] for path in paths], paths, args)
        for path in paths:
            values[path] = b""
        values[paths[0]] = blob
    described = {name: [list(path) for path in paths] for name, (_, paths) in groups.items()}
    return flat.rebuild(values), {KEY: described}


def _has_custom(registry: Any) -> bool:
    custom = getattr(registry, "custom", None)
    return True if custom is None else bool(custom())


def _handler_of(registry: Any, value: Any) -> Any | None:
    if value is None or not registry.has(type(value)):
        return None
    handler = registry.get(type(value))
    return None if type_handlers.is_native(handler) else handler


def _infos(handler: Any, paths: list[Any], directory: Any) -> list[type_handlers.ParamInfo]:
    infos = []
    for path in paths:
        name = ".".join(path)
        infos.append(
            type_handlers.ParamInfo(
                name=name,
                parent_dir=directory,
                path=directory / name,
                keypath=tuple(path),
                value_typestr=handler.typestr(),
            )
        )
    return infos


def _written(handler: Any, values: list[Any], paths: list[Any], args: list[Any]) -> bytes:
    """The zip archive of what a handler writes for its leaves."""
    scratch = Path(tempfile.mkdtemp(prefix="milepost-leaves-"))
    try:
        directory = base.directory_for_handler(scratch)
        base.wait_for(handler.serialize(values, _infos(handler, paths, directory), args))
        finalize = getattr(handler, "finalize", None)
        if finalize is not None:
            finalize(directory)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(scratch.rglob("*")):
                archive.write(file, file.relative_to(scratch).as_posix())
        return buffer.getvalue()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def has_files(metadata: Mapping[str, Any] | None) -> bool:
    """Whether an item has leaves of handlers of the user's."""
    return bool((metadata or {}).get(KEY))


def restore(
    index: Any, metadata: Mapping[str, Any], options: dict[str, Any], registry: Any
) -> Any:
    """`_pytree.restore_tree` for an item with such leaves.

    Raises:
        Invalid: A leaf's handler is not registered in this process.
    """
    registry = registry or type_handlers.global_registry()
    groups = {name: [tuple(p) for p in paths] for name, paths in metadata[KEY].items()}
    ours = {path for paths in groups.values() for path in paths}
    options = dict(options)
    item, given = options.get("item"), options.get("restore_args")
    by_path: dict[Any, Any] = {}
    if item is not None:
        options["item"] = _with_bytes(item, ours)
    if given is not None and not is_restore_args(given):
        by_path = flatten_target(given).leaves
        options["restore_args"] = _with_plain_args(given, ours)
    restored = _pytree.restore_tree(index, metadata=metadata, **options)
    flat = flatten_target(restored)
    values = dict(flat.leaves)
    for name, paths in groups.items():
        wanted = [path for path in paths if path in values and values[path] is not ...]
        if wanted:
            first = flatten_stored(index.structure).leaves[paths[0]]
            blob = read(index, [Want(first)], progress=False)[0]
            args = [by_path.get(path) or RestoreArgs() for path in wanted]
            handler = _registered(registry, name, wanted[0])
            values.update(zip(wanted, _read(handler, blob, wanted, args)))
    return flat.rebuild(values)


def _with_bytes(item: Any, ours: set[Any]) -> Any:
    """The target with bytes at those leaves, so that they match what is stored."""
    flat = flatten_target(item)
    values = {
        path: b"" if path in ours and leaf is not ... else leaf
        for path, leaf in flat.leaves.items()
    }
    return flat.rebuild(values)


def _with_plain_args(given: Any, ours: set[Any]) -> Any:
    flat = flatten_target(given)
    values = {
        path: RestoreArgs() if path in ours else leaf for path, leaf in flat.leaves.items()
    }
    return flat.rebuild(values)


def _registered(registry: Any, name: str, path: Any) -> Any:
    try:
        return registry.get(name)
    except (ValueError, KeyError):
        raise Invalid(
            f"a leaf was saved by the type handler {name!r}, which is not registered here",
            context={"leaf": "/".join(path)},
            hint="call register_type_handler(type, handler, override=True) before the restore",
        ) from None


def _read(handler: Any, blob: bytes, paths: list[Any], args: list[Any]) -> list[Any]:
    scratch = Path(tempfile.mkdtemp(prefix="milepost-leaves-"))
    try:
        with zipfile.ZipFile(io.BytesIO(bytes(blob))) as archive:
            archive.extractall(scratch)
        directory = base.directory_for_handler(scratch)
        outcome = base.run_coroutine(handler.deserialize(_infos(handler, paths, directory), args))
        return list(outcome)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
