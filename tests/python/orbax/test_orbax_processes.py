"""Several processes of JAX, as far as one shows it: what they save together is in tests/python/together."""

import jax
import milepost as mp
import milepost.orbax as ocp
import numpy as np
import pytest

TREE = {"w": np.arange(3)}


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda *_: 2)


def test_a_save_in_parts_by_two_processes_is_refused(tmp_path, two_processes):
    with pytest.raises(mp.Unsupported, match="several processes"):
        ocp.v1.partial.save(tmp_path / "parts", TREE)
    assert not list(tmp_path.iterdir())


def test_node_local_storage_is_saved_by_each_process(tmp_path, two_processes):
    checkpointer = ocp.PyTreeCheckpointer(primary_host=None)
    checkpointer.save(tmp_path / "here", TREE)
    assert list(checkpointer.restore(tmp_path / "here")["w"]) == [0, 1, 2]
