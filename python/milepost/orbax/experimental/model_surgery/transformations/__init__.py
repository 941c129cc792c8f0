"""Functions that make a `Transformation`: a function from a flat dict of arrays to another tree.

| Module | Makes |
|---|---|
| `renaming` | other names, by regular expressions |
| `nesting` | nested dicts of names with a separator |
| `stacking` | one array of numbered ones |
| `fusing` | one array of named ones, joined along an axis |
| `repeating` | arrays with repeated elements |

NumPy arrays stay NumPy arrays; `jax.Array`s stay on their devices.
"""

from __future__ import annotations

from milepost.orbax.experimental.model_surgery.transformations import (
    fusing,
    nesting,
    renaming,
    repeating,
    stacking,
    types,
)

__all__ = ["fusing", "nesting", "renaming", "repeating", "stacking", "types"]
