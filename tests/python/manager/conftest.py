"""What the manager's tests share: a run's directory, a tree, and how trees are compared."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def tree():
    return {"params": {"w": np.arange(6.0).reshape(2, 3), "b": np.ones(3, np.float32)}, "step": 7}


@pytest.fixture
def same():
    """Whether two trees of arrays and numbers are equal, containers too."""

    def compare(left, right) -> bool:
        if isinstance(left, dict) or isinstance(right, dict):
            return (
                isinstance(left, dict)
                and isinstance(right, dict)
                and left.keys() == right.keys()
                and all(compare(left[key], right[key]) for key in left)
            )
        if isinstance(left, (list, tuple)):
            return len(left) == len(right) and all(map(compare, left, right))
        return np.array_equal(np.asarray(left), np.asarray(right))

    return compare
