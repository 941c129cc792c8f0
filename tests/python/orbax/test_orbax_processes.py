"""Several processes of JAX: refused in words, not by a conflict, until they can save together."""

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


def test_a_shared_checkpoint_of_two_processes_is_refused(tmp_path, two_processes):
    saves = {
        "manager": lambda path: ocp.CheckpointManager(path).save(0, args=ocp.args.StandardSave(TREE)),
        "checkpointer": lambda path: ocp.PyTreeCheckpointer().save(path, TREE),
        "standard": lambda path: ocp.StandardCheckpointer().save(path, TREE),
        "v1": lambda path: ocp.v1.save(path, TREE),
    }
    for name, save in saves.items():
        with pytest.raises(mp.Unsupported, match="several processes"):
            save(tmp_path / name)
        assert not (tmp_path / name / "0").exists() and not (tmp_path / name / "zarr.json").exists()


def test_node_local_storage_is_saved_by_each_process(tmp_path, two_processes):
    checkpointer = ocp.PyTreeCheckpointer(primary_host=None)
    checkpointer.save(tmp_path / "here", TREE)
    assert list(checkpointer.restore(tmp_path / "here")["w"]) == [0, 1, 2]
