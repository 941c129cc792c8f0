"""Exceptions: one tree, each class what the caller can do about it."""

from __future__ import annotations

from typing import NamedTuple


class Mismatch(NamedTuple):
    """One difference between a target and a checkpoint."""

    path: str
    """The key path, as text."""
    what: str
    """What differs there."""


class MilepostError(Exception):
    """Any error of Milepost.

    ``context`` says where it happened (``store``, ``step``, ``item``, ``leaf``, ``chunk``, …), ``hint`` what to do.
    """

    def __init__(
        self,
        message: str = "",
        *,
        context: dict[str, str] | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.context = dict(context or {})
        self.hint = hint
        where = ", ".join(f"{key}={value}" for key, value in self.context.items())
        text = f"{message} ({where})" if where else message
        super().__init__(f"{text}\n  hint: {hint}" if hint else text)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self):
        return (_rebuilt, (type(self), self.args, self.__dict__))


def _rebuilt(cls: type, args: tuple, state: dict) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class NotFound(MilepostError, FileNotFoundError):
    """What was named does not exist."""


class ItemNotFound(NotFound, KeyError):
    """The checkpoint has no such item."""


class LeafNotFound(NotFound, KeyError):
    """The item has no such leaf."""


class AlreadyExists(MilepostError, FileExistsError):
    """What was to be created exists already."""


class StepAlreadyExists(AlreadyExists, ValueError):
    """The step exists already."""


class Conflict(MilepostError):
    """Another writer was faster: read again, then decide."""


class Unavailable(MilepostError, OSError):
    """The store did not answer or is full: trying again may succeed."""


class Corrupt(MilepostError, OSError):
    """Stored bytes are not what was written: verify, or use another step."""


class Unsupported(MilepostError):
    """A newer format, or something this build or place cannot do."""


class ForeignFormat(Unsupported):
    """What is there was written by another library; the hint has the command that converts it."""


class Invalid(MilepostError, ValueError):
    """The call is wrong: fix it."""


class TreeMismatch(Invalid):
    """A target does not fit the checkpoint; ``mismatches`` lists every difference by key path."""

    mismatches: list[Mismatch]

    def __init__(self, message: str = "", *, mismatches=(), **where) -> None:
        super().__init__(message, **where)
        self.mismatches = [Mismatch(*found) for found in mismatches]


class SaveTimeout(MilepostError, TimeoutError):
    """It did not end in the time it was given: it may go on."""


class Cancelled(MilepostError):
    """The caller cancelled the operation."""


class Forked(MilepostError, RuntimeError):
    """The object was made by the parent process, before ``os.fork()``."""


class Internal(MilepostError, RuntimeError):
    """A bug in Milepost: please report it."""


_CLASSES = {
    "NotFound": NotFound,
    "AlreadyExists": AlreadyExists,
    "Conflict": Conflict,
    "Unavailable": Unavailable,
    "Corrupt": Corrupt,
    "Unsupported": Unsupported,
    "Invalid": Invalid,
    "SaveTimeout": SaveTimeout,
    "Cancelled": Cancelled,
    "Internal": Internal,
}


def of(kind, message, context, hint, causes, mismatches) -> MilepostError:
    """Makes the exception of an error of the engine."""
    if mismatches:
        return TreeMismatch(message, mismatches=mismatches, context=context, hint=hint)
    cls = _CLASSES.get(kind, Internal)
    if cls is NotFound and "leaf" in context:
        cls = LeafNotFound
    elif cls is NotFound and "item" in context:
        cls = ItemNotFound
    elif cls is AlreadyExists and "step" in context:
        cls = StepAlreadyExists
    text = ": ".join([message, *causes])
    return cls(text, context=context, hint=hint)


def forked() -> Forked:
    """Says that an object came through a fork."""
    return Forked(
        "this object was made by the parent process, before fork()",
        hint="open it again in the child, or start workers with the 'spawn' method",
    )
