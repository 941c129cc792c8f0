"""A changed import line on what Flax wrote: it is read, never None, never overwritten by accident."""

import logging
import os

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as real
import pytest
from flax import errors, serialization
from flax_trees import STATES, as_numpy, assert_same, trained

import milepost as mp
from milepost.flax import _entry

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STATE = {"a": np.arange(3), "b": {"c": np.ones(2)}, "xs": [np.ones(1), np.zeros(1)], "step": 7}


def listed(directory):
    return sorted(os.listdir(directory))


def unchanged(directory):
    """Every file below, with its bytes."""
    return {
        os.path.join(root, name): open(os.path.join(root, name), "rb").read()
        for root, _, names in os.walk(directory)
        for name in names
    }


@pytest.fixture
def with_orbax(oracle):
    """Flax as it comes: its checkpoints are Orbax directories."""
    flax.config.update("flax_use_orbax_checkpointing", True)
    yield oracle
    flax.config.update("flax_use_orbax_checkpointing", False)


@pytest.mark.parametrize("name", STATES)
def test_every_msgpack_checkpoint_is_restored_as_flax_does(ours, oracle, tmp_path, name):
    state = STATES[name]
    oracle.save_checkpoint(tmp_path, state, 3)
    before = unchanged(tmp_path)
    for target in (None, state):
        mine, theirs = (c.restore_checkpoint(tmp_path, target) for c in (ours, oracle))
        assert_same(as_numpy(mine), theirs)
    assert unchanged(tmp_path) == before


@pytest.mark.parametrize("parallel", [True, False])
def test_files_steps_and_paths_are_found(ours, oracle, tmp_path, parallel):
    for step in (1, 2.5, 10):
        path = oracle.save_checkpoint(tmp_path, {"s": step}, step, keep=9, prefix="t_")
    options = {"prefix": "t_", "parallel": parallel}
    assert ours.available_steps(tmp_path, "t_", float) == [1, 2.5, 10]
    assert ours.latest_checkpoint(tmp_path, "t_") == path
    assert ours.restore_checkpoint(tmp_path, None, **options) == {"s": 10}
    assert ours.restore_checkpoint(tmp_path, None, step=2.5, **options) == {"s": 2.5}
    assert ours.restore_checkpoint(path, None) == {"s": 10}


def test_leaves_in_chunks_are_restored(ours, oracle, tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    state = {"w": np.arange(300.0).reshape(10, 30)}
    oracle.save_checkpoint(tmp_path, state, 1)
    assert_same(ours.restore_checkpoint(tmp_path, None), state)


def test_a_run_goes_on_after_the_import_line_has_changed(ours, oracle, tmp_path):
    state = trained(1.0)
    oracle.save_checkpoint(tmp_path, state, 5)
    resumed = ours.restore_checkpoint(tmp_path, trained(2.0))
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    with pytest.raises(errors.InvalidCheckpointError):
        ours.save_checkpoint(tmp_path, resumed, 5)
    with pytest.raises(errors.InvalidCheckpointError):
        ours.save_checkpoint(tmp_path, resumed, 4)
    ours.save_checkpoint(tmp_path, resumed, 6)
    assert int(ours.restore_checkpoint(tmp_path, trained(3.0)).step) == 1
    assert mp.open(ours.latest_checkpoint(tmp_path)).items


def test_keep_deletes_what_milepost_wrote_only(ours, oracle, tmp_path):
    # Flax would delete its own; nobody asked for a change of format, so the way back stays open.
    for step in (1, 2):
        oracle.save_checkpoint(tmp_path, STATE, step, keep=2)
    for step in (3, 4, 5):
        ours.save_checkpoint(tmp_path, STATE, step, keep=1)
    assert listed(tmp_path) == ["checkpoint_1", "checkpoint_2", "checkpoint_5"]


def test_overwrite_on_purpose_replaces_a_file_and_deletes_later_ones(ours, oracle, tmp_path):
    for step in (1, 2, 3):
        oracle.save_checkpoint(tmp_path, STATE, step, keep=9)
    ours.save_checkpoint(tmp_path, {"new": 1}, 2, keep=9, overwrite=True)
    assert listed(tmp_path) == ["checkpoint_1", "checkpoint_2"]
    assert ours.restore_checkpoint(tmp_path, None) == {"new": 1}
    assert ours.restore_checkpoint(tmp_path, None, step=1)["step"] == 7


def test_a_file_that_is_replaced_is_there_until_the_new_one_is_whole(ours, oracle, tmp_path, monkeypatch):
    oracle.save_checkpoint(tmp_path, STATE, 2)
    with pytest.raises(mp.Invalid):
        ours.save_checkpoint(tmp_path, {"bad": object()}, 2, overwrite=True)
    assert oracle.restore_checkpoint(tmp_path, None)["step"] == 7
    replace, seen = _entry.replace, []

    def look(new, path):
        seen.append((os.path.isfile(path), mp.load(new)))
        replace(new, path)

    monkeypatch.setattr(_entry, "replace", look)
    ours.save_checkpoint(tmp_path, {"new": 1}, 2, overwrite=True)
    assert seen == [(True, {"new": 1})]
    assert listed(tmp_path) == ["checkpoint_2"]


def test_where_names_cannot_be_exchanged_nothing_changes(ours, oracle, tmp_path, monkeypatch):
    oracle.save_checkpoint(tmp_path, STATE, 2)
    before = unchanged(tmp_path)

    class NoExchange:
        """A C library of a system that cannot."""

        @staticmethod
        def renameat2(*_):
            _entry.ctypes.set_errno(_entry.errno.EINVAL)
            return -1

    monkeypatch.setattr(_entry.ctypes, "CDLL", lambda *_, **__: NoExchange)
    with pytest.raises(mp.Unsupported, match="in the place of another"):
        ours.save_checkpoint(tmp_path, {"new": 1}, 2, overwrite=True)
    assert unchanged(tmp_path) == before


def test_64_bits_of_a_file_are_not_halved_for_a_jax_target(ours, oracle, tmp_path):
    oracle.save_checkpoint(tmp_path, {"f": np.array([1 / 3]), "s": np.float64(1 / 3)}, 1)
    found = ours.restore_checkpoint(tmp_path, {"f": jnp.zeros(1), "s": jnp.float32(0)})
    assert_same(found, {"f": np.array([1 / 3]), "s": np.float64(1 / 3)})


def test_a_broken_file_is_corrupt_and_not_a_new_beginning(ours, oracle, tmp_path):
    path = oracle.save_checkpoint(tmp_path, STATE, 2)
    os.truncate(path, 40)
    with pytest.raises(mp.Corrupt, match="checkpoint_2"):
        ours.restore_checkpoint(tmp_path, {"a": 1})
    open(path, "w").close()
    with pytest.raises(mp.Corrupt, match="empty"):
        ours.restore_checkpoint(tmp_path, {"a": 1})


# --- Flax over Orbax ---


def test_flaxs_orbax_directories_are_restored(ours, with_orbax, tmp_path):
    for step in (1, 2):
        path = with_orbax.save_checkpoint(tmp_path, STATE, step, keep=2)
    assert os.path.exists(os.path.join(path, "_METADATA"))
    before = unchanged(tmp_path)
    assert ours.available_steps(tmp_path) == [1, 2]
    assert ours.latest_checkpoint(tmp_path) == path
    expected = {**STATE, "xs": {"0": np.ones(1), "1": np.zeros(1)}}
    for directory in (tmp_path, path):
        assert_same(as_numpy(ours.restore_checkpoint(directory, None)), expected)
        assert_same(as_numpy(ours.restore_checkpoint(directory, STATE)), STATE)
    assert unchanged(tmp_path) == before


def test_a_train_state_in_an_orbax_directory(ours, with_orbax, tmp_path):
    state = trained(1.0)
    with_orbax.save_checkpoint(tmp_path, state, 1)
    found = ours.restore_checkpoint(tmp_path, trained(2.0))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert isinstance(found.params["dense"]["kernel"], jax.Array)


def test_missing_fields_are_errors_with_orbax_directories_too(ours, with_orbax, tmp_path):
    # Flax over Orbax fills them silently with the target's values.
    with_orbax.save_checkpoint(tmp_path, {"a": np.ones(1)}, 1)
    with pytest.raises(ValueError, match="not present in state dict"):
        ours.restore_checkpoint(tmp_path, {"a": np.zeros(1), "b": np.zeros(1)})


def test_an_orbax_directory_is_not_overwritten_by_accident(ours, with_orbax, tmp_path):
    with_orbax.save_checkpoint(tmp_path, STATE, 5)
    with pytest.raises(errors.InvalidCheckpointError):
        ours.save_checkpoint(tmp_path, {"new": 1}, 5)
    ours.save_checkpoint(tmp_path, {"new": 1}, 6)
    assert listed(tmp_path) == ["checkpoint_5", "checkpoint_6"]
    ours.save_checkpoint(tmp_path, {"new": 2}, 5, overwrite=True)
    assert listed(tmp_path) == ["checkpoint_5"]
    assert ours.restore_checkpoint(tmp_path, None) == {"new": 2}


def test_sharded_targets_of_orbax_directories(ours, with_orbax, tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    with_orbax.save_checkpoint(tmp_path, {"w": np.arange(16, dtype=np.float32)}, 1)
    target = {"w": jax.device_put(jnp.zeros(8), sharding)}
    found = ours.restore_checkpoint(tmp_path, target)["w"]
    assert found.sharding == sharding
    np.testing.assert_array_equal(found, np.arange(16))


def test_a_run_of_orbaxs_manager_under_another_name_is_told(ours, tmp_path, caplog):
    with real.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, args=real.args.StandardSave({"a": np.ones(1)}))
    with caplog.at_level(logging.WARNING, "milepost.flax"):
        assert ours.restore_checkpoint(tmp_path / "run", None) is None
    assert "there are: 1" in caplog.text


def test_other_models_beside_the_checkpoints_are_not_taken_for_them(ours, oracle, tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.ones(2)}, tmp_path / "model.safetensors")
    assert ours.restore_checkpoint(tmp_path, None) is None
    real.PyTreeCheckpointer().save(tmp_path / "best_model", {"a": np.zeros(2)})
    assert ours.restore_checkpoint(tmp_path, None) is None
    oracle.save_checkpoint(tmp_path, {"step": 1}, 1)
    assert ours.restore_checkpoint(tmp_path, None) == {"step": 1}
    ours.save_checkpoint(tmp_path, {"step": 2}, 2)
    assert ours.restore_checkpoint(tmp_path, None) == {"step": 2}


def test_a_step_of_orbaxs_manager_by_its_own_path(ours, tmp_path):
    with real.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, args=real.args.StandardSave({"a": np.ones(1)}))
    found = ours.restore_checkpoint(tmp_path / "run" / "1", None)
    assert_same(as_numpy(found), {"a": np.ones(1)})


def test_safetensors_with_a_steps_name_are_restored(ours, tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.ones(2)}, tmp_path / "checkpoint_1")
    assert_same(as_numpy(ours.restore_checkpoint(tmp_path, None)), {"a": np.ones(2)})
