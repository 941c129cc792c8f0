"""`flax.training.orbax_utils` for `milepost.orbax`: what to say of each leaf when saving and
restoring.
"""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

__all__ = [
    "is_multi_device_array",
    "maybe_construct_transformations",
    "restore_args_from_target",
    "save_args_from_target",
]


def is_multi_device_array(value: Any) -> bool:
    """Whether a value is a JAX array that no single device holds whole."""
    return isinstance(value, jax.Array) and not value.is_fully_replicated


def save_args_from_target(target: Any) -> Any:
    """A `SaveArgs` for each leaf of a target."""
    from .. import orbax as ocp

    return jax.tree_util.tree_map(lambda _: ocp.SaveArgs(), target)


def restore_args_from_target(target: Any, mesh: jax.sharding.Mesh | None = None) -> Any:
    """A `RestoreArgs` for each leaf of a target.

    Where no leaf has a sharding, arrays and numbers come back as NumPy arrays, texts as they are
    (Flax asks for arrays there, too, which fails). Else each leaf comes back as what it is in the
    target: JAX arrays with their sharding and the stored shape.

    Args:
        target: a tree like the checkpoint's.
        mesh: other devices for the target's partition specs; deprecated, as in Flax.
    """
    from .. import orbax as ocp

    shardings = jax.tree_util.tree_map(lambda leaf: getattr(leaf, "sharding", None), target)
    if not jax.tree_util.tree_leaves(shardings):
        return jax.tree_util.tree_map(
            lambda leaf: ocp.RestoreArgs(
                restore_type=type(leaf) if isinstance(leaf, str | bytes) else np.ndarray
            ),
            target,
        )
    if mesh is not None:
        warnings.warn(
            "restore_args_from_target(mesh=…) is deprecated: make the target's arrays with it",
            DeprecationWarning,
            stacklevel=2,
        )
        shardings = jax.tree_util.tree_map(
            lambda sharding: jax.sharding.NamedSharding(mesh, sharding.spec), shardings
        )
    return ocp.checkpoint_utils.construct_restore_args(target, shardings, set_global_shape=False)


def maybe_construct_transformations(
    target: Any, transforms: dict[str, Any] | None
) -> dict[str, Any]:
    """The transformations given, else those that keep the target's value where it is None."""
    if transforms is not None:
        return transforms
    from .. import orbax as ocp

    flat = ocp.utils.to_flat_dict(target, sep="/", keep_empty_nodes=True)
    return {key: ocp.Transform(use_fallback=True) for key, value in flat.items() if value is None}
