"""Parts of `orbax.checkpoint.experimental`: the v1 API and transformations of models.

`milepost.orbax.experimental.v1` is `milepost.orbax.v1`, also for its submodules: one module, two
names, so that a class is the same class under both.
"""

from __future__ import annotations

import sys

from milepost.orbax import v1
from milepost.orbax.experimental import model_surgery


def _alias() -> None:
    for name, module in list(sys.modules.items()):
        if name == v1.__name__ or name.startswith(v1.__name__ + "."):
            sys.modules[f"{__name__}.v1{name[len(v1.__name__):]}"] = module


_alias()

__all__ = ["model_surgery", "v1"]
