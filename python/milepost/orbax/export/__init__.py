"""Serving export by `orbax.export`'s names: one checkpoint, called without the model's code.

```python
from milepost.orbax.export import ExportManager, JaxModule, ServingConfig, load

inputs = [jax.ShapeDtypeStruct((None, 32), "float32")]
config = ServingConfig("serving_default", input_signature=inputs)
ExportManager(JaxModule(params, apply_fn), [config]).save("/models/7")
load("/models/7")(inputs)
```

A TF SavedModel is written by `orbax.export` itself, where it and TensorFlow are installed:
`JaxModule(…, export_version=ExportModelType.TF_SAVEDMODEL)`.
"""

from __future__ import annotations

from . import constants
from .constants import ExportModelType
from .export_manager import ExportManager
from .exported_model import ExportedModel, ServingFunction, load
from .jax_module import JaxModule
from .serving_config import ServingConfig

__all__ = [
    "ExportManager",
    "ExportModelType",
    "ExportedModel",
    "JaxModule",
    "ServingConfig",
    "ServingFunction",
    "constants",
    "load",
]
