"""Random keys in trees. They need no help here: a typed PRNG key is a leaf like any other."""

from __future__ import annotations

from typing import Any

from ._leaf_requests import is_prng_key
from ._targets import flatten_target

__all__ = ["is_prng_key", "key_data_tree", "wrap_key_data_tree"]


def key_data_tree(tree: Any) -> tuple[Any, dict[tuple[str, ...], str]]:
    """The tree with the data of typed keys in their place, and their implementations by path."""
    import jax

    flat = flatten_target(tree)
    keys = {path: leaf for path, leaf in flat.leaves.items() if is_prng_key(leaf)}
    values = {**flat.leaves, **{path: jax.random.key_data(key) for path, key in keys.items()}}
    return flat.rebuild(values), {p: str(jax.random.key_impl(key)) for p, key in keys.items()}


def wrap_key_data_tree(tree: Any, implementations: dict[tuple[str, ...], str]) -> Any:
    """The way back of `key_data_tree`."""
    import jax

    flat = flatten_target(tree)
    values = dict(flat.leaves)
    for path, name in implementations.items():
        values[path] = jax.random.wrap_key_data(values[path], impl=name)
    return flat.rebuild(values)
