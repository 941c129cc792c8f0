"""`flax.training`'s checkpoint functions over Milepost: change the import, keep the calls.

```python
from milepost.flax import checkpoints, orbax_utils
```

Flax is needed for `checkpoints` (its `serialization` and `errors` decide what a state dict is and
how a mismatch is said); its `training.checkpoints`, and with it Orbax, is never imported.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["checkpoints", "orbax_utils"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
