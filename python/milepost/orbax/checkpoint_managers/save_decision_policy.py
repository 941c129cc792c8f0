"""When a step is saved: Orbax's policies by their names, each over a native
`milepost.SaveDecision`.

A class of the caller's own needs only `should_save(step, previous_steps, *, context)`. Whatever the
policy says, a step that is not above the newest one is not saved.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Container, Sequence
from typing import Protocol, runtime_checkable

import milepost as mp

from ..options import MultiprocessingOptions
from .policy_checkpoint_info import CheckpointInfo, PolicyCheckpointInfo

__all__ = [
    "AnySavePolicy",
    "ContinuousCheckpointingPolicy",
    "DecisionContext",
    "FixedIntervalPolicy",
    "InitialSavePolicy",
    "PolicyCheckpointInfo",
    "PreemptionCheckpointingPolicy",
    "SaveDecisionPolicy",
    "SpecificStepsPolicy",
]


@dataclasses.dataclass(kw_only=True)
class DecisionContext:
    """What else a policy may know.

    Attributes:
      is_saving_in_progress: whether a save is in flight.
      reached_preemption: whether preemption was signalled.
      multiprocessing_options: those of the manager.
    """

    is_saving_in_progress: bool = False
    reached_preemption: bool = False
    multiprocessing_options: MultiprocessingOptions = dataclasses.field(
        default_factory=MultiprocessingOptions
    )


@runtime_checkable
class SaveDecisionPolicy(Protocol):
    """Decides whether a step is saved."""

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        """Tells whether `step` is to be saved after `previous_steps` (ascending, in flight too)."""
        ...


class _Native(SaveDecisionPolicy):
    """A policy of ours: `native()` decides, here and in the manager."""

    def native(self) -> mp.SaveDecision:
        """Returns the native policy."""
        raise NotImplementedError

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        """Decides as the manager does."""
        return self.native().decide(_save_context(step, previous_steps, context)).save


@dataclasses.dataclass
class FixedIntervalPolicy(_Native):
    """Saves the multiples of `interval` (steps, at least 1)."""

    interval: int

    def native(self) -> mp.SaveDecision:
        if self.interval < 1:
            raise ValueError(f"a save interval is at least 1 step. interval=`{self.interval}`")
        return mp.SaveDecision.interval(int(self.interval))


@dataclasses.dataclass
class SpecificStepsPolicy(_Native):
    """Saves the steps that are in `steps`, any container."""

    steps: Container[int]

    def native(self) -> mp.SaveDecision:
        steps = self.steps
        if isinstance(steps, (set, frozenset, list, tuple)):
            return mp.SaveDecision.steps([int(step) for step in steps if step >= 0])
        return mp.SaveDecision.when(lambda context: context.step in steps)


@dataclasses.dataclass(kw_only=True)
class ContinuousCheckpointingPolicy(_Native):
    """Saves whenever no save is in flight and the last one is `minimum_interval_secs` ago (None: at
    once)."""

    minimum_interval_secs: float | None = None

    def native(self) -> mp.SaveDecision:
        return mp.SaveDecision.continuous(float(self.minimum_interval_secs or 0))


@dataclasses.dataclass
class PreemptionCheckpointingPolicy(_Native):
    """Saves when preemption was signalled."""

    def native(self) -> mp.SaveDecision:
        return mp.SaveDecision.preemption()


@dataclasses.dataclass
class InitialSavePolicy(_Native):
    """Saves when the run has no step yet, committed or in flight."""

    def native(self) -> mp.SaveDecision:
        return mp.SaveDecision.initial()


@dataclasses.dataclass
class AnySavePolicy(SaveDecisionPolicy):
    """Saves when any of `policies` says so; they are asked in order. None of them: never."""

    policies: Sequence[SaveDecisionPolicy]

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        return any(
            policy.should_save(step, previous_steps=previous_steps, context=context)
            for policy in self.policies
        )


@dataclasses.dataclass
class ShouldSaveFnPolicy(SaveDecisionPolicy):
    """Asks a function of the step and the newest step (None where there is none)."""

    should_save_fn: Callable[[int, int | None], bool]

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        latest = previous_steps[-1].step if previous_steps else None
        return bool(self.should_save_fn(step.step, latest))


def is_by_steps(policy: Any) -> bool:
    """Tells whether a policy asks for nothing but steps, and for preemption that jax tells to all."""
    if isinstance(policy, AnySavePolicy):
        return all(is_by_steps(member) for member in policy.policies)
    known = (
        FixedIntervalPolicy,
        SpecificStepsPolicy,
        InitialSavePolicy,
        PreemptionCheckpointingPolicy,
    )
    return type(policy) in known


def compiled(
    policy: SaveDecisionPolicy, ask: Callable[[SaveDecisionPolicy, mp.SaveContext], bool]
) -> mp.SaveDecision:
    """Returns the native form of a policy; one of the caller's own is asked through `ask`.

    So is one that counts from the last step: the native one counts from the last save of this
    process, which forgets it over a restart.
    """
    counts = isinstance(policy, ContinuousCheckpointingPolicy) and policy.minimum_interval_secs
    if not counts and isinstance(policy, _Native) and type(policy).should_save is _Native.should_save:
        return policy.native()
    if type(policy) is AnySavePolicy:
        members = [compiled(member, ask) for member in policy.policies]
        return mp.SaveDecision.any(members) if members else mp.SaveDecision.steps([])
    if not callable(getattr(policy, "should_save", None)):
        raise TypeError(f"a save decision policy has a method should_save. policy=`{policy!r}`")
    return mp.SaveDecision.when(lambda context: ask(policy, context))


def asked(
    policy: SaveDecisionPolicy,
    context: mp.SaveContext,
    previous_steps: Sequence[PolicyCheckpointInfo],
    multiprocessing_options: MultiprocessingOptions,
) -> bool:
    """Asks a policy of the caller's own what a native context asks."""
    now = datetime.datetime.now(tz=datetime.timezone.utc)
    return bool(
        policy.should_save(
            CheckpointInfo(context.step, now),
            previous_steps,
            context=DecisionContext(
                is_saving_in_progress=context.in_flight > 0,
                reached_preemption=context.preempted,
                multiprocessing_options=multiprocessing_options,
            ),
        )
    )


def _save_context(
    step: PolicyCheckpointInfo,
    previous_steps: Sequence[PolicyCheckpointInfo],
    context: DecisionContext,
) -> mp.SaveContext:
    latest, since = None, None
    if previous_steps:
        last = previous_steps[-1]
        latest, since = int(last.step), max(0.0, (step.time - last.time).total_seconds())
    return mp.SaveContext(
        int(step.step),
        latest=latest,
        steps=len(previous_steps),
        in_flight=int(context.is_saving_in_progress),
        since_begun=since,
        since_committed=since,
        preempted=context.reached_preemption,
    )
