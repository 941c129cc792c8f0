"""Milepost behind the v1 API of Orbax: `import milepost.orbax.checkpoint.v1 as ocp`.

```python
ocp.save("/ckpt", state)                      # a pytree, committed when this returns
state = ocp.load("/ckpt", abstract_state)     # as the abstract tree says
response = ocp.save_async("/ckpt", state)     # returns once captured; response.result()
with ocp.training.Checkpointer("/run") as ckptr:
    ckptr.save(step, state)
```

`milepost.orbax.experimental.v1` is this module.
"""

from __future__ import annotations

from milepost.orbax.v1 import (
    arrays,
    errors,
    handlers,
    multihost,
    options,
    partial,
    path,
    training,
    tree,
)
from milepost.orbax.v1._context import Context
from milepost.orbax.v1._deletion import delete, delete_async
from milepost.orbax.v1._deprecated import (
    load_pytree,
    load_pytree_async,
    pytree_metadata,
    save_pytree,
    save_pytree_async,
)
from milepost.orbax.v1._loading import (
    PLACEHOLDER,
    load,
    load_async,
    load_checkpointables,
    load_checkpointables_async,
)
from milepost.orbax.v1._metadata import (
    CheckpointMetadata,
    PyTreeMetadata,
    checkpointables_metadata,
    metadata,
)
from milepost.orbax.v1._operation import AsyncResponse
from milepost.orbax.v1._saving import (
    save,
    save_async,
    save_checkpointables,
    save_checkpointables_async,
)
from milepost.orbax.v1._source import is_orbax_checkpoint
from milepost.orbax.v1.handlers import (
    AbstractCheckpointable,
    Checkpointable,
    CheckpointableHandler,
    StatefulCheckpointable,
)

__all__ = [
    "AbstractCheckpointable",
    "AsyncResponse",
    "CheckpointMetadata",
    "Checkpointable",
    "CheckpointableHandler",
    "Context",
    "PLACEHOLDER",
    "PyTreeMetadata",
    "StatefulCheckpointable",
    "arrays",
    "checkpointables_metadata",
    "delete",
    "delete_async",
    "errors",
    "handlers",
    "is_orbax_checkpoint",
    "load",
    "load_async",
    "load_checkpointables",
    "load_checkpointables_async",
    "load_pytree",
    "load_pytree_async",
    "metadata",
    "multihost",
    "options",
    "partial",
    "path",
    "pytree_metadata",
    "save",
    "save_async",
    "save_checkpointables",
    "save_checkpointables_async",
    "save_pytree",
    "save_pytree_async",
    "training",
    "tree",
]
