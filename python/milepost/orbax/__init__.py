"""A drop-in for `orbax.checkpoint`: change the import line, keep the code.

```python
import milepost.orbax.checkpoint as ocp          # was: import orbax.checkpoint as ocp

with ocp.CheckpointManager("run", options=ocp.CheckpointManagerOptions(max_to_keep=3)) as manager:
    manager.save(step, args=ocp.args.StandardSave(state))
    state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
```

`milepost.orbax.checkpoint` is this package. For libraries that import Orbax themselves:
`milepost.orbax.install()` before they are imported, or ``python -m milepost.orbax script.py``.
`v1`, `experimental` and `export` are imported when they are first used: they need more.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import _aliases

_aliases.alias_own_names()

from . import (  # noqa: E402
    args,
    arrays,
    checkpoint_args,
    checkpoint_managers,
    checkpoint_utils,
    checkpointers,
    future,
    handlers,
    logging,
    metadata,
    multihost,
    options,
    path,
    random_key_utils,
    test_utils,
    transform_utils,
    tree,
    type_handlers,
    utils,
)
from ._aliases import install, is_installed, real_orbax, uninstall  # noqa: E402
from ._leaf_args import ArrayRestoreArgs, RestoreArgs, SaveArgs  # noqa: E402
from ._leaf_requests import PLACEHOLDER  # noqa: E402
from ._manager_options import CheckpointManagerOptions  # noqa: E402
from .abstract_checkpoint_manager import AbstractCheckpointManager  # noqa: E402
from .checkpoint_manager import CheckpointManager  # noqa: E402
from .checkpointers import (  # noqa: E402
    AbstractCheckpointer,
    AsyncCheckpointer,
    Checkpointer,
    PyTreeCheckpointer,
    StandardCheckpointer,
)
from .future import Future  # noqa: E402
from .handlers import (  # noqa: E402
    ArrayCheckpointHandler,
    AsyncCheckpointHandler,
    BasePyTreeCheckpointHandler,
    CheckpointHandler,
    CheckpointHandlerRegistry,
    CompositeCheckpointHandler,
    CompositeOptions,
    DefaultCheckpointHandlerRegistry,
    JaxRandomKeyCheckpointHandler,
    JsonCheckpointHandler,
    NumpyRandomKeyCheckpointHandler,
    ProtoCheckpointHandler,
    PyTreeCheckpointHandler,
    StandardCheckpointHandler,
)
from .options import AsyncOptions  # noqa: E402
from .path import step  # noqa: E402
from .transform_utils import (  # noqa: E402
    RestoreTransform,
    Transform,
    apply_transformations,
    merge_trees,
)

__version__ = "0.12.8"
"""The version of `orbax.checkpoint` whose API this is."""

_LATER = ("experimental", "export", "v1")

__all__ = [
    "PLACEHOLDER",
    "AbstractCheckpointManager",
    "AbstractCheckpointer",
    "ArrayCheckpointHandler",
    "ArrayRestoreArgs",
    "AsyncCheckpointHandler",
    "AsyncCheckpointer",
    "AsyncOptions",
    "BasePyTreeCheckpointHandler",
    "CheckpointHandler",
    "CheckpointHandlerRegistry",
    "CheckpointManager",
    "CheckpointManagerOptions",
    "Checkpointer",
    "CompositeCheckpointHandler",
    "CompositeOptions",
    "DefaultCheckpointHandlerRegistry",
    "Future",
    "JaxRandomKeyCheckpointHandler",
    "JsonCheckpointHandler",
    "NumpyRandomKeyCheckpointHandler",
    "ProtoCheckpointHandler",
    "PyTreeCheckpointHandler",
    "PyTreeCheckpointer",
    "RestoreArgs",
    "RestoreTransform",
    "SaveArgs",
    "StandardCheckpointHandler",
    "StandardCheckpointer",
    "Transform",
    "apply_transformations",
    "args",
    "arrays",
    "checkpoint_args",
    "checkpoint_managers",
    "checkpoint_utils",
    "checkpointers",
    "future",
    "handlers",
    "install",
    "is_installed",
    "logging",
    "merge_trees",
    "metadata",
    "multihost",
    "options",
    "path",
    "random_key_utils",
    "real_orbax",
    "step",
    "test_utils",
    "transform_utils",
    "tree",
    "type_handlers",
    "uninstall",
    "utils",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
