"""What is found at a path: a checkpoint of another library, or the steps of a run of such."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .._errors import ForeignFormat
from . import flax, orbax, safetensors
from .item import ForeignItem
from .mistake import convert_command, foreign
from .place import Place

Kind = Literal["orbax", "flax", "safetensors"]

#: `<prefix><number>[.extension]`: a sign belongs to the number where nothing, `_` or `.` is before
#: it (Flax writes `checkpoint_-1.0`), else to the prefix (`checkpoint-500`).
_NAME = re.compile(
    r"^(?P<prefix>|.*?[^\d.]|.*?\D\.)(?P<number>(?:(?<![^_.])-)?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
    r"(?:\.safetensors|\.msgpack)?$",
    re.DOTALL,
)
#: One of several files of a model: `model-00001-of-00003.safetensors` is no step 3.
_PART = re.compile(r"\d+-of-$")
_OURS_BYTES_MAX = 4 << 20


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A checkpoint that another library wrote.

    `items` are its named parts. A checkpoint that is itself one tree (or array, or JSON) has the
    one item `""`.
    """

    kind: Kind
    path: str
    items: Mapping[str, ForeignItem] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, Any]:
        """The caller's metadata of the whole checkpoint (Orbax's `custom_metadata`)."""
        return orbax.custom_metadata(Place(self.path)) if self.kind == "orbax" else {}

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The metrics saved with the step, None where there are none."""
        item = next((item for item in self.items.values() if item.kind == "metrics"), None)
        return None if item is None else orbax.json_value(Place(item.path), "metrics")

    @property
    def item_metadata(self) -> dict[str, dict[str, Any]]:
        """The caller's metadata by item; items without any are left out."""
        if self.kind == "orbax":
            found = {n: orbax.tree_custom_metadata(Place(i.path)) for n, i in self.items.items()}
        elif self.kind == "safetensors":
            found = {n: safetensors.metadata(Place(i.path)) for n, i in self.items.items()}
        else:
            found = {}
        return {name: metadata for name, metadata in found.items() if metadata}

    @property
    def committed_ns(self) -> int | None:
        """When it was committed, in nanoseconds since 1970, where the checkpoint says so."""
        return orbax.committed_ns(Place(self.path)) if self.kind == "orbax" else None


@dataclass(frozen=True)
class ForeignStep:
    """A step of a run that another library wrote; an int but for Flax's fractions."""

    step: int | float
    kind: Kind
    path: str
    prefix: str = ""
    digits: int = 0

    def checkpoint(self) -> ForeignCheckpoint:
        """The checkpoint itself.

        Raises:
            ForeignFormat: it is no longer there, or no longer what it was.
        """
        found = detect(self.path)
        if found is None:
            raise foreign(
                "no checkpoint is there any more",
                "look again: another process has moved or replaced it",
                path=self.path,
                step=self.step,
            )
        return found


def detect(path: Any) -> ForeignCheckpoint | None:
    """What another library's checkpoint at `path` is; None where there is none, or one of ours.

    Told by content: names only say which files to look into. Unfinished saves are none.
    """
    return _detect(Place(path))


def _detect(place: Place) -> ForeignCheckpoint | None:
    if place.is_file():
        return _file(place)
    if _is_ours(place):
        return None
    items = orbax.items(place)
    if items:
        return ForeignCheckpoint("orbax", place.path, items)
    items = safetensors.items(place)
    if items:
        return ForeignCheckpoint("safetensors", place.path, items)
    return None


def _file(place: Place) -> ForeignCheckpoint | None:
    kind: Kind
    if safetensors.is_safetensors(place):
        kind = "safetensors"
    elif flax.is_msgpack(place):
        kind = "flax"
    else:
        return None
    return ForeignCheckpoint(kind, place.path, {"": ForeignItem("", "tree", place.path)})


def _is_ours(place: Place) -> bool:
    """Whether Milepost wrote the place: its root group says so."""
    if place.entries().get("zarr.json", True):
        return False
    try:
        document = json.loads(place.child("zarr.json").read(0, _OURS_BYTES_MAX))
        return "milepost" in document["attributes"]
    except (ValueError, KeyError, TypeError):
        return False


def steps(run_url: Any, *, prefix: str | None = None) -> list[ForeignStep]:
    """The steps that other libraries left in a run, ascending by number.

    `prefix` is the whole text before the number (`"test_"`); None takes all names. Empty where
    there are none, or no run at all; a place that is itself one of Orbax's checkpoints has none.

    Raises:
        ForeignFormat: two checkpoints are the same step, and `prefix` does not tell which is meant.
    """
    run = Place(run_url)
    if orbax.items(run):
        return []
    found: dict[float, ForeignStep] = {}
    for name in sorted(run.entries()):
        match = _NAME.match(name)
        if match is None or orbax.TMP in name or _PART.search(match["prefix"]):
            continue
        if prefix is not None and match["prefix"] != prefix:
            continue
        checkpoint = _detect(run.child(name))
        if checkpoint is None:
            continue
        number = _number(match["number"])
        if number is None:
            continue
        step = ForeignStep(
            number, checkpoint.kind, checkpoint.path, match["prefix"], len(match["number"])
        )
        if number in found:
            raise _two(found[number], step, run.path)
        found[number] = step
    return [found[number] for number in sorted(found)]


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        value = float(text)
        return value if math.isfinite(value) else None


def _two(first: ForeignStep, second: ForeignStep, run: str) -> ForeignFormat:
    names = " and ".join(f"`{step.path.rpartition('/')[2]}`" for step in (first, second))
    return foreign(
        f"two checkpoints are step {first.step}: {names}",
        "say by a step prefix which names are meant, or name the checkpoint's own path",
        run=run,
    )


def refuse(path: Any) -> None:
    """Passes where nothing of another library would be overwritten at `path`.

    Raises:
        ForeignFormat: another library's checkpoint, or a run of such, is there.
    """
    place = Place(path)
    checkpoint = _detect(place)
    if checkpoint is not None:
        raise _refusal(f"a checkpoint in {checkpoint.kind} format", place.path)
    try:
        inside = steps(place.path)
    except ForeignFormat:
        raise _refusal("a run of another library", place.path) from None
    if inside:
        raise _refusal(f"a run of {len(inside)} step(s) in {inside[-1].kind} format", place.path)


def _refusal(what: str, path: str) -> ForeignFormat:
    return foreign(
        f"{what} is there: it is read in place, by milepost.load and the managers, and never "
        "overwritten",
        f"save elsewhere, or bring it over: {convert_command(path)}",
        path=path,
    )
