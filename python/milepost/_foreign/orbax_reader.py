"""Reads items of Orbax checkpoints through the installed `orbax.checkpoint`.

A strict restore compares the whole target with what is stored before a byte is read, and names
every difference by its key path. A restore that is not strict is Orbax's own `PyTreeRestore`, with
its own errors.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .._structure import flatten, key_paths, rebuild
from . import orbax
from .item import ForeignItem
from .match import Stored, compare, texts
from .mistake import convert_command, foreign
from .place import Place

if TYPE_CHECKING:
    from collections.abc import Mapping


def installed(item: ForeignItem) -> Any:
    """The real `orbax.checkpoint`, also where ours stands in its place in `sys.modules`.

    Raises:
        ForeignFormat: it is not installed.
    """
    cause: Exception | None = None
    try:
        from ..orbax._aliases import real_orbax

        real = real_orbax()
    except ImportError as error:
        real, cause = None, error
    if real is not None:
        return real
    raise foreign(
        "a checkpoint in orbax format is read by orbax.checkpoint, which is not installed",
        "pip install orbax-checkpoint; to be rid of it, bring the run over once, where it is: "
        + convert_command(_run_of(item)),
        path=item.path,
    ) from cause


def _run_of(item: ForeignItem) -> str:
    """The run that an item is in, by the name of its step; else its checkpoint."""
    checkpoint = item.path.rpartition("/")[0] if item.name else item.path
    run, _, name = checkpoint.rpartition("/")
    return run if name[-1:].isdigit() else checkpoint


def restore(
    item: ForeignItem,
    target: Any = None,
    restore_args: Any = None,
    *,
    strict: bool = True,
    cast: str = "same_kind",
    reads_placeholders: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """The value of one item; see `milepost._foreign.restore`."""
    if item.kind in ("json", "metrics"):
        file = "metrics" if item.kind == "metrics" else "metadata"
        return orbax.json_value(Place(item.path), file)
    if item.kind == "files":
        raise foreign(
            "item was written by a handler that only its own program knows",
            "read its files below `path` with that handler",
            path=item.path,
            item=item.name,
            handler=item.handler or "not named",
        )
    ocp = installed(item)
    try:
        if item.kind == "tree":
            if strict and reads_placeholders and target is not None:
                target = _filled(ocp, item, target)
            return _tree(ocp, item, target, restore_args, strict, cast, dict(options or {}))
        if item.kind == "array":
            return _array(ocp, item, target, restore_args)
        return _random_key(ocp, item)
    except Exception as error:
        error.add_note(f"while reading the Orbax item `{item.name or '(root)'}` at {item.path}")
        raise


def _tree(
    ocp: Any,
    item: ForeignItem,
    target: Any,
    restore_args: Any,
    strict: bool,
    cast: str,
    options: dict[str, Any],
) -> Any:
    stored = _metadata(ocp, item)
    if strict and target is not None and stored is not None:
        compare(_stored_leaves(item, stored), target, item.path, item.name, cast)
    if restore_args is not None:
        restore_args = _real_restore_args(ocp, restore_args)
    elif target is not None and (strict or options.get("transforms") is not None):
        # With transforms, Orbax fails without arguments for every leaf of the target.
        restore_args = _args_of_target(ocp, target, strict=strict)
    elif strict and stored is not None:
        restore_args = _args_of_numpy(ocp, item, stored)
    request = _request(ocp, target, restore_args, options)
    try:
        return _read(ocp, item, request)
    except ValueError:
        if restore_args is not None or stored is None or options:
            raise
        # Saved on devices that are not here: where the target says, else NumPy, is better than nothing.
        if target is not None:
            restore_args = _args_of_target(ocp, target, strict=False)
        else:
            restore_args = _args_of_numpy(ocp, item, stored)
        return _read(ocp, item, _request(ocp, target, restore_args, options))


def _filled(ocp: Any, item: ForeignItem, target: Any) -> Any:
    """The target with a stand-in of what is stored for each `...`."""
    node, leaves = flatten(target)
    if all(leaf is not ... for leaf in leaves):
        return target
    stored = _metadata(ocp, item)
    have = {} if stored is None else _stored_leaves(item, stored)
    keys = (texts(path) for path in key_paths(node))
    return rebuild(
        target,
        [
            _stand_in(have[path]) if leaf is ... and path in have else leaf
            for path, leaf in zip(keys, leaves, strict=True)
        ],
    )


def _stand_in(stored: Stored) -> Any:
    import jax
    import numpy as np

    if stored.kind == "str":
        return ""
    if stored.kind == "scalar":
        return np.zeros((), stored.dtype).item()
    if stored.kind == "key":
        # Only that it is a key counts: Orbax takes the implementation from what is stored.
        return jax.random.key(0)
    return np.broadcast_to(np.zeros((), stored.dtype), stored.shape)


def _request(ocp: Any, target: Any, restore_args: Any, options: dict[str, Any]) -> Any:
    if options.get("transforms") is not None:
        options = dict(options, transforms=_real_transforms(ocp, options["transforms"]))
    return ocp.args.PyTreeRestore(item=target, restore_args=restore_args, **options)


def _read(ocp: Any, item: ForeignItem, request: Any) -> Any:
    handler = ocp.PyTreeCheckpointHandler()
    try:
        return handler.restore(_epath(item.path), args=request)
    finally:
        handler.close()


def _metadata(ocp: Any, item: ForeignItem) -> Any:
    """The tree of Orbax's metadata of leaves; None where the checkpoint is too old to have one."""
    handler = ocp.PyTreeCheckpointHandler()
    try:
        found = handler.metadata(_epath(item.path))
    except FileNotFoundError:
        return None
    finally:
        handler.close()
    return getattr(found, "tree", found)


def _stored_leaves(item: ForeignItem, stored: Any) -> dict[tuple[str, ...], Stored]:
    """What is stored, by key path."""
    keys = random_keys(Place(item.path))
    return {
        path: Stored(
            kind=_kind_of(leaf, keys),
            shape=tuple(getattr(leaf, "shape", None) or ()),
            dtype=getattr(leaf, "dtype", None),
        )
        for path, leaf in _leaves(stored)
    }


def _kind_of(leaf: Any, keys: Mapping[str, str]) -> str:
    name = type(leaf).__name__
    if getattr(leaf, "name", None) in keys:
        return "key"
    return {"ScalarMetadata": "scalar", "StringMetadata": "str"}.get(name, "array")


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    import jax

    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(texts(path), leaf) for path, leaf in flat]


def leaves(item: ForeignItem) -> dict[tuple[str, ...], Stored] | None:
    """Kind, shape and data type of every stored leaf; None where the checkpoint is too old to say.

    Raises:
        ForeignFormat: `orbax.checkpoint` is not installed.
    """
    stored = _metadata(installed(item), item)
    return None if stored is None else _stored_leaves(item, stored)


def random_keys(place: Place) -> dict[str, str]:
    """The leaves that are typed PRNG keys: name of the parameter to its implementation."""
    below = place.child("array_metadatas")
    found: dict[str, str] = {}
    for name in below.entries():
        try:
            document = json.loads(below.child(name).read(0, 1 << 30))
            entries = [entry["array_metadata"] for entry in document["array_metadatas"]]
        except (ValueError, KeyError, TypeError):
            continue
        for entry in entries:
            implementation = (entry.get("ext_metadata") or {}).get("random_key_impl")
            if implementation:
                found[entry["param_name"]] = implementation
    return found


def _args_of_numpy(ocp: Any, item: ForeignItem, stored: Any) -> Any:
    """Restore arguments that give NumPy arrays, Python scalars, text, and JAX's keys."""
    import jax
    import numpy as np

    keys = random_keys(Place(item.path))
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def args(leaf: Any) -> Any:
        kind = _kind_of(leaf, keys)
        if kind == "key":
            return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=one)
        if kind == "array":
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.RestoreArgs(restore_type=str if kind == "str" else None)

    return jax.tree.map(args, stored)


def _args_of_target(ocp: Any, target: Any, *, strict: bool) -> Any:
    """Orbax's own arguments for a target; if strict, a shape without a sharding is JAX's."""
    import jax

    if strict:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def placed(leaf: Any) -> Any:
            if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one)
            return leaf

        target = jax.tree.map(placed, target)
    return ocp.checkpoint_utils.construct_restore_args(target)


def _real_restore_args(ocp: Any, tree: Any) -> Any:
    """Our `RestoreArgs` as Orbax's: its handlers ask for its own classes."""
    import dataclasses

    import jax

    def real(args: Any) -> Any:
        if isinstance(args, ocp.RestoreArgs):
            return args
        names = [c.__name__ for c in type(args).__mro__]
        kind = next((n for n in names if n in ("ArrayRestoreArgs", "RestoreArgs")), "RestoreArgs")
        cls = getattr(ocp, kind)
        known = {field.name for field in dataclasses.fields(cls) if field.init}
        given = {name: getattr(args, name) for name in known if hasattr(args, name)}
        return cls(**given)

    return jax.tree.map(real, tree, is_leaf=lambda leaf: hasattr(leaf, "restore_type"))


def _real_transforms(ocp: Any, tree: Any) -> Any:
    """Our `Transform` as Orbax's."""
    import jax

    names = (
        "original_key",
        "use_fallback",
        "value_fn",
        "multi_value_fn",
        "multi_value_fn_input_args",
    )

    def real(leaf: Any) -> Any:
        if type(leaf).__name__ != "Transform" or isinstance(leaf, ocp.Transform):
            return leaf
        return ocp.Transform(**{name: getattr(leaf, name) for name in names if hasattr(leaf, name)})

    return jax.tree.map(real, tree, is_leaf=lambda leaf: type(leaf).__name__ == "Transform")


def _array(ocp: Any, item: ForeignItem, target: Any, restore_args: Any) -> Any:
    import numpy as np

    if restore_args is not None:
        restore_args = _real_restore_args(ocp, restore_args)
    elif target is not None:
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    else:
        restore_args = ocp.RestoreArgs(restore_type=np.ndarray)
    handler = ocp.ArrayCheckpointHandler()
    try:
        request = ocp.args.ArrayRestore(item=target, restore_args=restore_args)
        return handler.restore(_epath(item.path), args=request)
    finally:
        handler.close()


def _random_key(ocp: Any, item: ForeignItem) -> Any:
    if Place(item.path).entries().get("jax_random_key"):
        handler, request = ocp.JaxRandomKeyCheckpointHandler(), ocp.args.JaxRandomKeyRestore()
    else:
        handler, request = ocp.NumpyRandomKeyCheckpointHandler(), ocp.args.NumpyRandomKeyRestore()
    try:
        return handler.restore(_epath(item.path), args=request)
    finally:
        handler.close()


def _epath(path: str) -> Any:
    from etils import epath

    return epath.Path(path)
