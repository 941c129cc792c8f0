"""Transformations of flat parameter dicts, such as those of safetensors files."""

from __future__ import annotations

from milepost.orbax.experimental.model_surgery import transformations

__all__ = ["transformations"]
