"""Names of checkpoints: `<prefix><step>`, the step an integer, a fraction, negative, `1e5`, or any
text.

Names are ordered as a person reads them: numbers by value, what is between them by its characters.
A name's *family* is what is left of it without its numbers: `checkpoint_5` and `checkpoint_1e5` are
of one family, `checkpoint_best_3` is of another, and a file `checkpoint_notes.txt` of none that is
ever saved. Retention looks at one family only, so that a prefix which begins another one
(`checkpoint_` and `checkpoint_best_`) takes nothing of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

_DIGITS = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_SIGNED = re.compile(f"([-+]?{_DIGITS})")
_UNSIGNED = re.compile(f"[-+]?({_DIGITS})")
_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9.+-]+://)?(?P<path>.*)", re.IGNORECASE | re.DOTALL)

#: The family of a name that is a prefix and a number.
NUMBERED = ("", "")


def natural_sort(file_list: Iterable[str], signed: bool = True) -> list[str]:
    """Sorts names by the numbers in them: `file_2` before `file_10`, `file_-0.2` before `file_0.1`.

    With `signed=False` a sign before a number is text between names, not part of the number.
    """
    return sorted(file_list, key=lambda name: order(name, signed))


def order(name: str, signed: bool = True) -> tuple[Any, ...]:
    """The sort key of a name: text and numbers in turn. Integers are compared exactly, of any size.
    """
    parts = (_SIGNED if signed else _UNSIGNED).split(name)
    return tuple(number(part) if at % 2 else part for at, part in enumerate(parts))


def number(text: str) -> int | float:
    """The number that a text is."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def family(rest: str) -> tuple[str, ...]:
    """What is between the numbers of a name, without its prefix."""
    return tuple(_SIGNED.split(rest)[::2])


def last_number(rest: str) -> int | float | None:
    """The last number in a name, None where it has none."""
    numbers = _SIGNED.split(rest)[1::2]
    return number(numbers[-1]) if numbers else None


def safe_normpath(path: str) -> str:
    """Normalizes the path of a path or URL; the scheme stays."""
    match = _SCHEME.match(path)
    assert match is not None  # both groups may be empty
    scheme = match["scheme"] or ""
    return scheme + os.path.normpath(match["path"])
