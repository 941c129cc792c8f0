"""Errors of `training.Checkpointer`."""

from __future__ import annotations

from milepost._errors import NotFound, StepAlreadyExists


class StepAlreadyExistsError(StepAlreadyExists):
    """A step that was to be saved is there (FileExistsError, and ValueError as well)."""


class StepNotFoundError(NotFound):
    """A step that was asked for is not there (FileNotFoundError)."""


__all__ = ["StepAlreadyExistsError", "StepNotFoundError"]
