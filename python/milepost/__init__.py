"""Milepost: the state of a training run as plain Zarr v3, saved and restored at the speed of the disk.

    import milepost as mp

    mp.save("checkpoint", state)                      # a pytree of JAX or NumPy arrays
    state = mp.load("checkpoint")                     # as it was saved
    kernel = mp.open("checkpoint")["params/kernel"]   # one leaf; kernel[0:128] reads these rows only

`CheckpointManager` saves the steps of a run. `milepost.orbax` and `milepost.flax` are drop-ins for ``orbax.checkpoint``
and ``flax.training.checkpoints``.
"""

from __future__ import annotations

import os as _os
from typing import Any as _Any

from . import _milepost
from ._arrays import LeafOptions
from ._checkpoint import (
    Checkpoint,
    ItemIndex,
    ItemInfo,
    LeafInfo,
    LeafView,
    TreeView,
    load,
    load_async,
    open,
)
from ._errors import (
    AlreadyExists,
    Cancelled,
    Conflict,
    Corrupt,
    ForeignFormat,
    Forked,
    Internal,
    Invalid,
    ItemNotFound,
    LeafNotFound,
    MilepostError,
    Mismatch,
    NotFound,
    SaveTimeout,
    StepAlreadyExists,
    TreeMismatch,
    Unavailable,
    Unsupported,
)
from ._items import Array, Bytes, Files, Json, Tree
from ._manager import CheckpointManager, Pin, StepEntry
from ._place import Engine, Place
from ._policy import Decision, Plan, Preservation, SaveContext, SaveDecision, StepInfo
from ._save import Saved, SaveHandle, Skipped, save, save_async
from ._structure import Attr, Branch, Index, register_type
from ._together import Together

__version__ = _milepost.__version__


def convert(src: str | _os.PathLike, run: str | _os.PathLike, **options: _Any) -> list[Saved]:
    """Brings a run of Orbax, Flax or safetensors over, step by step; see `milepost._foreign.convert`."""
    from ._foreign import convert

    return convert(src, run, **options)


def import_safetensors(
    source: str | _os.PathLike,
    target: str | _os.PathLike,
    *,
    step: int | None = None,
    item: str = "state",
    split: str | None = None,
    metadata: dict[str, _Any] | None = None,
    overwrite: bool = False,
    **storage: _Any,
) -> Checkpoint:
    """Imports safetensors (a file, a directory with one, a model by its index) as a checkpoint or a step of a run.

    ``split`` is what tensor names are split at into key paths. Nothing is held in memory but what the budget allows.
    Ctrl-C cancels it: nothing is visible then.
    """
    from ._items import placed
    from ._place import place
    from ._save import finished, save_options

    options = save_options(storage, overwrite)
    where, run = place(source), place(target)
    begun = _milepost.import_safetensors(
        where, run, options, step=step, item=item, split=split, metadata=metadata
    )
    try:
        saved = finished(SaveHandle(begun), "import", False)
    except MilepostError as error:
        raise placed(error, source=str(where)) from error.__cause__
    return open(saved.url)


__all__ = [
    "AlreadyExists",
    "Array",
    "Attr",
    "Branch",
    "Bytes",
    "Cancelled",
    "Checkpoint",
    "CheckpointManager",
    "Conflict",
    "Corrupt",
    "Decision",
    "Engine",
    "Files",
    "ForeignFormat",
    "Forked",
    "Index",
    "Internal",
    "Invalid",
    "ItemIndex",
    "ItemInfo",
    "ItemNotFound",
    "Json",
    "LeafInfo",
    "LeafNotFound",
    "LeafOptions",
    "LeafView",
    "MilepostError",
    "Mismatch",
    "NotFound",
    "Pin",
    "Place",
    "Plan",
    "Preservation",
    "SaveContext",
    "SaveDecision",
    "SaveHandle",
    "SaveTimeout",
    "Saved",
    "Skipped",
    "StepAlreadyExists",
    "StepEntry",
    "StepInfo",
    "Together",
    "Tree",
    "TreeMismatch",
    "TreeView",
    "Unavailable",
    "Unsupported",
    "convert",
    "import_safetensors",
    "load",
    "load_async",
    "open",
    "register_type",
    "save",
    "save_async",
]
