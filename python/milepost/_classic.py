"""The options of a manager that are no policies, as policies: Orbax's classic ones."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from ._errors import Invalid
from ._policy import Metric, Preservation, SaveDecision

if TYPE_CHECKING:
    from ._together import Together

Seconds = Union[float, int, datetime.timedelta]


def seconds(value: Seconds | None) -> float | None:
    """Seconds of a number or a timedelta."""
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return None if value is None else float(value)


def decision_of(
    decision: SaveDecision | Callable | None,
    interval: int | None,
    steps: Iterable[int] | None,
    together: Together | None,
) -> SaveDecision:
    """When to save: a policy, or what the options say; the first and a preempted step are saved, too."""
    if decision is not None:
        refuse("a save decision says which steps", save_interval_steps=interval, save_on_steps=steps)
        return decision if isinstance(decision, SaveDecision) else SaveDecision.when(decision)
    interval = 1 if interval is None else interval
    if together is not None and interval == 1:
        # Every step is saved: the processes need not ask each other whether one is about to be stopped.
        return SaveDecision.interval(1)
    members = [SaveDecision.preemption(), SaveDecision.interval(interval), SaveDecision.initial()]
    if steps is not None:
        members.append(SaveDecision.steps(steps))
    return SaveDecision.any(members)


def refuse(why: str, **given: Any) -> None:
    """Refuses options that another one leaves without effect."""
    idle = [name for name, value in given.items() if value is not None]
    if idle:
        raise Invalid(f"{why}, and {idle[0]} is given", context={"option": idle[0]}, hint="leave one of them out")


class Classic(NamedTuple):
    """The options that say what is kept."""

    max_to_keep: int | None
    keep_period: int | None
    keep_time_interval: Seconds | None
    best: Metric | None
    best_mode: str | None
    keep_without_metrics: bool | None

    def beside(self, preservation: Preservation | Callable) -> Preservation:
        """The policy that was given instead; refuses what is given here."""
        refuse("a preservation policy says what is kept", **self._asdict())
        if isinstance(preservation, Preservation):
            return preservation
        return Preservation.custom(preservation)

    def preservation(self) -> Preservation:
        """The policy that they mean."""
        if self.best is None:
            idle = {"best_mode": self.best_mode, "keep_without_metrics": self.keep_without_metrics}
            refuse("no metric says what is best", **idle)
        elif self.max_to_keep is None and self.keep_without_metrics is False:
            refuse("every step is kept without max_to_keep", keep_without_metrics=False)
        mode = "max" if self.best_mode is None else self.best_mode
        if self.max_to_keep is None:
            first = Preservation.everything()
        elif self.best is None:
            first = Preservation.latest(self.max_to_keep)
        else:
            missing = "drop" if self.keep_without_metrics is False else "keep"
            first = Preservation.best(self.best, mode, self.max_to_keep, missing)
        members = [first]
        if self.keep_period is not None:
            members.append(Preservation.every_steps(self.keep_period))
        if self.keep_time_interval is not None:
            members.append(Preservation.every_seconds(seconds(self.keep_time_interval)))
        if self.max_to_keep is None and self.best is not None:
            # Everything is kept; the metric still says which step is best.
            members.insert(0, Preservation.best(self.best, mode))
        return Preservation.any(members)
