"""Older names of the same functions."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from milepost.orbax.v1 import _loading, _metadata, _saving


def _renamed(old: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        warnings.warn(f"Use `{function.__name__}` instead.", DeprecationWarning, stacklevel=2)
        return function(*args, **keywords)

    call.__name__ = call.__qualname__ = old
    call.__doc__ = f"Deprecated: use `{function.__name__}`."
    return call


save_pytree = _renamed("save_pytree", _saving.save)
save_pytree_async = _renamed("save_pytree_async", _saving.save_async)
load_pytree = _renamed("load_pytree", _loading.load)
load_pytree_async = _renamed("load_pytree_async", _loading.load_async)
pytree_metadata = _renamed("pytree_metadata", _metadata.metadata)
