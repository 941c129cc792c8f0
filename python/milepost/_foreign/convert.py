"""Brings a whole run over: every step in order, its items, metadata, metrics and names.

The life of a conversion: steps found → each that is not there yet read, one in memory at a time,
and committed → each that is there already compared with its source by key paths and shapes. So one
that was interrupted goes on where it stopped, and doing it twice writes nothing.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .._errors import NotFound, StepAlreadyExists
from . import orbax, orbax_reader, safetensors
from .found import ForeignCheckpoint, ForeignStep, detect, steps as found_steps
from .item import ForeignItem
from .match import described, targets, texts
from .mistake import foreign, invalid
from .place import Place
from .progress import Progress, reporter
from .restore import restore

if TYPE_CHECKING:
    from .. import CheckpointManager, Saved

#: What Milepost takes as a step's prefix (spec/layout.md, L30).
_PREFIX = re.compile(r"(?![.])(?!__)[A-Za-z0-9._-]{0,99}(?<!\.r)[A-Za-z._-]|")


def convert(
    src: Any,
    run: Any,
    *,
    steps: Iterable[int | float] | Mapping[int | float, int] | None = None,
    prefix: str | None = None,
    overwrite: bool = False,
    progress: bool | Callable[[Progress], None] | None = None,
    **storage: Any,
) -> list[Saved]:
    """Brings a run of Orbax, Flax or safetensors checkpoints over to Milepost.

    Items keep their names and kinds (a tree without a name becomes `default` from Orbax, else
    `state`), steps their numbers, prefix and padding; metrics, the metadata of run, checkpoints and
    items come along. The source is never written to. Steps that `run` has already are compared (key
    paths, shapes) and not written again, so an interrupted conversion goes on where it stopped.

    Args:
        src: a run, or one checkpoint, which becomes the step that its name says (0 where it says
            none).
        run: the Milepost run; it is created. Not `src`, nor inside it.
        steps: only these; a mapping gives them other numbers (`{0.5: 1}`: Flax's fractions have
            none here).
        prefix: only names that begin so, where a directory holds several series.
        overwrite: replaces steps that `run` has already.
        progress: True shows it, a function is called with `Progress` after every step.
        storage: storage options as of `milepost.save` (`compression`, `chunk_bytes`, …).

    Returns:
        What was written, by step; steps that were there already are not in it.

    Raises:
        NotFound: nothing to convert is at `src`, or it lacks one of `steps`.
        ForeignFormat: Orbax is needed and not installed, or names of steps are ambiguous.
        StepAlreadyExists: `run` has a step with other content.
        Invalid: `run` is `src`, or a step's number cannot be one of Milepost's.
    """
    source, goal = Place(src), Place(run)
    _apart(source, goal)
    plan = _plan(_found(source, prefix), source, steps)
    saved: list[Saved] = []
    with _manager(source, goal, [step for step, _ in plan], storage) as manager:
        have = set(manager.steps())
        tell = reporter(progress, len(plan))
        for step, number in plan:
            if number in have and not overwrite:
                _verify(step, manager, number)
                tell(number, step, None)
                continue
            result = _bring(step, manager, number, overwrite=number in have)
            saved.append(result)
            gc.collect()  # Orbax leaves what it has read in reference cycles: each step would add up
            tell(number, step, result)
    return saved


def _apart(source: Place, goal: Place) -> None:
    inside = f"{goal.path}/".startswith(f"{source.path}/")
    if inside or f"{source.path}/".startswith(f"{goal.path}/"):
        raise invalid(
            "a run is brought over to another place, not into itself",
            "name a new directory beside it",
            src=source.path,
            run=goal.path,
        )


def _found(source: Place, prefix: str | None) -> list[ForeignStep]:
    found = found_steps(source.path, prefix=prefix)
    if found:
        return found
    checkpoint = detect(source.path)
    if checkpoint is None:
        context = {"src": source.path} | ({} if prefix is None else {"prefix": prefix})
        raise NotFound("no Orbax, Flax or safetensors checkpoint is there", context=context)
    name = source.name.removesuffix(".safetensors")
    match = re.search(r"(?<![\w.])\d{1,18}$|(?<=_)\d{1,18}$", name)
    return [ForeignStep(int(match[0]) if match else 0, checkpoint.kind, checkpoint.path)]


def _plan(
    found: list[ForeignStep],
    source: Place,
    steps: Iterable[int | float] | Mapping[int | float, int] | None,
) -> list[tuple[ForeignStep, int]]:
    """What is brought over, and as which step, ascending by the new numbers."""
    by_number = {step.step: step for step in found}
    numbers: dict[Any, Any]
    if steps is None:
        numbers = {number: number for number in by_number}
    else:
        numbers = dict(steps) if isinstance(steps, Mapping) else {step: step for step in steps}
    missing = [number for number in numbers if number not in by_number]
    if missing:
        have = ", ".join(str(step.step) for step in found[-8:])
        raise NotFound(
            f"no such step(s): {', '.join(map(str, missing))}",
            context={"src": source.path},
            hint=f"newest steps: {have}",
        )
    plan = [(by_number[number], goal) for number, goal in numbers.items()]
    for step, goal in plan:
        if isinstance(goal, float) and goal.is_integer():
            continue
        if not isinstance(goal, int) or isinstance(goal, bool) or goal < 0:
            raise invalid(
                "a step of Milepost is a whole number from 0",
                f"say which it shall be: steps={{{step.step}: 1, …}}",
                step=goal,
                path=step.path,
            )
    plan = sorted(((step, int(goal)) for step, goal in plan), key=lambda pair: pair[1])
    goals = [goal for _, goal in plan]
    if len(set(goals)) != len(goals):
        raise invalid("two steps would become one", "give each a number of its own", steps=goals)
    return plan


def _manager(
    source: Place, goal: Place, chosen: list[ForeignStep], storage: dict[str, Any]
) -> CheckpointManager:
    """The manager of the new run, with the names and the metadata of the old one."""
    from .. import CheckpointManager

    prefixes = {step.prefix for step in chosen}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    if not _PREFIX.fullmatch(prefix):
        prefix = ""
    metadata = orbax.run_custom_metadata(source) or None
    return CheckpointManager(
        goal.path, step_prefix=prefix, step_width=_width(chosen), metadata=metadata, together=False,
        **storage,
    )  # fmt: skip


def _width(chosen: list[ForeignStep]) -> int:
    """To how many digits the names are padded; 0 where they are not."""
    padded = {
        step.digits
        for step in chosen
        if isinstance(step.step, int) and 0 <= step.step and len(str(step.step)) < step.digits
    }
    return padded.pop() if len(padded) == 1 and max(padded) <= 20 else 0


def _bring(
    step: ForeignStep, manager: CheckpointManager, number: int, *, overwrite: bool
) -> Saved:
    from .._save import finished
    from .counterpart import counterpart

    made = counterpart(step.checkpoint())
    handle = manager.save(
        number,
        items=made.items,
        metrics=made.metrics,
        metadata=made.metadata or None,
        item_metadata=made.item_metadata or None,
        force=True,
        overwrite=overwrite,
        handover=True,
    )
    # Nobody else has the handle: an interrupted conversion does not wait for the step in flight.
    return finished(handle, "convert", False)


def _verify(step: ForeignStep, manager: CheckpointManager, number: int) -> None:
    """Compares a step that is there already with its source: items, key paths, shapes.

    Raises:
        StepAlreadyExists: they differ.
    """
    from .counterpart import name_of

    checkpoint = step.checkpoint()
    ours = manager.open(number)
    for item in checkpoint.items.values():
        if item.kind == "metrics":
            continue
        name = name_of(checkpoint, item)
        if name not in ours.items:
            raise _differs(step, number, f"item `{name}` is not in it")
        if item.kind != "tree":
            continue
        expected = _shapes(checkpoint, item)
        index = ours.index(name)
        have = {
            texts(leaf.keys): tuple(leaf.shape) if leaf.kind == "array" else None
            for leaf in index.leaves
        }
        if expected is not None and expected != have:
            odd = sorted(expected.items() ^ have.items(), key=str)[0][0]
            raise _differs(step, number, f"leaf `{'/'.join(odd)}` is not the same")


def _shapes(
    checkpoint: ForeignCheckpoint, item: ForeignItem
) -> dict[tuple[str, ...], tuple[int, ...] | None] | None:
    """Shapes by key path (None: no array); None where Orbax cannot say."""
    if checkpoint.kind == "safetensors":
        return {(k,): shape for k, (shape, _) in safetensors.shapes(Place(item.path)).items()}
    if checkpoint.kind == "orbax":
        leaves = orbax_reader.leaves(item)
    else:
        tree = targets(restore(checkpoint, item=item.name))
        leaves = {keys: described(value) for keys, value in tree.items()}
    if leaves is None:
        return None
    return {keys: leaf.shape if leaf.kind == "array" else None for keys, leaf in leaves.items()}


def _differs(step: ForeignStep, number: int, what: str) -> StepAlreadyExists:
    return StepAlreadyExists(
        f"the run has another step {number}: {what}",
        context={"step": str(number), "src": step.path},
        hint="choose another run, or replace it with overwrite=True (--overwrite)",
    )
