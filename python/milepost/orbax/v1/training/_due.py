"""Whether a step is to be saved: the same answer in all processes.

What a clock or a function could answer differently, the first process decides for all. What follows
from the steps alone each decides for itself, so that a training loop does not meet at every step.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

from milepost.orbax.checkpoint_managers import save_decision_policy
from milepost.orbax.v1._context import Context
from milepost.orbax.v1._operation import Response
from milepost.orbax.v1.training import _preemption
from milepost.orbax.v1.training import save_decision_policies as decisions
from milepost.orbax.v1.training._steps import Steps
from milepost.orbax.v1.training.metadata import CheckpointMetadata

Verdict = Literal["due", "not due", "exists"]


@dataclasses.dataclass
class Flying:
    """The save that was started last."""

    metadata: CheckpointMetadata[None]
    response: Response[Any]

    def is_under_way(self) -> bool:
        """Whether it has not ended."""
        return not self.response.done()

    def wait_committed(self) -> None:
        """Waits until it is known whether it is committed, and not for what follows."""
        self.response.cancellation.committed.wait()


class Due:
    """Asks a policy about the steps of a run.

    Args:
      flying: Returns the save that was started last.
    """

    def __init__(
        self, steps: Steps, policy: Any, context: Context, flying: Callable[[], Flying | None]
    ):
        self._steps = steps
        self._policy = policy
        self._context = context
        self._flying = flying

    def verdict(self, step: int, *, force: bool, overwrite: bool) -> Verdict:
        """Returns what is to be done with a step that is to be saved now."""

        def judge() -> Verdict:
            flying = self._under_way()
            exists = flying is not None and flying.metadata.step == step
            exists = exists or any(one.step == step for one in self._steps.listed())
            if exists and not overwrite:
                return "exists"
            return "due" if force or self._decides(step, replaces=exists) else "not due"

        return judge() if force else self._agreed(step, judge)

    def is_due(self, step: int) -> bool:
        """Returns whether the policy wants a step, which is not there, saved now."""

        def judge() -> Verdict:
            return "due" if self._decides(step, replaces=False) else "not due"

        return self._agreed(step, judge) == "due"

    def _under_way(self) -> Flying | None:
        flying = self._flying()
        return flying if flying is not None and flying.is_under_way() else None

    def _agreed(self, step: int, judge: Callable[[], Verdict]) -> Verdict:
        together = self._steps.manager.together
        if together is None:
            return judge()
        if not save_decision_policy.is_by_steps(self._policy):
            return together.first(judge)
        verdict, flying = judge(), self._under_way()
        if flying is None or (verdict == "not due" and step > flying.metadata.step):
            return verdict
        # How it ends may be known in one process and not yet in another. A save waits anyway.
        flying.wait_committed()
        return judge()

    def _decides(self, step: int, *, replaces: bool) -> bool:
        """Asks the policy; a step that is not above the newest is only saved to replace one."""
        before = [one for one in self._steps.listed() if not (replaces and one.step == step)]
        flying = self._under_way()
        if flying is not None:
            before = [*before, flying.metadata]
        if not replaces and before and max(one.step for one in before) >= step:
            return False
        now = CheckpointMetadata(
            step, self._steps.path_of(step), metadata=None, commit_timestamp_nsecs=time.time_ns()
        )
        preempted = _preemption.is_signalled(self._steps.manager, step)
        return bool(
            self._policy.should_save(
                now,
                before,
                context=decisions.DecisionContext(
                    is_saving_in_progress=flying is not None,
                    reached_preemption=preempted,
                    multiprocessing_options=self._context.multiprocessing,
                ),
            )
        )
