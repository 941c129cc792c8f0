"""Args: what a checkpointer or manager is asked to save or restore, and in which way."""

from ._composite import CompositeArgs as Composite
from .checkpoint_args import (
    CheckpointArgs,
    get_registered_args_cls,
    get_registered_handler_cls,
    has_registered_args,
    register_with_handler,
)
from .handlers.array import ArrayRestoreArgs as ArrayRestore
from .handlers.array import ArraySaveArgs as ArraySave
from .handlers.json_values import JsonRestoreArgs as JsonRestore
from .handlers.json_values import JsonSaveArgs as JsonSave
from .handlers.proto import ProtoRestoreArgs as ProtoRestore
from .handlers.proto import ProtoSaveArgs as ProtoSave
from .handlers.pytree import PyTreeRestoreArgs as PyTreeRestore
from .handlers.pytree import PyTreeSaveArgs as PyTreeSave
from .handlers.pytree import StandardRestoreArgs as StandardRestore
from .handlers.pytree import StandardSaveArgs as StandardSave
from .handlers.random_keys import JaxRandomKeyRestoreArgs as JaxRandomKeyRestore
from .handlers.random_keys import JaxRandomKeySaveArgs as JaxRandomKeySave
from .handlers.random_keys import NumpyRandomKeyRestoreArgs as NumpyRandomKeyRestore
from .handlers.random_keys import NumpyRandomKeySaveArgs as NumpyRandomKeySave

__all__ = [
    "ArrayRestore",
    "ArraySave",
    "CheckpointArgs",
    "Composite",
    "JaxRandomKeyRestore",
    "JaxRandomKeySave",
    "JsonRestore",
    "JsonSave",
    "NumpyRandomKeyRestore",
    "NumpyRandomKeySave",
    "ProtoRestore",
    "ProtoSave",
    "PyTreeRestore",
    "PyTreeSave",
    "StandardRestore",
    "StandardSave",
    "get_registered_args_cls",
    "get_registered_handler_cls",
    "has_registered_args",
    "register_with_handler",
]
