"""Trees compared leaf by leaf: values, types and dtypes."""

from __future__ import annotations

import jax
import numpy as np


def assert_same(found, expected, path="") -> None:
    """Asserts that two trees have the same containers and leaves."""
    assert isinstance(found, jax.Array) == isinstance(expected, jax.Array), path
    if isinstance(expected, dict):
        assert isinstance(found, dict) and set(found) == set(expected), (path, found)
        for key in expected:
            assert_same(found[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) and len(found) == len(expected), (path, found)
        for number, (one, other) in enumerate(zip(found, expected)):
            assert_same(one, other, f"{path}/{number}")
    elif isinstance(expected, (jax.Array, np.ndarray)):
        assert found.dtype == expected.dtype and found.shape == expected.shape, (path, found)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), err_msg=path)
    else:
        assert type(found) is type(expected) and found == expected, (path, found)
