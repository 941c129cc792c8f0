"""Runs behind a URL: looked at through etils, where a directory is no commit."""

from __future__ import annotations

import logging

import pytest
from etils import epath
from foreign_runs import manager_run
from milepost import _foreign
from milepost._foreign import place
from safetensors.numpy import save_file


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A store that is a local directory, as etils shows one."""
    root = tmp_path / "bucket"
    root.mkdir()
    monkeypatch.setattr(
        place, "_epath", lambda url: epath.Path(url.replace("gs://bucket", str(root)))
    )
    return root


def test_steps_of_a_remote_run_are_those_with_a_commit_file(bucket):
    run = manager_run(bucket / "run", [1, 2, 3])
    (run / "3" / "commit_success.txt").unlink()
    found = _foreign.steps("gs://bucket/run")
    assert [(s.step, s.kind, s.path) for s in found] == [
        (1, "orbax", "gs://bucket/run/1"),
        (2, "orbax", "gs://bucket/run/2"),
    ]
    checkpoint = found[0].checkpoint()
    assert list(checkpoint.items) == ["default", "metrics"]
    assert checkpoint.metadata == {"step": 1}
    assert checkpoint.metrics == {"acc": 0.1}


def test_remote_safetensors_are_read_by_ranges(bucket):
    import numpy as np

    save_file({"a": np.arange(5)}, bucket / "model-3.safetensors")
    (step,) = _foreign.steps("gs://bucket")
    assert _foreign.restore(step)["a"].tolist() == [0, 1, 2, 3, 4]


def test_what_is_not_there_is_nothing(bucket):
    assert _foreign.steps("gs://bucket/none") == []
    assert _foreign.detect("gs://bucket/none") is None


def test_a_store_that_etils_cannot_open_is_told_once(caplog, monkeypatch):
    monkeypatch.setattr(place, "_told", set())
    with caplog.at_level(logging.WARNING, "milepost"):
        assert _foreign.steps("nosuch://bucket/run") == []
        assert _foreign.detect("nosuch://bucket/run/1") is None
    assert len(caplog.records) == 1
    assert "install etils and the library it uses for nosuch://" in caplog.text
