"""Flax's own functions as the oracle: its msgpack files, never its Orbax backend."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()

import flax
import pytest
from flax.training import checkpoints as flax_checkpoints

from milepost.flax import checkpoints as our_checkpoints


@pytest.fixture(autouse=True, scope="session")
def msgpack_backend():
    flax.config.update("flax_use_orbax_checkpointing", False)


@pytest.fixture
def oracle(recwarn):
    """`flax.training.checkpoints` over msgpack files."""
    return flax_checkpoints


@pytest.fixture
def ours():
    return our_checkpoints


@pytest.fixture(params=["ours", "oracle"])
def either(request):
    """A behaviour that is the same in both: the test runs with each."""
    return our_checkpoints if request.param == "ours" else flax_checkpoints
