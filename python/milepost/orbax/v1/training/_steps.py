"""The steps of a run, as a `Checkpointer` lists and opens them.

Where a run has none of Milepost's own, those that Orbax left there are listed and read; they are
never written to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import milepost as mp
from milepost.orbax import _metrics
from milepost.orbax._manager_foreign import ForeignSteps
from milepost.orbax._manager_setup import create_run
from milepost.orbax._native_run import NativeRun
from milepost.orbax.checkpoint_managers import preservation_policy as preservation
from milepost.orbax.path import step as v0_step
from milepost.orbax.v1 import _budget
from milepost.orbax.v1._context import Context
from milepost.orbax.v1._milepost_source import MilepostSource
from milepost.orbax.v1._saving import together
from milepost.orbax.v1._source import Source, open_source
from milepost.orbax.v1.path import PathLike, locate, path_of
from milepost.orbax.v1.path import step as step_names
from milepost.orbax.v1.training.errors import StepAlreadyExistsError, StepNotFoundError
from milepost.orbax.v1.training.metadata import CheckpointMetadata

_NS_OF_MS = 1_000_000
# How many steps an error names.
_NAMED_MAX = 8


def number_of(step: Any) -> int:
    """Returns the number of a step that is given as one or as its metadata.

    Raises:
      TypeError: It is neither.
      ValueError: It is negative.
    """
    if isinstance(step, CheckpointMetadata):
        return step.step
    try:
        number = step.__index__()
    except AttributeError:
        raise TypeError(f"step must be an integer, not {step!r}") from None
    if isinstance(step, bool):
        raise TypeError(f"step must be an integer, not {step!r}")
    if number < 0:
        raise ValueError(f"step must be nonnegative: {number}")
    return number


class Steps:
    """The steps of one run.

    Args:
      directory: The run; a local one is created.
      context: Permissions, path class, deletion and memory options.
      policy: What to keep.
      names: How steps are named; None: as the run says, a new one by their number. A run has one
        format for new steps: where it is another one of `names`, it stays.
      flying: Returns step and metrics of the save in flight, or None.
      failed: Takes what a policy of the caller's own raises; every step is kept then.
      manager_options: More keywords of `milepost.CheckpointManager`.
    """

    def __init__(
        self,
        directory: PathLike,
        context: Context,
        policy: Any,
        names: Any,
        flying: Callable[[], CheckpointMetadata[None] | None],
        failed: Callable[[Exception], None],
        **manager_options: Any,
    ):
        self.location = locate(directory)
        self._context = context
        self._flying = flying
        formats: list[Any] = []
        if names is not None:
            write, read = v0_step.native_formats(step_names.to_v0(names))
            formats = [write, *read]
            manager_options.update(step_prefix=write.prefix, step_width=write.width)
        create_run(self.location, context.file.path_permission_mode)
        # Foreign steps do not stop saves: the training goes on beside them.
        self.manager = NativeRun(
            self.location,
            preservation=preservation.compiled(policy, self._known_metrics, failed),
            read_formats=tuple((one.prefix, one.width) for one in formats[1:]),
            trash=context.deletion.gcs_deletion_options.todelete_full_path,
            engine=_budget.for_save(context),
            together=together(self.location, context),
            **manager_options,
        )
        self._name = v0_step.NativeFormat(*self.manager.step_format)
        if formats and self._name not in formats:
            self.manager.close()
            raise mp.Invalid(
                f"the run names its steps otherwise: `{self._name.build_name(12)}`, not "
                f"`{formats[0].build_name(12)}`",
                context={"run": self.location},
                hint="a run has one format: save to another directory, or name steps as it does",
            )
        self._foreign = ForeignSteps(self.location, self._name.prefix or None)

    @property
    def directory(self) -> Any:
        """The run, as the context's path class."""
        return path_of(self.location, self._context.file.path_class)

    def path_of(self, step: int) -> Any:
        """Returns where a new step is saved."""
        return path_of(
            f"{self.location}/{self._name.build_name(step)}", self._context.file.path_class
        )

    def listed(self) -> Sequence[CheckpointMetadata[None]]:
        """Returns all committed steps, ascending."""
        found = [self._of_entry(entry) for entry in self.manager.entries() if not entry.damaged]
        if not found and self._foreign.may_be_any():
            found = [self._of_foreign(step) for step in self._foreign.steps()]
        return sorted(found, key=lambda one: one.step)

    def reload(self) -> None:
        """Has the run listed again."""
        self.manager.reload()
        self._foreign.forget()

    def _of_entry(self, entry: Any) -> CheckpointMetadata[None]:
        member = (entry.metadata or {}).get(_metrics.MEMBER)
        return CheckpointMetadata(
            entry.step,
            path_of(str(entry.url), self._context.file.path_class),
            metadata=None,
            commit_timestamp_nsecs=entry.committed_ms * _NS_OF_MS,
            metrics=_metrics.saved(entry.metrics or {}, member),
        )

    def _of_foreign(self, step: int) -> CheckpointMetadata[None]:
        found = self._foreign.get(step)
        assert found is not None
        return CheckpointMetadata(
            step,
            path_of(found.path, self._context.file.path_class),
            metadata=None,
            commit_timestamp_nsecs=found.committed_ns,
            metrics=found.metrics,
        )

    def _known_metrics(self) -> dict[int, Any]:
        known = {one.step: one.metrics for one in self.listed() if one.metrics is not None}
        flying = self._flying()
        if flying is not None and flying.metrics is not None:
            known.setdefault(flying.step, flying.metrics)
        return known

    def has(self, step: int) -> bool:
        """Returns whether a step is committed."""
        return any(one.step == step for one in self.listed())

    def existing(self, step: Any) -> CheckpointMetadata[None]:
        """Returns a committed step; None means the newest.

        Raises:
          StepNotFoundError: It is not there, or there is none at all.
        """
        found = self.listed()
        if step is None:
            if not found:
                raise StepNotFoundError(
                    "Specified `step=None`, but no checkpoints were found.",
                    context={"run": self.location},
                )
            return found[-1]
        number = number_of(step)
        for one in found:
            if one.step == number:
                return one
        if self._foreign.may_be_any() and self._foreign.get(number) is not None:
            return self._of_foreign(number)
        named = ", ".join(str(one.step) for one in found[-_NAMED_MAX:]) or "none"
        raise StepNotFoundError(
            f"No checkpoint found at step {number}.",
            context={"run": self.location, "step": str(number)},
            hint=f"steps that are there: {named}",
        )

    def already_exists(self, step: int) -> StepAlreadyExistsError:
        """Returns the error of a step that is there and not to be replaced."""
        return StepAlreadyExistsError(
            f"Step {step} already exists.",
            context={"run": self.location, "step": str(step)},
            hint="pass overwrite=True to replace it",
        )

    def open(
        self, step: Any, context: Context, *, lease: bool = False
    ) -> tuple[CheckpointMetadata[None], Source]:
        """Returns a step and its items; see `existing`.

        Args:
          lease: No policy deletes the step as long as the source lives.
        """
        checkpoint = self.existing(step)
        ours = (entry for entry in self.manager.entries() if not entry.damaged)
        if any(entry.step == checkpoint.step for entry in ours):
            kept = self.manager._inner.lease(checkpoint.step) if lease else None
            opened = self.manager.open(checkpoint.step)
            engine = _budget.for_load(context)
            return checkpoint, MilepostSource(str(opened.url), engine, opened, kept)
        return checkpoint, open_source(checkpoint.path, context)
