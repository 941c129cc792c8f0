"""Names of steps, as `orbax.checkpoint.path` has them."""

from __future__ import annotations

from . import step

__all__ = ["step"]
