"""What a `Checkpointer` says of a step, and of the whole run."""

from __future__ import annotations

import dataclasses
import datetime
import pprint
import typing
from typing import Any, TypeVar

from milepost.orbax.v1 import _metadata

T = TypeVar("T")


@typing.final
class CheckpointMetadata(_metadata.CheckpointMetadata[T]):
    """What a step says of itself: as `v1.CheckpointMetadata`, and

    Attributes:
      step: Its number.
      metrics: What `save(metrics=…)` was given; None where it was given none.
      time: When it was committed (UTC).
    """

    def __init__(
        self,
        step: int,
        path: Any,
        *,
        metadata: T,
        init_timestamp_nsecs: int | None = None,
        commit_timestamp_nsecs: int | None = None,
        custom_metadata: Any = None,
        metrics: Any = None,
    ):
        super().__init__(
            path,
            metadata=metadata,
            init_timestamp_nsecs=init_timestamp_nsecs,
            commit_timestamp_nsecs=commit_timestamp_nsecs,
            custom_metadata=custom_metadata,
        )
        self._step = step
        self._metrics = metrics

    @property
    def step(self) -> int:
        return self._step

    @property
    def metrics(self) -> Any:
        return self._metrics

    @property
    def time(self) -> datetime.datetime:
        nanoseconds = self.commit_timestamp_nsecs or 0
        return datetime.datetime.fromtimestamp(nanoseconds / 1e9, tz=datetime.timezone.utc)

    def _shown(self) -> dict[str, str]:
        return {"step": str(self.step), **super()._shown(), "metrics": str(self.metrics)}


@typing.final
@dataclasses.dataclass(frozen=True, kw_only=True)
class RootMetadata:
    """What belongs to all steps of a run.

    Attributes:
      directory: The run.
      custom_metadata: What the first `Checkpointer` of the run was given.
    """

    directory: Any
    custom_metadata: Any = None

    def __repr__(self) -> str:
        shown = {
            "directory": str(self.directory),
            "custom_metadata": str(self.custom_metadata),
        }
        return f"RootMetadata({pprint.pformat(shown)})"


def of_step(checkpoint: CheckpointMetadata[None], source: Any, described: Any) -> Any:
    """A step's metadata with what describes its items, from where it is read."""
    return CheckpointMetadata(
        checkpoint.step,
        checkpoint.path,
        metadata=described,
        init_timestamp_nsecs=source.init_timestamp_nsecs,
        commit_timestamp_nsecs=source.commit_timestamp_nsecs,
        custom_metadata=source.custom_metadata,
        metrics=checkpoint.metrics,
    )
