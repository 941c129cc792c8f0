"""Handlers of checkpointables, and their registries.

The global registry has, in this order (later ones go first where several fit): `ProtoHandler`,
`JsonHandler`, the handler of `StatefulCheckpointable` objects, `PyTreeHandler`; by name: `metrics`
and `state`.
"""

from __future__ import annotations

from milepost.orbax.v1.handlers._json import JsonHandler, MetricsHandler
from milepost.orbax.v1.handlers._proto import ProtoHandler
from milepost.orbax.v1.handlers._protocol import (
    AbstractCheckpointable,
    Checkpointable,
    CheckpointableHandler,
    StatefulCheckpointable,
)
from milepost.orbax.v1.handlers._pytree import PyTreeHandler
from milepost.orbax.v1.handlers._registry import (
    CheckpointableHandlerRegistry,
    global_registry,
    local_registry,
    register_handler,
)
from milepost.orbax.v1.handlers._stateful import StatefulCheckpointableHandler

_ORBAX_V0 = ("orbax.checkpoint._src.handlers.", "milepost.orbax.handlers.")


def _v0(module: str, name: str) -> list[str]:
    """The names that v0 checkpoints remember a handler class by, Orbax's and ours."""
    return [f"{prefix}{module}.{name}" for prefix in _ORBAX_V0]


def _v1(module: str, name: str) -> list[str]:
    return [f"orbax.checkpoint.experimental.v1._src.handlers.{module}.{name}"]


def _register_defaults() -> None:
    registry = global_registry()
    registry.add(
        ProtoHandler,
        secondary_typestrs=_v1("proto_handler", "ProtoHandler")
        + _v0("proto_checkpoint_handler", "ProtoCheckpointHandler"),
    )
    registry.add(
        JsonHandler,
        secondary_typestrs=_v1("json_handler", "JsonHandler")
        + _v0("json_checkpoint_handler", "JsonCheckpointHandler"),
    )
    registry.add(
        StatefulCheckpointableHandler,
        secondary_typestrs=_v1("stateful_checkpointable_handler", "StatefulCheckpointableHandler"),
    )
    registry.add(MetricsHandler, checkpointable_name="metrics")
    registry.add(
        PyTreeHandler,
        secondary_typestrs=_v1("pytree_handler", "PyTreeHandler")
        + _v0("pytree_checkpoint_handler", "PyTreeCheckpointHandler")
        + _v0("standard_checkpoint_handler", "StandardCheckpointHandler"),
    )
    registry.add(PyTreeHandler, checkpointable_name="state")


_register_defaults()

__all__ = [
    "AbstractCheckpointable",
    "Checkpointable",
    "CheckpointableHandler",
    "CheckpointableHandlerRegistry",
    "JsonHandler",
    "ProtoHandler",
    "PyTreeHandler",
    "StatefulCheckpointable",
    "global_registry",
    "local_registry",
    "register_handler",
]
