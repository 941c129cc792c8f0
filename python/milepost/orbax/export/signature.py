"""Input signatures: what a caller says of the inputs, as JAX's shapes with symbolic dimensions.

A dimension of None becomes a symbol: the leading ones of all inputs are one, `batch`, every other
has its own (`d0_1`: input 0, axis 1). `input_polymorphic_shape` names them otherwise, in JAX's
notation (`"b, t, ..."`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..._errors import Invalid


def arguments(signature: Any, polymorphic: Any, where: str) -> tuple[Any, ...]:
    """The arguments of a function to be exported, as trees of `jax.ShapeDtypeStruct`.

    Args:
        signature: one entry an argument; a tree that is no list or tuple is the one argument.
        polymorphic: JAX's shape specifications: one text for all, one entry an argument, or a
            prefix of the one argument's tree; None where the signature says all.
        where: names the signature in errors.

    Raises:
        Invalid: an entry has no shape and data type, or the specification does not fit.
    """
    import jax
    from jax import export

    given = tuple(signature) if isinstance(signature, (list, tuple)) else (signature,)
    leaves, treedef = jax.tree.flatten(given, is_leaf=_is_spec)
    wanted = _specifications(given, polymorphic, where)
    shapes, texts = [], []
    for number, (leaf, text) in enumerate(zip(leaves, wanted, strict=True)):
        shape, dtype = _shape_and_dtype(leaf, where)
        texts.append(_symbols(shape, number) if text is None else text)
        shapes.append(jax.ShapeDtypeStruct([1 if size is None else size for size in shape], dtype))
    try:
        made = export.symbolic_args_specs(shapes, texts)
    except ValueError as error:
        raise Invalid(
            f"the polymorphic shape does not fit the inputs: {error}",
            context={"signature": where},
            hint='one specification an input, e.g. input_polymorphic_shape="b, ..."',
        ) from error
    return jax.tree.unflatten(treedef, made)


def _is_spec(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _specifications(given: tuple[Any, ...], polymorphic: Any, where: str) -> list[str | None]:
    """One specification a leaf; None where the signature's own shape is it."""
    import jax

    counts = [len(jax.tree.leaves(entry, is_leaf=_is_spec)) for entry in given]
    if polymorphic is None or isinstance(polymorphic, str):
        return [polymorphic] * sum(counts)
    if len(given) == 1 and not (isinstance(polymorphic, (list, tuple)) and len(polymorphic) == 1):
        polymorphic = (polymorphic,)
    if not isinstance(polymorphic, (list, tuple)) or len(polymorphic) != len(given):
        raise Invalid(
            "`input_polymorphic_shape` is not one entry an argument, of which there are "
            f"{len(given)}",
            context={"signature": where},
        )
    found: list[str | None] = []
    for entry, specification in zip(given, polymorphic, strict=True):
        try:
            spread = jax.tree.broadcast(
                specification, entry, is_leaf=lambda leaf: leaf is None or isinstance(leaf, str)
            )
        except ValueError as error:
            raise Invalid(
                f"`input_polymorphic_shape` is no prefix of the inputs: {error}",
                context={"signature": where},
            ) from error
        found.extend(jax.tree.leaves(spread, is_leaf=lambda leaf: leaf is None))
    return found


def _shape_and_dtype(leaf: Any, where: str) -> tuple[tuple[int | None, ...], Any]:
    """Shape and data type of an entry: an array, a struct of JAX's, or a `tf.TensorSpec`."""
    if isinstance(leaf, (bool, int, float, complex)):
        leaf = np.asarray(leaf)
    if not _is_spec(leaf):
        raise Invalid(
            f"an input of type {type(leaf).__name__} has no shape and data type",
            context={"signature": where},
            hint="use jax.ShapeDtypeStruct(shape, dtype)",
        )
    sizes = leaf.shape.as_list() if hasattr(leaf.shape, "as_list") else leaf.shape
    return tuple(sizes), getattr(leaf.dtype, "as_numpy_dtype", leaf.dtype)


def _symbols(shape: Sequence[Any], number: int) -> str | None:
    """The specification of a shape that has unknown sizes; None where it has none."""
    if all(isinstance(size, (int, np.integer)) for size in shape):
        return None
    return ", ".join(
        ("batch" if axis == 0 else f"d{number}_{axis}") if size is None else str(size)
        for axis, size in enumerate(shape)
    )


def described(tree: Any) -> Any:
    """A tree of shapes as JSON: `{"shape": ["batch", 32], "dtype": "float32"}` for an array."""
    import jax

    def text(leaf: Any) -> dict[str, Any]:
        sizes = [size if isinstance(size, int) else str(size) for size in leaf.shape]
        return {"shape": sizes, "dtype": str(leaf.dtype)}

    return jax.tree.map(text, plain(tree))


def plain(tree: Any) -> Any:
    """Dicts, lists and tuples instead of all other containers: what exported functions can take.

    Named tuples, dataclasses and registered nodes become dicts by the names of their fields.
    """
    from ..._structure import Branch, flatten, key_text

    node, leaves = flatten(tree, is_leaf=_is_spec)

    def build(node: Any) -> Any:
        if node is None:
            return None
        if not isinstance(node, Branch):
            return leaves[node]
        children = [build(child) for child in node.children]
        if node.kind == "list":
            return children
        if node.kind == "tuple":
            return tuple(children)
        return {key_text(key): child for key, child in zip(node.keys, children, strict=True)}

    return build(node)
