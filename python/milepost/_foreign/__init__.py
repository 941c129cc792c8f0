"""Checkpoints that others wrote: found by their content, read where they are, never written to.

Training must not begin at zero because an import line has changed. So whoever opens a run in which
Milepost has no step of its own asks here first:

```text
  run ──steps──▶ [ForeignStep, …] ──restore──▶ tree     managers, mp.load, the drop-ins
  run ──convert──▶ a Milepost run, every step           mp.convert, python -m milepost convert
```

Kinds are `"orbax"` (OCDBT or not, zarr2 or zarr3, v0 and v1 layouts), `"flax"` (the msgpack files
of `flax.training.checkpoints`) and `"safetensors"` (a file, a directory, several files with an
index). A name only says which step something is, never what it is; litter of unfinished saves is no
step.

Orbax's arrays are read by the installed `orbax.checkpoint`; where it is not installed,
`ForeignFormat` names the command that converts. Nothing here opens a file for writing, and no
module is imported because a checkpoint names it.
"""

from __future__ import annotations

from .convert import convert
from .found import ForeignCheckpoint, ForeignItem, ForeignStep, Kind, detect, refuse, steps
from .restore import restore

__all__ = [
    "ForeignCheckpoint",
    "ForeignItem",
    "ForeignStep",
    "Kind",
    "convert",
    "detect",
    "refuse",
    "restore",
    "steps",
]
