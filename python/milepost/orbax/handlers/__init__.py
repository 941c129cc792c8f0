"""Handlers: what saves and restores one item. See `base` for what a handler is."""

from .._composite import CompositeArgs, CompositeResults
from . import registry as handler_registration
from .array import ArrayCheckpointHandler, ArrayRestoreArgs, ArraySaveArgs
from .base import AsyncCheckpointHandler, CheckpointHandler
from .composite import CompositeCheckpointHandler, CompositeOptions
from .json_values import JsonCheckpointHandler, JsonRestoreArgs, JsonSaveArgs
from .proto import ProtoCheckpointHandler, ProtoRestoreArgs, ProtoSaveArgs
from .pytree import (
    BasePyTreeCheckpointHandler,
    PyTreeCheckpointHandler,
    PyTreeRestoreArgs,
    PyTreeSaveArgs,
    StandardCheckpointHandler,
    StandardRestoreArgs,
    StandardSaveArgs,
)
from .random_keys import (
    JaxRandomKeyCheckpointHandler,
    JaxRandomKeyRestoreArgs,
    JaxRandomKeySaveArgs,
    NumpyRandomKeyCheckpointHandler,
    NumpyRandomKeyRestoreArgs,
    NumpyRandomKeySaveArgs,
)
from .registry import (
    AlreadyExistsError,
    CheckpointHandlerRegistry,
    DefaultCheckpointHandlerRegistry,
    NoEntryError,
    create_default_handler_registry,
)

__all__ = [
    "AlreadyExistsError",
    "ArrayCheckpointHandler",
    "ArrayRestoreArgs",
    "ArraySaveArgs",
    "AsyncCheckpointHandler",
    "BasePyTreeCheckpointHandler",
    "CheckpointHandler",
    "CheckpointHandlerRegistry",
    "CompositeArgs",
    "CompositeCheckpointHandler",
    "CompositeOptions",
    "CompositeResults",
    "DefaultCheckpointHandlerRegistry",
    "JaxRandomKeyCheckpointHandler",
    "JaxRandomKeyRestoreArgs",
    "JaxRandomKeySaveArgs",
    "JsonCheckpointHandler",
    "JsonRestoreArgs",
    "JsonSaveArgs",
    "NoEntryError",
    "NumpyRandomKeyCheckpointHandler",
    "NumpyRandomKeyRestoreArgs",
    "NumpyRandomKeySaveArgs",
    "ProtoCheckpointHandler",
    "ProtoRestoreArgs",
    "ProtoSaveArgs",
    "PyTreeCheckpointHandler",
    "PyTreeRestoreArgs",
    "PyTreeSaveArgs",
    "StandardCheckpointHandler",
    "StandardRestoreArgs",
    "StandardSaveArgs",
    "create_default_handler_registry",
    "handler_registration",
]
