"""Policies: when to save and what to keep. They are pure, and print what they would do and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Union

from . import _milepost


@dataclasses.dataclass(frozen=True)
class SaveContext:
    """What a policy may know when a step asks to be saved; times in seconds, None where there was none."""

    step: int
    latest: int | None = None
    steps: int = 0
    in_flight: int = 0
    since_begun: float | None = None
    since_committed: float | None = None
    preempted: bool = False


class Decision(NamedTuple):
    """Whether to save, and why; as true as its answer."""

    save: bool
    reason: str

    def __bool__(self) -> bool:
        return self.save


class SaveDecision:
    """When to save a step; combine with `any` and `all`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @classmethod
    def interval(cls, n: int) -> SaveDecision:
        """At each multiple of ``n``."""
        return cls(_milepost.SaveDecision.interval(n))

    @classmethod
    def steps(cls, steps: Iterable[int]) -> SaveDecision:
        """At these steps."""
        return cls(_milepost.SaveDecision.steps({int(step) for step in steps}))

    @classmethod
    def every_seconds(cls, seconds: float) -> SaveDecision:
        """Once so many seconds have passed since the last save began."""
        return cls(_milepost.SaveDecision.every_seconds(seconds))

    @classmethod
    def continuous(cls, minimum: float = 0.0) -> SaveDecision:
        """Whenever nothing is in flight and ``minimum`` seconds have passed since the last commit."""
        return cls(_milepost.SaveDecision.continuous(minimum))

    @classmethod
    def initial(cls) -> SaveDecision:
        """When the run has no step yet."""
        return cls(_milepost.SaveDecision.initial())

    @classmethod
    def preemption(cls) -> SaveDecision:
        """When preemption was signalled."""
        return cls(_milepost.SaveDecision.preemption())

    @classmethod
    def any(cls, members: Iterable[SaveDecision]) -> SaveDecision:
        """When any of these says so."""
        return cls(_milepost.SaveDecision.any([member._inner for member in members]))

    @classmethod
    def all(cls, members: Iterable[SaveDecision]) -> SaveDecision:
        """When all of these say so."""
        return cls(_milepost.SaveDecision.all([member._inner for member in members]))

    @classmethod
    def when(cls, function: Callable[[SaveContext], bool]) -> SaveDecision:
        """When the function says so; what it raises comes out of the save."""
        return cls(_milepost.SaveDecision.when(lambda context: function(SaveContext(**context))))

    def decide(self, context: SaveContext) -> Decision:
        """Decides about a step."""
        return Decision(*self._inner.decide(**dataclasses.asdict(context)))

    def __repr__(self) -> str:
        return repr(self._inner)


@dataclasses.dataclass(frozen=True)
class StepInfo:
    """What a policy may know about a step; ``committed_ms`` since the Unix epoch."""

    step: int
    committed_ms: int = 0
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pinned: bool = False
    damaged: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is kept, with the reasons, and what is deleted."""

    keep: list[tuple[int, list[str]]]
    delete: list[int]

    def __str__(self) -> str:
        lines = {step: f"keep {step}: {', '.join(why)}" for step, why in self.keep}
        lines |= {step: f"delete {step}: nothing keeps it" for step in self.delete}
        return "\n".join(lines[step] for step in sorted(lines))


Metric = Union[str, Callable[[dict[str, float]], "float | None"]]


class Preservation:
    """What to keep. The newest committed step and pinned ones are always kept; combine with `any`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @classmethod
    def everything(cls) -> Preservation:
        """All steps."""
        return cls(_milepost.Preservation.everything())

    @classmethod
    def latest(cls, n: int) -> Preservation:
        """The highest ``n`` steps."""
        return cls(_milepost.Preservation.latest(n))

    @classmethod
    def best(
        cls,
        metric: Metric,
        mode: Literal["min", "max"] = "max",
        n: int | None = None,
        missing: Literal["keep", "drop"] = "keep",
    ) -> Preservation:
        """The best ``n`` (None: all) by a metric's name or a function of the metrics.

        NaN is worst; of equals the later is better; ``missing`` says whether steps without the metric are kept, uncounted.
        """
        return cls(_milepost.Preservation.best(metric, mode, n, missing))

    @classmethod
    def every_steps(cls, n: int) -> Preservation:
        """The multiples of ``n``."""
        return cls(_milepost.Preservation.every_steps(n))

    @classmethod
    def every_steps_apart(cls, n: int) -> Preservation:
        """The lowest step, then each at least ``n`` from the last kept."""
        return cls(_milepost.Preservation.every_steps_apart(n))

    @classmethod
    def every_steps_closest(cls, n: int) -> Preservation:
        """For each multiple of ``n`` the nearest step."""
        return cls(_milepost.Preservation.every_steps_closest(n))

    @classmethod
    def every_seconds(cls, seconds: float) -> Preservation:
        """The lowest step, then each committed at least so long after the last kept."""
        return cls(_milepost.Preservation.every_seconds(seconds))

    @classmethod
    def steps(cls, steps: Iterable[int]) -> Preservation:
        """These steps."""
        return cls(_milepost.Preservation.steps({int(step) for step in steps}))

    @classmethod
    def latest_duration(cls, seconds: float) -> Preservation:
        """The steps committed within so many seconds before the newest."""
        return cls(_milepost.Preservation.latest_duration(seconds))

    @classmethod
    def any(cls, members: Iterable[Preservation]) -> Preservation:
        """What any of these keeps."""
        return cls(_milepost.Preservation.any([member._inner for member in members]))

    @classmethod
    def custom(cls, function: Callable[[list[StepInfo]], Iterable[int]]) -> Preservation:
        """The steps that the function returns; where it raises, all."""
        return cls(
            _milepost.Preservation.custom(
                lambda steps: [int(s) for s in function([StepInfo(**step) for step in steps])]
            )
        )

    def plan(self, steps: Iterable[StepInfo]) -> Plan:
        """Plans for these steps; nothing is deleted."""
        infos = [{**dataclasses.asdict(step), "metrics": dict(step.metrics)} for step in steps]
        return Plan(*self._inner.plan(infos))

    def __repr__(self) -> str:
        return repr(self._inner)
