"""What the tests of the native door share: eight CPU devices, exact comparison of trees, programs in processes of their own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count=8"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()

import numpy as np  # noqa: E402
import pytest  # noqa: E402

import milepost as mp  # noqa: E402

SECONDS_MAX = 120


@pytest.fixture
def url(tmp_path) -> str:
    """Where a checkpoint may be saved."""
    return str(tmp_path / "checkpoint")


@pytest.fixture
def run(tmp_path) -> str:
    """Where a run may be."""
    return str(tmp_path / "run")


@pytest.fixture
def program(tmp_path):
    """Runs a program in a Python of its own; returns the finished process."""

    def run(source: str, *arguments: str, check: bool = True, **environment: str):
        file = tmp_path / "program.py"
        file.write_text(textwrap.dedent(source))
        package = pathlib.Path(mp.__file__).parent.parent
        path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, str(file), *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            env={**os.environ, "PYTHONPATH": path, **environment},
        )
        if check and done.returncode != 0:
            raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


def difference(left, right, path: str = "") -> str | None:
    """Where two trees differ in containers, types, data types, shapes or bits; None where they are equal."""
    if type(left) is not type(right):
        return f"{path}: {type(left).__name__} and {type(right).__name__}"
    if isinstance(left, dict):
        if list(left) != list(right):
            return f"{path}: keys {list(left)} and {list(right)}"
        pairs = [(key, left[key], right[key]) for key in left]
    elif isinstance(left, (list, tuple)):
        if len(left) != len(right):
            return f"{path}: {len(left)} and {len(right)} children"
        pairs = [(number, *pair) for number, pair in enumerate(zip(left, right, strict=True))]
    else:
        return None if _equal(left, right) else f"{path}: {left!r} and {right!r}"
    found = (difference(a, b, f"{path}/{key}") for key, a, b in pairs)
    return next((what for what in found if what is not None), None)


def _equal(left, right) -> bool:
    if isinstance(left, float):
        return left.hex() == right.hex()
    if hasattr(left, "dtype") and hasattr(left, "shape"):
        if left.dtype != right.dtype or tuple(left.shape) != tuple(right.shape):
            return False
        a, b = np.ascontiguousarray(left), np.ascontiguousarray(right)
        return a.tobytes() == b.tobytes()
    return left == right


def same(left, right) -> None:
    """Asserts that two trees are equal: containers, types, data types, shapes, bits."""
    assert (found := difference(left, right)) is None, found
