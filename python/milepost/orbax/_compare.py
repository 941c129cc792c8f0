"""Where a target and a stored item differ: every difference at once, by key path.

Two doors: ``standard`` (StandardRestore) is strict about everything; without it (PyTreeRestore and
the legacy ``item=``) a None where a leaf is stored skips the leaf, and a leaf where an empty node
is stored gets the empty node, as Orbax does. ``partial`` allows the checkpoint to have more.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from milepost._errors import Mismatch, TreeMismatch

from ._targets import MAPPINGS, SEQUENCES, FlatTree, Path, shown

SHOWN_MAX = 20


def differences(
    target: FlatTree,
    stored: FlatTree,
    describe: Callable[[int], str],
    *,
    standard: bool,
    partial: bool,
) -> list[Mismatch]:
    """What does not fit, in the target's order, then what only the checkpoint has."""
    found: list[Mismatch] = []
    covered: set[Path] = set()
    for path, leaf in target.leaves.items():
        covered.add(path)
        if leaf is ... or path in stored.leaves:
            continue
        if path in stored.empties and not standard:
            continue
        found.append(Mismatch(shown(path), _missing(path, stored)))
    for path, kind in target.empties.items():
        covered.add(path)
        what = _empty(path, kind, stored, describe, standard)
        if what is not None:
            found.append(Mismatch(shown(path), what))
    found.extend(_kinds(target, stored))
    if not partial:
        found.extend(_extra(target, stored, describe, covered))
    return found


def _missing(path: Path, stored: FlatTree) -> str:
    """Why a leaf of the target has no stored leaf."""
    if path in stored.containers:
        kind, keys = stored.containers[path]
        return f"the target has a leaf, the checkpoint a {kind} of {_names(keys)}"
    if path in stored.empties:
        return f"the target has a leaf, the checkpoint {_empty_name(stored.empties[path])}"
    for cut in range(len(path)):
        if path[:cut] in stored.leaves:
            return f"the checkpoint has a leaf at {shown(path[:cut])}, nothing below it"
    near = difflib.get_close_matches(shown(path), [shown(p) for p in stored.leaves], 2)
    hint = f" (it has {' and '.join(near)})" if near else ""
    return f"not in the checkpoint{hint}"


def _empty(
    path: Path, kind: str, stored: FlatTree, describe: Callable[[int], str], standard: bool
) -> str | None:
    if path in stored.empties:
        return None
    name = _empty_name(kind)
    if path in stored.leaves:
        if not standard:
            return None
        return f"the target has {name}, the checkpoint {describe(stored.leaves[path])}"
    if path in stored.containers:
        stored_kind, keys = stored.containers[path]
        return f"the target has {name}, the checkpoint a {stored_kind} of {_names(keys)}"
    return f"the target has {name}, the checkpoint nothing"


def _kinds(target: FlatTree, stored: FlatTree) -> list[Mismatch]:
    """A sequence where the checkpoint has names, or the other way round."""
    found = []
    for path, (kind, _) in target.containers.items():
        if path in stored.containers:
            have = stored.containers[path][0]
            crossed = kind in SEQUENCES and have in MAPPINGS
            if crossed or (kind in MAPPINGS and have in SEQUENCES):
                what = f"the target has a {kind}, the checkpoint a {have}"
                found.append(Mismatch(shown(path), what))
    return found


def _extra(
    target: FlatTree, stored: FlatTree, describe: Callable[[int], str], covered: set[Path]
) -> list[Mismatch]:
    """What the checkpoint has and the target lacks, at the highest node that the target lacks."""
    found: dict[Path, str] = {}
    for path in [*stored.leaves, *stored.empties]:
        if _is_covered(path, covered):
            continue
        top = path
        while top and top[:-1] not in target.containers:
            top = top[:-1]
        if top in found or _is_covered(top, covered):
            continue
        if top == path:
            number = stored.leaves.get(path)
            what = _empty_name(stored.empties[path]) if number is None else describe(number)
        else:
            kind, keys = stored.containers[top]
            what = f"a {kind} of {_names(keys)}"
        found[top] = f"the checkpoint has {what}, the target lacks it"
    return [Mismatch(shown(path), what) for path, what in found.items()]


def _is_covered(path: Path, covered: set[Path]) -> bool:
    return any(path[:cut] in covered for cut in range(len(path) + 1))


def _empty_name(kind: str) -> str:
    return "None" if kind == "None" else f"an empty {kind}"


def _names(keys: tuple[str, ...]) -> str:
    listed = ", ".join(keys[:8])
    return listed if len(keys) <= 8 else f"{listed}, … ({len(keys)} in all)"


def raise_mismatches(found: list[Mismatch], *, hint: str | None, context: dict[str, Any]) -> None:
    """Raises one TreeMismatch that lists them all; nothing where the list is empty.

    Raises:
        TreeMismatch: A ValueError with `.mismatches`.
    """
    if not found:
        return
    lines = [f"  {one.path}: {one.what}" for one in found[:SHOWN_MAX]]
    if len(found) > SHOWN_MAX:
        lines.append(f"  … and {len(found) - SHOWN_MAX} more in `.mismatches`")
    text = "the target and the checkpoint do not match:\n" + "\n".join(lines)
    raise TreeMismatch(text, mismatches=found, hint=hint, context=context)


def hint_for(found: list[Mismatch], *, standard: bool, partial: bool) -> str:
    """What a caller can do about mismatches."""
    hints = []
    if any("stored shape" in one.what for one in found):
        hints.append("strict=False truncates and pads arrays with zeros to the shape that is asked")
    if any("target lacks it" in one.what for one in found):
        partly = "PyTreeRestore(item, partial_restore=True)" if standard else "partial_restore=True"
        hints.append(f"{partly} restores only what the target has")
    if any(one.what.startswith("not in the checkpoint") for one in found):
        hints.append("take what the checkpoint lacks out of the target, or put `...` there")
    if partial and not hints:
        hints.append("`...` stands for a leaf that is not wanted")
    return "; ".join(hints) or "`metadata(path).item_metadata` shows what the checkpoint has"
