"""Both libraries behind one fixture: a test that takes `ocp` must pass on each of them.

`ocp` is `milepost.orbax.v1` and then the installed `orbax.checkpoint.v1`: the second run proves
that the first asks for what Orbax does. Where they differ on purpose, a test takes `ours` and
`theirs` and shows both.
"""

from __future__ import annotations

import importlib
import logging
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def ours():
    return importlib.import_module("milepost.orbax.v1")


@pytest.fixture
def theirs():
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return importlib.import_module("orbax.checkpoint").v1


@pytest.fixture(params=["milepost", "orbax"])
def ocp(request):
    return request.getfixturevalue("ours" if request.param == "milepost" else "theirs")


@pytest.fixture
def tree():
    return {
        "params": {"w": jnp.arange(12, dtype=jnp.float32).reshape(3, 4), "b": np.arange(4.0)},
        "step": 7,
        "rate": 0.5,
        "name": "run",
    }


def pytest_configure(config):
    # Orbax leaves coroutines and event loops of failed saves behind.
    ignored = "ignore:coroutine .* was never awaited:RuntimeWarning"
    config.addinivalue_line("filterwarnings", ignored)
    config.addinivalue_line(
        "filterwarnings", "ignore::pytest.PytestUnraisableExceptionWarning"
    )
