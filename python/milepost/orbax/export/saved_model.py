"""The way to TensorFlow: Orbax's own `orbax.export`, where it and TensorFlow are installed."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from ..._errors import Unsupported
from .jax_module import JaxModule
from .serving_config import ServingConfig


def manager(module: JaxModule, configs: list[ServingConfig]) -> Any:
    """Orbax's `ExportManager` for our module and configurations.

    Raises:
        Unsupported: `orbax.export` or TensorFlow is not installed.
    """
    real = _installed(module)
    version = getattr(real.constants.ExportModelType, module.export_version.name)
    given = {name: value for name, value in module.others.items() if value is not None}
    functions = module.apply_fn_map
    shapes = module.input_polymorphic_shape_map
    single = len(functions) == 1
    theirs = real.JaxModule(
        module.model_params,
        next(iter(functions.values())) if single else functions,
        trainable=module.trainable,
        input_polymorphic_shape=next(iter(shapes.values())) if single else shapes,
        export_version=version,
        **given,
    )
    return real.ExportManager(theirs, [_config(real, config) for config in configs])


def _config(real: Any, config: ServingConfig) -> Any:
    known = {field.name for field in dataclasses.fields(real.ServingConfig)}
    given = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    }
    unknown = sorted(given.keys() - known)
    if unknown:
        raise Unsupported(
            f"the installed orbax.export does not know: {', '.join(unknown)}",
            hint="pip install -U orbax-export",
        )
    return real.ServingConfig(**given)


def _installed(module: JaxModule) -> Any:
    """The installed `orbax.export`; ours, which may stand in its place, is none.

    Raises:
        Unsupported: it or TensorFlow is not installed.
    """
    name = "tensorflow"
    try:
        import tensorflow  # noqa: F401 - what Orbax would fail on, later and with less to say

        name = "orbax.export"
        import orbax.export

        found = sys.modules[name]
    except ImportError as cause:
        raise _missing(name, module) from cause
    if found.__name__.startswith("milepost."):
        raise _missing(name, module)
    return found


def _missing(name: str, module: JaxModule) -> Unsupported:
    return Unsupported(
        f"{module.export_version} needs {name}, which is not installed",
        hint="pip install orbax-export tensorflow; or leave out export_version: a Milepost export "
        "needs JAX only",
    )
