"""Steps that Orbax, Flax or safetensors left at a manager's path: listed and restored, never
written.

They count while the run has no step of Milepost's own, so that a changed import line does not
restart training; one that is asked for by its number is restored as long as it is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import milepost as mp

from . import _bridge
from ._run_path import is_local
from ._composite import CompositeArgs

_PYTREE_OPTIONS = (
    "transforms",
    "transforms_default_to_original",
    "legacy_transform_fn",
    "partial_restore",
)


class ForeignSteps:
    """The steps of other libraries in a run."""

    def __init__(self, url: str, prefix: str | None) -> None:
        """`prefix` is the whole text before the number; None takes all names."""
        self.url = url
        self._prefix = prefix
        self._listed: dict[int, Any] | None = None

    def steps(self) -> list[int]:
        """Returns their numbers, ascending, as last listed."""
        return list(self._all())

    def may_be_any(self) -> bool:
        """Tells, by a look at names alone, whether the run may have any; a remote one always
        may."""
        if not is_local(self.url):
            return True
        try:
            with os.scandir(self.url) as entries:
                return any(_may_be_foreign(entry) for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def forget(self) -> None:
        """Has them listed again when they are next asked for."""
        self._listed = None

    def get(self, step: int) -> Any | None:
        """Returns a step's checkpoint; None where it is not there."""
        found = self._all().get(step)
        return None if found is None else found.checkpoint()

    def metrics(self) -> dict[int, Any]:
        """Returns the metrics of those that have any."""
        metrics = {step: found.checkpoint().metrics for step, found in self._all().items()}
        return {step: value for step, value in metrics.items() if value is not None}

    def _all(self) -> dict[int, Any]:
        if self._listed is None:
            from milepost import _foreign

            found = _foreign.steps(self.url, prefix=self._prefix)
            self._listed = {f.step: f for f in found if isinstance(f.step, int)}
        return self._listed


def open_step(
    open_ours: Callable[[int | None], mp.Checkpoint], theirs: ForeignSteps, step: int | None
) -> tuple[mp.Checkpoint | None, Any | None]:
    """Opens a step of ours (None: the newest), or finds another library's: one of both is None.

    Raises:
      NotFound: neither is there.
    """
    try:
        return open_ours(step), None
    except (mp.NotFound, mp.Corrupt, mp.ForeignFormat) as error:
        # A step of another library is damaged to us: it has no record.
        steps = theirs.steps()
        wanted = steps[-1] if step is None and steps else step
        found = None if wanted is None else theirs.get(wanted)
        if found is not None:
            return None, found
        if step is None and isinstance(error, mp.NotFound) and error.__cause__ is None:
            raise mp.NotFound(f"No steps found in {theirs.url}: {error}") from None
        raise


def _may_be_foreign(entry: os.DirEntry[str]) -> bool:
    if entry.is_dir():
        is_step = entry.name[-1:].isdigit()
        return is_step and not os.path.exists(os.path.join(entry.path, "zarr.json"))
    return any(c.isdigit() for c in entry.name)


def is_default(checkpoint: Any) -> bool:
    """Tells whether a foreign checkpoint is one thing, not items by name."""
    return any(name in checkpoint.items for name in ("", _bridge.DEFAULT_ITEM))


def restore(checkpoint: Any, args: Any | None, default: bool) -> Any:
    """Restores a foreign checkpoint as the manager's args ask.

    Args:
      checkpoint: a `ForeignCheckpoint`.
      args: RestoreArgs of the one item, a Composite, or None: all as saved.
      default: whether one thing is wanted, not items by name.

    Raises:
      ItemNotFound: an item is not there.
      ForeignFormat: what reads it is not installed.
    """
    if default:
        name = "" if "" in checkpoint.items else _bridge.DEFAULT_ITEM
        return _item(checkpoint, name, args)
    wanted: Mapping[str, Any]
    wanted = args if args is not None and len(args) else dict.fromkeys(sorted(checkpoint.items))
    return CompositeArgs(**{name: _item(checkpoint, name, wanted[name]) for name in wanted})


def _item(checkpoint: Any, name: str, args: Any | None) -> Any:
    from milepost import _foreign

    target = getattr(args, "item", None)
    if not hasattr(args, "restore_args"):
        # Orbax casts to the target's data type, whatever is lost; without one all is as saved.
        strict = target is not None
        return _foreign.restore(
            checkpoint, target, item=name, strict=strict, cast="unsafe", placeholders="skip"
        )
    options = {o: getattr(args, o) for o in _PYTREE_OPTIONS if getattr(args, o, None) is not None}
    return _foreign.restore(
        checkpoint,
        target,
        item=name,
        restore_args=args.restore_args,
        strict=False,
        options=options or None,
    )
