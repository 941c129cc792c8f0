"""Names of `orbax.export.constants` that callers use."""

from __future__ import annotations

import enum

#: The method key of a `JaxModule` with a single `apply_fn`.
DEFAULT_METHOD_KEY = "jax_module_default_method"


class ExportModelType(enum.Enum):
    """What `ExportManager.save` writes."""

    MILEPOST = "milepost"
    """One checkpoint: parameters, StableHLO, serving configuration. The default; needs JAX only."""
    TF_SAVEDMODEL = "tf_savedmodel"
    """A TF SavedModel; needs `orbax.export` and TensorFlow."""
    ORBAX_MODEL = "orbax_model"
    """An Orbax Model; needs `orbax.export` and TensorFlow."""
