"""A manager's policies as the native manager asks them, and what they are told of the run."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import milepost as mp

from . import _manager_options, _metrics
from ._manager_foreign import ForeignSteps
from ._manager_options import CheckpointManagerOptions
from ._manager_saves import Saves
from .checkpoint_managers import preservation_policy, save_decision_policy
from .checkpoint_managers.policy_checkpoint_info import CheckpointInfo, utc_from_ms

_LOG = logging.getLogger(__name__)


class Policies:
    """When a manager saves and what it keeps.

    Attributes:
      native: the native manager, once it is there; nobody asks before.
      unwritten: metrics that are not stored, by step.
    """

    def __init__(
        self, url: str, options: CheckpointManagerOptions, saves: Saves, foreign: ForeignSteps
    ) -> None:
        """Raises a ValueError for options that exclude each other."""
        self.native: mp.CheckpointManager | None = None
        self.unwritten: dict[int, Any] = {}
        self._url = url
        self._options = options
        self._saves = saves
        self._foreign = foreign
        self._preservation = _manager_options.preservation_of(options)
        self._decision = _manager_options.save_decision(options)

    def decision(self) -> mp.SaveDecision:
        """Returns when to save. Steps of other libraries, and a queue that is not to be looked at,
        need the context changed before the policy is asked."""
        native = save_decision_policy.compiled(self._decision, self._ask)
        is_blind = not self._options.enable_should_save_is_saving_in_progress_check
        if not is_blind and not self._foreign.may_be_any():
            return native

        def decide(context: mp.SaveContext) -> bool:
            steps = context.steps or len(self._foreign.steps())
            in_flight = 0 if is_blind else context.in_flight
            seen = dataclasses.replace(context, steps=steps, in_flight=in_flight)
            return native.decide(seen).save

        return mp.SaveDecision.when(decide)

    def is_by_steps(self) -> bool:
        """Tells whether processes that see the same steps decide the same."""
        return save_decision_policy.is_by_steps(self._decision)

    def preservation(self) -> mp.Preservation:
        """Returns what to keep."""

        def metrics() -> dict[int, Any]:
            return {info.step: info.metrics for info in self.steps()}

        return preservation_policy.compiled(self._preservation, metrics, self._saves.grumble)

    def steps(self) -> list[CheckpointInfo]:
        """Returns the committed steps as policies see them; other libraries' where there are
        none."""
        assert self.native is not None
        infos = []
        for entry in self.native.entries():
            if not entry.damaged:
                metrics = _metrics.saved(entry.metrics, entry.metadata.get(_metrics.MEMBER))
                metrics = self.unwritten.get(entry.step, metrics)
                infos.append(CheckpointInfo(entry.step, utc_from_ms(entry.committed_ms), metrics))
        if infos:
            return infos
        metrics_of = self._foreign.metrics()
        steps = self._foreign.steps()
        return [CheckpointInfo(step, utc_from_ms(0), metrics_of.get(step)) for step in steps]

    def best(self) -> preservation_policy.BestN | None:
        """Returns the policy that says which step is best; None where none does."""
        if self._options.best_fn is not None:
            return _manager_options.best_of(self._options, None)
        policies = preservation_policy.best_policies(self._preservation)
        return policies[0] if policies else None

    def rank(self, metrics: Any | None) -> None:
        """Has whatever ranks steps rank these metrics, so that errors come before a byte is
        written."""
        policies = preservation_policy.best_policies(self._preservation)
        if self._options.best_fn is not None:
            policies = [_manager_options.best_of(self._options, None), *policies]
        if metrics is None:
            if policies:
                _LOG.warning("steps are ranked by metrics, this one has none. run=%s", self._url)
            return
        for policy in policies:
            number = policy.get_metric_fn(metrics)
            try:
                float(number)
            except (TypeError, ValueError):
                raise TypeError(
                    f"best_fn returns a number. returned=`{number!r}`, metrics=`{metrics!r}`"
                ) from None

    def is_above_foreign(self, step: int) -> bool:
        """Tells whether a step is above other libraries' steps, while these count."""
        assert self.native is not None
        if self.native.steps():
            return True
        theirs = self._foreign.steps()
        return not theirs or step > theirs[-1]

    def _ask(
        self, policy: save_decision_policy.SaveDecisionPolicy, context: mp.SaveContext
    ) -> bool:
        previous = {info.step: info for info in [*self.steps(), *self._saves.infos()]}
        steps = [previous[step] for step in sorted(previous)]
        processes = self._options.multiprocessing_options
        return save_decision_policy.asked(policy, context, steps, processes)
