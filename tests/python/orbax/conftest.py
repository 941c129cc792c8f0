"""One script, two modules: `milepost.orbax.checkpoint`, and the installed Orbax as the oracle."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import importlib  # noqa: E402
import logging  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402

MODULES = {"milepost": "milepost.orbax.checkpoint", "orbax": "orbax.checkpoint"}


@pytest.fixture(params=["milepost", "orbax"])
def ocp(request: pytest.FixtureRequest) -> Any:
    """Both modules, one after the other: what a test says holds for either."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return importlib.import_module(MODULES[request.param])


@pytest.fixture
def ours() -> Any:
    """`milepost.orbax.checkpoint`."""
    return importlib.import_module(MODULES["milepost"])


@pytest.fixture
def theirs() -> Any:
    """The installed Orbax."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return importlib.import_module(MODULES["orbax"])
