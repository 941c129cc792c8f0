"""What a policy may know about a step: its number, when it was committed, its metrics."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any, Protocol

import milepost as mp


class PolicyCheckpointInfo(Protocol):
    """What policies are asked about; anything with these three attributes will do."""

    step: int
    metrics: Any | None
    time: datetime.datetime


@dataclasses.dataclass
class CheckpointInfo:
    """A step as policies see it.

    Attributes:
      step: the number.
      time: when it was committed, or asked to be saved; UTC.
      metrics: what `save(metrics=…)` was given, None where it was given nothing.
    """

    step: int
    time: datetime.datetime
    metrics: Any | None = None


def utc_from_ms(unix_ms: int) -> datetime.datetime:
    """Returns the time of a Unix time in milliseconds."""
    return datetime.datetime.fromtimestamp(unix_ms / 1000, tz=datetime.timezone.utc)


def unix_ms(time: datetime.datetime) -> int:
    """Returns the Unix time in milliseconds; a time without a zone is UTC, one before 1970 is 0."""
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.timezone.utc)
    epoch = datetime.datetime.fromtimestamp(0, tz=datetime.timezone.utc)
    return max(0, (time - epoch) // datetime.timedelta(milliseconds=1))


def step_infos(checkpoints: Sequence[PolicyCheckpointInfo]) -> list[mp.StepInfo]:
    """Returns the steps as native policies take them, without metrics."""
    return [mp.StepInfo(int(c.step), committed_ms=unix_ms(c.time)) for c in checkpoints]
