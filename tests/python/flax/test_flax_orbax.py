"""`orbax_checkpointer=` and `orbax_utils` (§1.2): ours, and Orbax's own."""

import os
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as real
import pytest
from flax import errors
from flax.training import orbax_utils as flax_orbax_utils
from flax_trees import assert_same, trained

import milepost as mp
import milepost.orbax as ocp
from milepost.flax import _orbax, orbax_utils

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STATE = {"a": np.arange(3), "b": {"c": np.ones(2)}, "xs": [np.ones(1), np.zeros(1)]}
AS_STATE_DICT = {**STATE, "xs": {"0": np.ones(1), "1": np.zeros(1)}}


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def checkpointers():
    yield "sync", ocp.PyTreeCheckpointer
    yield "handler", lambda: ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    yield "async", lambda: ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())


@pytest.fixture(params=list(checkpointers()), ids=lambda pair: pair[0])
def checkpointer(request):
    made = request.param[1]()
    yield made
    made.close()


def test_a_checkpointer_of_ours_writes_and_reads(ours, tmp_path, checkpointer):
    path = ours.save_checkpoint(tmp_path, STATE, 1, orbax_checkpointer=checkpointer)
    assert path == str(tmp_path / "checkpoint_1")
    found = ours.restore_checkpoint(tmp_path, STATE, orbax_checkpointer=checkpointer)
    assert_same(found, STATE)
    assert "default" in mp.open(path).items


def test_what_it_wrote_is_read_without_it(ours, tmp_path, checkpointer):
    ours.save_checkpoint(tmp_path, STATE, 1, orbax_checkpointer=checkpointer)
    getattr(checkpointer, "wait_until_finished", bool)()
    assert_same(ours.restore_checkpoint(tmp_path, None), AS_STATE_DICT)
    assert_same(ours.restore_checkpoint(tmp_path, STATE), STATE)


def test_what_is_written_without_it_is_read_with_it(ours, tmp_path, checkpointer):
    ours.save_checkpoint(tmp_path, {"a": np.arange(3)}, 1)
    found = ours.restore_checkpoint(tmp_path, {"a": np.zeros(3, int)}, orbax_checkpointer=checkpointer)
    assert_same(found, {"a": np.arange(3)})


def test_keep_and_overwrite_hold_for_it(ours, tmp_path, checkpointer):
    for step in range(5):
        ours.save_checkpoint(tmp_path, STATE, step, keep=2, orbax_checkpointer=checkpointer)
    wait_for(lambda: ours.available_steps(tmp_path) == [3, 4])
    with pytest.raises(errors.InvalidCheckpointError):
        ours.save_checkpoint(tmp_path, STATE, 2, orbax_checkpointer=checkpointer)
    ours.save_checkpoint(
        tmp_path, {"a": np.zeros(1)}, 3, keep=2, overwrite=True, orbax_checkpointer=checkpointer
    )
    wait_for(lambda: ours.available_steps(tmp_path) == [3])
    assert ours.restore_checkpoint(tmp_path, None)["a"].tolist() == [0.0]
    wait_for(lambda: not _orbax._pending)


def test_an_async_save_that_fails_deletes_nothing(ours, tmp_path):
    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
    ours.save_checkpoint(tmp_path, STATE, 1, orbax_checkpointer=checkpointer)
    checkpointer.wait_until_finished()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        for step, overwrite in ((2, False), (0, True)):
            large = {"w": np.ones(1 << 20)}
            ours.save_checkpoint(tmp_path, large, step, overwrite=overwrite, orbax_checkpointer=checkpointer)
            with pytest.raises(mp.MilepostError, match="File too large"):
                checkpointer.wait_until_finished()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    wait_for(lambda: not _orbax._pending)
    assert os.listdir(tmp_path) == ["checkpoint_1"]
    checkpointer.close()


def test_its_error_is_raised_by_the_next_call(ours, tmp_path, monkeypatch):
    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
    with monkeypatch.context() as patch:
        patch.setattr(checkpointer._in_flight, "_result", lambda *_: 1 / 0)
        ours.save_checkpoint(tmp_path, STATE, 1, orbax_checkpointer=checkpointer)
        wait_for(lambda: not checkpointer.is_saving_in_progress())
    with pytest.raises(ZeroDivisionError):
        ours.restore_checkpoint(tmp_path, None, orbax_checkpointer=checkpointer)
    checkpointer.close()


def test_the_end_of_the_process_waits_for_the_cleaning(tmp_path):
    code = f"""
import numpy as np, milepost.orbax as ocp
from milepost.flax import checkpoints
checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
for step in (1, 2):
    state = {{"w": np.zeros(1 << 22)}}
    checkpoints.save_checkpoint({str(tmp_path)!r}, state, step, orbax_checkpointer=checkpointer)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert os.listdir(tmp_path) == ["checkpoint_2"]


def test_save_checkpoint_multiprocess_takes_one_too(ours, tmp_path, checkpointer):
    manager = ours.GlobalAsyncCheckpointManager()
    ours.save_checkpoint_multiprocess(
        tmp_path, STATE, 1, gda_manager=manager, orbax_checkpointer=checkpointer
    )
    assert_same(ours.restore_checkpoint(tmp_path, STATE, orbax_checkpointer=checkpointer), STATE)


def test_orbaxs_own_checkpointer_writes_its_own_format_and_is_read(ours, tmp_path):
    checkpointer = real.Checkpointer(real.PyTreeCheckpointHandler())
    for step in (1, 2):
        ours.save_checkpoint(tmp_path, STATE, step, orbax_checkpointer=checkpointer)
    assert (tmp_path / "checkpoint_2" / "_METADATA").exists()
    assert_same(ours.restore_checkpoint(tmp_path, None), AS_STATE_DICT)
    assert_same(ours.restore_checkpoint(tmp_path, STATE, orbax_checkpointer=checkpointer), STATE)


def test_transforms_without_a_checkpointer_are_honoured(ours, tmp_path):
    ours.save_checkpoint(tmp_path, {"old": np.arange(3), "b": np.ones(1)}, 1)
    target = {"new": np.zeros(3, int), "b": np.zeros(1)}
    found = ours.restore_checkpoint(
        tmp_path, target, orbax_transforms={"new": ocp.Transform(original_key="old")}
    )
    assert_same(found, {"new": np.arange(3), "b": np.ones(1)})


# --- orbax_utils ---


def test_save_args_are_one_a_leaf():
    target = {"a": jnp.ones(1), "b": [1, "x"], "n": None}
    mine = orbax_utils.save_args_from_target(target)
    theirs = flax_orbax_utils.save_args_from_target(target)
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    assert all(type(leaf) is ocp.SaveArgs for leaf in jax.tree.leaves(mine))


def restore_args(module, target, **options):
    def said(leaf):
        sharding = getattr(leaf, "sharding", None)
        return type(leaf).__name__, leaf.restore_type, leaf.dtype, sharding

    return jax.tree.map(
        said,
        module.restore_args_from_target(target, **options),
        is_leaf=lambda leaf: hasattr(leaf, "restore_type"),
    )


@pytest.mark.parametrize("target", [
    {"a": np.ones(2), "b": [1, 2.5], "c": {"d": np.float32(1)}},
    {"a": jnp.ones(2), "b": np.ones(2), "i": 3, "f": 2.5},
    {"a": jnp.ones(2, jnp.bfloat16), "n": {"b": jnp.int32(1)}},
], ids=["no jax", "mixed", "jax"])
def test_restore_args_are_flaxs(target):
    assert restore_args(orbax_utils, target) == restore_args(flax_orbax_utils, target)


def test_restore_args_move_to_another_mesh():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    there = jax.sharding.Mesh(np.array(jax.devices()[4:6]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    target = {"w": jax.device_put(jnp.ones(4), sharding)}
    with pytest.warns(DeprecationWarning):
        mine = orbax_utils.restore_args_from_target(target, mesh=there)
    assert mine["w"].sharding == jax.sharding.NamedSharding(there, sharding.spec)
    assert mine["w"].global_shape is None


def test_the_guides_example_with_texts_restores(ours, tmp_path):
    # With Orbax: NOT_FOUND … "1.foo/.zarray" (reference §1.2).
    target = {"config": {"name": "text"}, "w": np.ones(2)}
    manager = ocp.CheckpointManager(tmp_path, ocp.PyTreeCheckpointer())
    manager.save(1, target, save_kwargs={"save_args": orbax_utils.save_args_from_target(target)})
    found = manager.restore(
        1,
        items={"config": {"name": ""}, "w": np.zeros(2)},
        restore_kwargs={"restore_args": orbax_utils.restore_args_from_target(target)},
    )
    assert_same(found, target)
    manager.close()


def test_a_train_state_through_the_guides_calls(tmp_path):
    state = trained()
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    checkpointer.save(tmp_path / "c", state, save_args=orbax_utils.save_args_from_target(state))
    found = checkpointer.restore(
        tmp_path / "c", item=trained(9.0), restore_args=orbax_utils.restore_args_from_target(state)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_transformations_keep_what_is_none_in_the_target():
    target = {"a": {"b": None, "c": np.ones(1)}}
    mine = orbax_utils.maybe_construct_transformations(target, None)
    theirs = flax_orbax_utils.maybe_construct_transformations(target, None)
    assert set(mine) == set(theirs) == {"a/b"}
    assert mine["a/b"].use_fallback and type(mine["a/b"]) is ocp.Transform
    given = {"x": 1}
    assert orbax_utils.maybe_construct_transformations(target, given) is given


def test_is_multi_device_array_is_flaxs():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    values = [jnp.ones(8), jax.device_put(jnp.ones(8), sharding), np.ones(8), 3]
    for value in values:
        assert orbax_utils.is_multi_device_array(value) == flax_orbax_utils.is_multi_device_array(value)
