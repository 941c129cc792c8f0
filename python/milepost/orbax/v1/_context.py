"""The active `Context`: options that hold for every call inside its `with` block.

One context variable holds the active context: threads do not inherit it, tasks do. Entering a
context freezes it and its options by identity (`options.FROZEN_IDS`); leaving thaws them.
"""

from __future__ import annotations

import contextvars
import copy
import dataclasses
import typing
import warnings
from typing import Any

from milepost.orbax.v1 import options as options_lib

_ACTIVE: contextvars.ContextVar["Context | None"] = contextvars.ContextVar(
    "milepost_orbax_v1_context", default=None
)

# Tokens of the blocks entered: a variable, so that threads and tasks never pop each other's.
_ENTERED: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar(
    "milepost_orbax_v1_entered", default=()
)

# Member of Context -> (keyword of the constructor, class of the options).
_MEMBERS: dict[str, tuple[str, type]] = {
    "pytree": ("pytree_options", options_lib.PyTreeOptions),
    "array": ("array_options", options_lib.ArrayOptions),
    "asynchronous": ("async_options", options_lib.AsyncOptions),
    "multiprocessing": ("multiprocessing_options", options_lib.MultiprocessingOptions),
    "file": ("file_options", options_lib.FileOptions),
    "checkpointables": ("checkpointables_options", options_lib.CheckpointablesOptions),
    "pathways": ("pathways_options", options_lib.PathwaysOptions),
    "deletion": ("deletion_options", options_lib.DeletionOptions),
    "memory": ("memory_options", options_lib.MemoryOptions),
    "safetensors": ("safetensors_options", options_lib.SafetensorsOptions),
    "atomicity": ("atomicity_options", options_lib.AtomicityOptions),
}


def get_context(default: "Context | None" = None) -> "Context":
    """Returns the active context, else `default`, else a new one with default options."""
    active = _ACTIVE.get()
    if active is not None:
        return active
    return default if default is not None else Context()


@typing.final
class Context:
    """Options for saving and loading, active inside a `with` block.

    Example:
      >>> ctx = ocp.Context()
      >>> ctx.pytree.loading.partial_load = True
      >>> with ctx:
      ...     ocp.load(path, {"params": abstract_params})

    `Context(parent)` starts from a copy of the parent's options; without a parent all options are
    the defaults, also inside another context's block. An active context cannot be changed
    (`RuntimeError`). Threads start without one; tasks and awaited calls inherit theirs.

    Attributes: array, asynchronous, atomicity, checkpointables, deletion, file, memory,
      multiprocessing, pathways, pytree, safetensors (see `options`), checkpoint_layout.
    """

    array: options_lib.ArrayOptions
    asynchronous: options_lib.AsyncOptions
    atomicity: options_lib.AtomicityOptions
    checkpointables: options_lib.CheckpointablesOptions
    deletion: options_lib.DeletionOptions
    file: options_lib.FileOptions
    memory: options_lib.MemoryOptions
    multiprocessing: options_lib.MultiprocessingOptions
    pathways: options_lib.PathwaysOptions
    pytree: options_lib.PyTreeOptions
    safetensors: options_lib.SafetensorsOptions

    def __init__(
        self,
        context: "Context | None" = None,
        *,
        checkpoint_layout: options_lib.CheckpointLayout | str | None = None,
        **option_objects: Any,
    ):
        keywords = {keyword for keyword, _ in _MEMBERS.values()}
        unknown = sorted(set(option_objects) - keywords)
        if unknown:
            raise TypeError(
                f"Context() got an unexpected keyword argument {unknown[0]!r}; "
                f"it takes checkpoint_layout, {', '.join(sorted(keywords))}"
            )
        if any(value is not None for value in option_objects.values()):
            warnings.warn(
                "passing option objects to Context() is deprecated: set members instead, as in "
                "`ctx.array.saving.use_compression = False`",
                DeprecationWarning,
                stacklevel=2,
            )
        for member, (keyword, kind) in _MEMBERS.items():
            given = option_objects.get(keyword)
            if given is None and context is not None:
                given = getattr(context, member)
            # A copy: neither the caller's object nor the parent's may change under us.
            object.__setattr__(
                self, "_" + member, copy.deepcopy(given) if given is not None else kind()
            )
        if checkpoint_layout is None and context is not None:
            checkpoint_layout = context.checkpoint_layout
        if checkpoint_layout is None:
            checkpoint_layout = options_lib.CheckpointLayout.ORBAX
        self._checkpoint_layout = options_lib.CheckpointLayout(checkpoint_layout)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _MEMBERS or name in {keyword for keyword, _ in _MEMBERS.values()}:
            raise AttributeError(
                f"Context.{name} cannot be replaced; set its members, or pass it to Context()"
            )
        object.__setattr__(self, name, value)

    @property
    def checkpoint_layout(self) -> options_lib.CheckpointLayout:
        """What paths hold: ORBAX (checkpoints), SAFETENSORS or AUTO; text is taken too."""
        return self._checkpoint_layout

    @checkpoint_layout.setter
    def checkpoint_layout(self, value: options_lib.CheckpointLayout | str) -> None:
        if id(self) in options_lib.FROZEN_IDS.get():
            raise RuntimeError(
                "Cannot mutate an active Context: set checkpoint_layout before entering the "
                "`with` block."
            )
        self._checkpoint_layout = options_lib.CheckpointLayout(value)

    def __enter__(self) -> "Context":
        frozen = options_lib.FROZEN_IDS.set(options_lib.FROZEN_IDS.get() | _identities(self))
        _ENTERED.set((*_ENTERED.get(), (_ACTIVE.set(self), frozen)))
        return self

    def __exit__(self, *exc: Any) -> None:
        *outer, (active, frozen) = _ENTERED.get()
        _ENTERED.set(tuple(outer))
        _ACTIVE.reset(active)
        options_lib.FROZEN_IDS.reset(frozen)


def _member_property(name: str) -> property:
    return property(lambda self: getattr(self, "_" + name), doc=f"See `options`: {name}.")


for _name, (_keyword, _kind) in _MEMBERS.items():
    setattr(Context, _name, _member_property(_name))
    # The older spelling: ctx.array_options for ctx.array.
    setattr(Context, _keyword, _member_property(_name))


def _identities(context: Context) -> frozenset[int]:
    """Returns the identities of a context and of all option objects in it."""
    found = {id(context)}

    def visit(value: Any) -> None:
        if id(value) in found or isinstance(value, type):
            return
        if dataclasses.is_dataclass(value):
            found.add(id(value))
            for field in dataclasses.fields(value):
                visit(getattr(value, field.name))

    for member in _MEMBERS:
        visit(getattr(context, member))
    return frozenset(found)
