"""Which steps are kept: Orbax's policies by their names, over native `milepost.Preservation` plans.

A class of the caller's own needs only `should_preserve(checkpoints, *, context)`. Whatever the
policies say, the manager keeps the newest committed step and pinned ones. All of them go by step
numbers, never by the order in which steps are given.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import milepost as mp

from .policy_checkpoint_info import PolicyCheckpointInfo, step_infos, utc_from_ms, CheckpointInfo

__all__ = [
    "AnyPreservationPolicy",
    "BestN",
    "CustomSteps",
    "EveryNSeconds",
    "EveryNSteps",
    "EveryNStepsClosest",
    "LatestDuration",
    "LatestN",
    "PolicyCheckpointInfo",
    "PreservationContext",
    "PreservationPolicy",
    "PreserveAll",
]


@dataclasses.dataclass(kw_only=True)
class PreservationContext:
    """What else a policy may know: nothing yet."""


class PreservationPolicy(Protocol):
    """Decides which steps are kept."""

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext,
    ) -> Sequence[bool]:
        """Tells for each of `checkpoints` whether it is kept."""
        ...


class _Native(PreservationPolicy):
    """A policy of ours: `native()` plans, here and in the manager."""

    def native(self) -> mp.Preservation:
        """Returns the native policy."""
        raise NotImplementedError

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext | None = None,
    ) -> Sequence[bool]:
        """Tells what this policy itself keeps: the newest step counts only where the policy wants
        it."""
        kept = _marked(self.native(), step_infos(checkpoints))
        return [checkpoint.step in kept for checkpoint in checkpoints]


@dataclasses.dataclass
class PreserveAll(_Native):
    """Keeps every step."""

    def native(self) -> mp.Preservation:
        return mp.Preservation.everything()


@dataclasses.dataclass
class LatestN(_Native):
    """Keeps the `n` highest steps; None keeps all."""

    n: int | None = None

    def native(self) -> mp.Preservation:
        if self.n is None:
            return mp.Preservation.everything()
        return mp.Preservation.latest(_count("n", self.n))


@dataclasses.dataclass
class EveryNSeconds(_Native):
    """Keeps the lowest step, then each that was committed `interval_secs` or more after the last
    one kept.

    0 keeps every step. Fractions of a second count.
    """

    interval_secs: float

    def native(self) -> mp.Preservation:
        if self.interval_secs < 0:
            raise ValueError(f"an interval is not negative. interval_secs=`{self.interval_secs}`")
        if self.interval_secs == 0:
            return mp.Preservation.everything()
        return mp.Preservation.every_seconds(float(self.interval_secs))


@dataclasses.dataclass
class EveryNSteps(_Native):
    """Keeps steps at a distance.

    Attributes:
      interval_steps: the distance, at least 1.
      exact_interval: True keeps the multiples of it; False the lowest step, then each that is at
        least this far from the last one kept.
      max_to_keep: of these, only so many of the highest; None: all.
    """

    interval_steps: int
    exact_interval: bool = True
    max_to_keep: int | None = None

    def native(self) -> mp.Preservation:
        interval = _distance(self.interval_steps)
        if self.exact_interval:
            policy = mp.Preservation.every_steps(interval)
        else:
            policy = mp.Preservation.every_steps_apart(interval)
        return _at_most(policy, self.max_to_keep)


@dataclasses.dataclass
class EveryNStepsClosest(_Native):
    """Keeps, for each multiple of `interval_steps`, the step that is closest to it, and the newest
    step.

    Of equally close steps the higher is kept; one that is halfway counts for the higher multiple.
    `max_to_keep`: of these, only so many of the highest; None: all.
    """

    interval_steps: int
    max_to_keep: int | None = None

    def native(self) -> mp.Preservation:
        closest = mp.Preservation.every_steps_closest(_distance(self.interval_steps))
        policy = mp.Preservation.any([closest, mp.Preservation.latest(1)])
        return _at_most(policy, self.max_to_keep)


@dataclasses.dataclass
class CustomSteps(_Native):
    """Keeps these steps."""

    steps: Iterable[int]

    def __post_init__(self) -> None:
        self.steps = frozenset(int(step) for step in self.steps)

    def native(self) -> mp.Preservation:
        return mp.Preservation.steps(sorted(step for step in self.steps if step >= 0))


@dataclasses.dataclass
class LatestDuration(_Native):
    """Keeps the steps that were committed within `duration` (a timedelta, or seconds) before the
    newest one."""

    duration: datetime.timedelta | float

    def native(self) -> mp.Preservation:
        duration = self.duration
        seconds = duration.total_seconds() if isinstance(duration, datetime.timedelta) else duration
        if seconds < 0:
            raise ValueError(f"a duration is not negative. duration=`{self.duration}`")
        return mp.Preservation.latest_duration(float(seconds))


@dataclasses.dataclass(kw_only=True)
class BestN(PreservationPolicy):
    """Keeps the steps with the best metrics.

    NaN is worse than every number; of equals the higher step is better. A step whose metrics
    `get_metric_fn` fails on or answers None for counts as one without metrics, and is kept.

    Attributes:
      get_metric_fn: takes what was saved as metrics and returns the number that ranks the step.
      reverse: False: more is better. True: less is better.
      n: how many; None: all of them, metrics or not.
      keep_checkpoints_without_metrics: whether steps without metrics are kept, uncounted. False:
        they go once there are more than `n` steps.
    """

    get_metric_fn: Callable[[Any], float]
    reverse: bool = False
    n: int | None = None
    keep_checkpoints_without_metrics: bool = True

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext | None = None,
    ) -> Sequence[bool]:
        if self.n is None or len(checkpoints) <= _count("n", self.n):
            return [True] * len(checkpoints)
        best = {step for step, _ in self.ranked(checkpoints)[: self.n]}
        unranked = self._unranked(checkpoints)
        return [c.step in best or c.step in unranked for c in checkpoints]

    def ranked(self, checkpoints: Sequence[PolicyCheckpointInfo]) -> list[tuple[int, float]]:
        """Returns the steps that have the metric, the best first, each with its number."""
        numbers = [(c.step, self.number(c.metrics)) for c in checkpoints if c.metrics is not None]
        ranked = [(step, number) for step, number in numbers if number is not None]
        sign = 1 if self.reverse else -1
        return sorted(ranked, key=lambda r: (math.isnan(r[1]), _no_nan(sign * r[1]), -r[0]))

    def number(self, metrics: Any) -> float | None:
        """Returns what ranks a step with these metrics; None where the function fails."""
        try:
            number = self.get_metric_fn(metrics)
            return None if number is None else float(number)
        except Exception:  # Bad metrics of one step must not stop retention for good.
            return None

    def _unranked(self, checkpoints: Sequence[PolicyCheckpointInfo]) -> set[int]:
        with_metrics = [c for c in checkpoints if c.metrics is not None]
        unranked = {c.step for c in with_metrics} - {step for step, _ in self.ranked(with_metrics)}
        if self.keep_checkpoints_without_metrics:
            unranked |= {c.step for c in checkpoints if c.metrics is None}
        return unranked


@dataclasses.dataclass
class AnyPreservationPolicy(PreservationPolicy):
    """Keeps what any of `policies` keeps."""

    policies: Sequence[PreservationPolicy]

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext | None = None,
    ) -> Sequence[bool]:
        if not self.policies:
            raise ValueError("any-of without a preservation policy in it")
        context = context or PreservationContext()
        answers = [_flags(policy, checkpoints, context) for policy in self.policies]
        return [any(answer[i] for answer in answers) for i in range(len(checkpoints))]


def best_policies(policy: PreservationPolicy | None) -> list[BestN]:
    """Returns the policies by metric in a policy, in order."""
    if isinstance(policy, AnyPreservationPolicy):
        return [best for member in policy.policies for best in best_policies(member)]
    return [policy] if isinstance(policy, BestN) else []


def compiled(
    policy: PreservationPolicy,
    metrics: Callable[[], Mapping[int, Any]],
    failed: Callable[[Exception], None],
) -> mp.Preservation:
    """Returns the native form of a policy.

    Policies by metric and those of the caller's own are asked on the manager's thread, with the
    metrics that `metrics` gives by step. An error in one of them keeps every step and is handed to
    `failed`.
    """
    if isinstance(policy, _Native) and type(policy).should_preserve is _Native.should_preserve:
        return policy.native()
    if type(policy) is AnyPreservationPolicy:
        if not policy.policies:
            raise ValueError("any-of without a preservation policy in it")
        return mp.Preservation.any([compiled(p, metrics, failed) for p in policy.policies])
    if not callable(getattr(policy, "should_preserve", None)):
        raise TypeError(f"a preservation policy has a method should_preserve. policy=`{policy!r}`")

    def kept(infos: Sequence[mp.StepInfo]) -> list[int]:
        try:
            known = metrics()
            checkpoints = [
                CheckpointInfo(info.step, utc_from_ms(info.committed_ms), known.get(info.step))
                for info in infos
            ]
            flags = _flags(policy, checkpoints, PreservationContext())
        except Exception as error:
            failed(error)
            return [info.step for info in infos]
        return [info.step for info, flag in zip(infos, flags) if flag]

    return mp.Preservation.custom(kept)


def _flags(
    policy: PreservationPolicy,
    checkpoints: Sequence[PolicyCheckpointInfo],
    context: PreservationContext,
) -> list[bool]:
    flags = [bool(flag) for flag in policy.should_preserve(checkpoints, context=context)]
    if len(flags) != len(checkpoints):
        raise ValueError(
            f"a preservation policy answers once for each step. policy=`{policy!r}`, "
            f"steps=`{len(checkpoints)}`, answers=`{len(flags)}`"
        )
    return flags


def _marked(policy: mp.Preservation, infos: Sequence[mp.StepInfo]) -> set[int]:
    """Returns the steps that the policy keeps for a reason of its own; plans keep the newest
    besides."""
    always = {step: len(reasons) for step, reasons in mp.Preservation.steps([]).plan(infos).keep}
    kept = policy.plan(infos).keep
    return {step for step, reasons in kept if len(reasons) > always.get(step, 0)}


def _at_most(policy: mp.Preservation, max_to_keep: int | None) -> mp.Preservation:
    """Keeps only so many of the highest steps that the policy keeps."""
    if max_to_keep is None:
        return policy
    most = _count("max_to_keep", max_to_keep)

    def highest(infos: Sequence[mp.StepInfo]) -> list[int]:
        marked = sorted(_marked(policy, infos))
        return marked[max(0, len(marked) - most) :]

    return mp.Preservation.custom(highest)


def _count(name: str, value: int) -> int:
    if value < 0:
        raise ValueError(f"a number of steps is not negative. {name}=`{value}`")
    return int(value)


def _distance(interval_steps: int) -> int:
    if interval_steps < 1:
        raise ValueError(
            f"a distance between steps is at least 1. interval_steps=`{interval_steps}`"
        )
    return int(interval_steps)


def _no_nan(number: float) -> float:
    return 0.0 if math.isnan(number) else number
