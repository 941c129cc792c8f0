"""The errors of this package, made in one place so that each says where, and what to do."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from .._errors import (
    Corrupt,
    ForeignFormat,
    Invalid,
    ItemNotFound,
    TreeMismatch,
    Unsupported,
)

if TYPE_CHECKING:
    from .found import ForeignCheckpoint


def foreign(message: str, hint: str, **context: Any) -> ForeignFormat:
    """`ForeignFormat` with its place and a hint."""
    return ForeignFormat(message, context=_texts(context), hint=hint)


def corrupt(message: str, **context: Any) -> Corrupt:
    """`Corrupt` with its place."""
    return Corrupt(message, context=_texts(context), hint="use another step, or another copy")


def unsupported(message: str, **context: Any) -> Unsupported:
    """`Unsupported` with its place."""
    return Unsupported(message, context=_texts(context))


def invalid(message: str, hint: str, **context: Any) -> Invalid:
    """`Invalid` with its place and a hint."""
    return Invalid(message, context=_texts(context), hint=hint)


def not_found(message: str, checkpoint: ForeignCheckpoint, name: str | None) -> ItemNotFound:
    """`ItemNotFound` with the items that there are."""
    have = ", ".join(f"`{item}`" for item in checkpoint.items) or "none"
    context = {"path": checkpoint.path} | ({} if name is None else {"item": name})
    return ItemNotFound(message, context=context, hint=f"items of the checkpoint: {have}")


def mismatch(found: list[tuple[str, str]], **context: Any) -> TreeMismatch:
    """`TreeMismatch` with every difference by its key path."""
    lines = "".join(f"\n  {path}: {what}" for path, what in found)
    message = f"target and checkpoint differ in {len(found)} place(s){lines}\n "
    return TreeMismatch(message, mismatches=found, context=_texts(context))


def _texts(context: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in context.items()}


def convert_command(src: str, run: str = "NEW_RUN") -> str:
    """The command that converts, as a hint names it."""
    return f"python -m milepost convert {shlex.quote(src)} {run}"
