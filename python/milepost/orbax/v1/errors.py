"""Errors of `milepost.orbax.v1` that Orbax names too."""

from __future__ import annotations

from milepost._errors import AlreadyExists


class InvalidLayoutError(ValueError):
    """What is at a path is not a checkpoint of the layout that was asked for."""


class MissingCheckpointError(InvalidLayoutError, FileNotFoundError):
    """There is nothing at the path: an `InvalidLayoutError`, as in Orbax, and FileNotFoundError."""

    def __str__(self) -> str:
        return str(self.args[0])


class DestinationExistsError(AlreadyExists, ValueError):
    """Something is at the path that a save was to take: ValueError, as in Orbax, too."""


class DeletionInProgressError(RuntimeError):
    """What was asked for is being deleted."""


class DeletionRecoveryError(RuntimeError):
    """A deletion that was interrupted cannot be finished as asked."""


class PartialSaveError(ValueError):
    """A partial save cannot be done."""


class PartialSaveReplacementError(PartialSaveError):
    """A partial save names leaves that an earlier one has saved; `.paths` lists them."""

    def __init__(self, message: str, paths: tuple[str, ...] = ()):
        super().__init__(message)
        self.paths = paths
