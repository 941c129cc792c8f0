"""Checkpoints that the installed Orbax wrote, and what v0 of either wrote."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equality import assert_same
from points import Point, PointHandler, with_handler

Struct = jax.ShapeDtypeStruct


@pytest.fixture
def real_v0(theirs):
    import orbax.checkpoint

    return orbax.checkpoint


def test_orbaxs_v1_checkpoints_load(ours, theirs, tmp_path, tree):
    theirs.save(tmp_path / "c", {**tree, "t": (np.ones(2),)}, custom_metadata={"k": 1})
    as_saved = {**tree, "t": [np.ones(2)]}
    assert_same(ours.load(tmp_path / "c"), as_saved)
    assert_same(ours.load_async(tmp_path / "c").result(), as_saved)
    metadata = ours.metadata(tmp_path / "c")
    assert metadata.custom_metadata == {"k": 1}
    assert metadata.init_timestamp_nsecs < metadata.commit_timestamp_nsecs
    assert metadata.metadata["params"]["w"].shape == (3, 4)
    assert metadata.metadata["name"] == "string" and metadata.metadata["step"] == 0
    assert_same(ours.load(tmp_path / "c", metadata), as_saved)


def test_abstract_trees_are_followed_as_orbax_does(ours, theirs, tmp_path, tree):
    theirs.save(tmp_path / "c", tree)
    abstract = {
        "params": {"w": Struct((3, 4), jnp.bfloat16), "b": np.zeros(4, np.float32)},
        "step": 0.0,
        "rate": ...,
        "name": "",
    }
    assert_same(
        {k: v for k, v in ours.load(tmp_path / "c", abstract).items() if k != "rate"},
        {k: v for k, v in theirs.load(tmp_path / "c", abstract).items() if k != "rate"},
    )
    types = {"params": {"w": np.ndarray, "b": np.ndarray}, "step": float, "rate": int, "name": str}
    assert_same(ours.load(tmp_path / "c", types), theirs.load(tmp_path / "c", types))


def test_part_of_orbaxs_checkpoint_loads(ours, theirs, tmp_path, tree):
    theirs.save(tmp_path / "c", tree)
    ctx = ours.Context()
    ctx.pytree.loading.partial_load = True
    with ctx:
        loaded = ours.load(tmp_path / "c", {"params": {"b": np.zeros(4)}})
    assert_same(loaded, {"params": {"b": np.arange(4.0)}})
    with pytest.raises(ValueError):
        ours.load(tmp_path / "c", {"params": {"b": np.zeros(4)}})


def test_orbaxs_items_load_by_name(ours, theirs, tmp_path):
    with with_handler(theirs, PointHandler, config=theirs.handlers.JsonHandler):
        theirs.save_checkpointables(
            tmp_path / "c", {"model": {"w": np.ones(2)}, "p": Point(1, 2), "config": {"a": [1]}}
        )
    with with_handler(ours, PointHandler):
        loaded = ours.load_checkpointables(tmp_path / "c")
    assert loaded["p"] == Point(1, 2) and loaded["config"] == {"a": [1]}
    assert_same(loaded["model"], {"w": np.ones(2)})
    assert set(ours.checkpointables_metadata(tmp_path / "c").metadata) == {"model", "p", "config"}
    with pytest.raises(KeyError, match="foo"):
        ours.load_checkpointables(tmp_path / "c", {"foo": None})


@pytest.mark.parametrize("ocdbt", [True, False])
def test_flat_v0_checkpoints_load(ours, theirs, real_v0, tmp_path, tree, ocdbt):
    handler = real_v0.PyTreeCheckpointHandler(use_ocdbt=ocdbt)
    tree.pop("name")  # v0 without OCDBT stores text elsewhere
    with real_v0.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "c", tree)
    for name in ("AUTO", None):
        found = ours.load(tmp_path / "c", checkpointable_name=name)
        assert_same(found, theirs.load(tmp_path / "c", checkpointable_name=name))
    assert_same(ours.load(tmp_path / "c"), tree)


def test_flat_v0_checkpoints_of_ours_load(ours, tmp_path, tree):
    import milepost.orbax.checkpoint as v0

    v0.PyTreeCheckpointer().save(tmp_path / "c", tree)
    v0.StandardCheckpointer().save(tmp_path / "s", {"w": jnp.ones(3)})
    for name in ("AUTO", None):
        assert_same(ours.load(tmp_path / "c", checkpointable_name=name), tree)
    assert ours.is_orbax_checkpoint(tmp_path / "c")


def test_a_run_of_orbax_is_named_in_the_error(ours, real_v0, tmp_path):
    with real_v0.CheckpointManager(tmp_path / "run") as manager:
        manager.save(3, args=real_v0.args.StandardSave({"w": np.ones(2)}))
    with pytest.raises(ours.errors.InvalidLayoutError, match="run of another library.* 3"):
        ours.load(tmp_path / "run")
    assert_same(ours.load(tmp_path / "run" / "3"), {"w": np.ones(2)})


def test_a_run_of_orbax_goes_on(ours, theirs, tmp_path):
    with theirs.training.Checkpointer(tmp_path / "run") as ckptr:
        for step in (3, 7):
            ckptr.save(step, {"w": np.full(2, step)}, metrics={"loss": step})
    before = sorted(p.relative_to(tmp_path) for p in (tmp_path / "run" / "7").rglob("*"))
    with ours.training.Checkpointer(tmp_path / "run") as ckptr:
        assert [one.step for one in ckptr.checkpoints] == [3, 7]
        assert ckptr.latest.metrics == {"loss": 7}
        assert_same(ckptr.load(), {"w": np.full(2, 7)})
        assert ckptr.should_save(5) is False
        with pytest.raises(FileExistsError):
            ckptr.save(7, {"w": np.ones(1)}, force=True)
        assert ckptr.save(8, {"w": np.full(2, 8)}) is True
        assert [one.step for one in ckptr.checkpoints] == [8]
        assert_same(ckptr.load(3), {"w": np.full(2, 3)})
        assert_same(ckptr.load(), {"w": np.full(2, 8)})
    assert before == sorted(p.relative_to(tmp_path) for p in (tmp_path / "run" / "7").rglob("*"))
    with theirs.training.Checkpointer(tmp_path / "run") as ckptr:
        assert {3, 7} <= {one.step for one in ckptr.checkpoints}


def test_orbaxs_checkpoint_is_never_overwritten(ours, theirs, tmp_path):
    import milepost as mp

    theirs.save(tmp_path / "c", {"w": np.ones(2)})
    with pytest.raises(mp.ForeignFormat, match="milepost convert"):
        ours.save(tmp_path / "c", {"w": np.zeros(2)}, overwrite=True)
    with pytest.raises(ValueError, match="already exists"):
        ours.save(tmp_path / "c", {"w": np.zeros(2)})
    with ours.training.Checkpointer(tmp_path / "run") as ckptr:
        theirs.save(tmp_path / "run" / "4", {"w": np.ones(2)})
        with pytest.raises(mp.MilepostError):
            ckptr.save(4, {"w": np.zeros(2)}, force=True, overwrite=True)
    assert_same(theirs.load(tmp_path / "c"), {"w": np.ones(2)})
    assert_same(theirs.load(tmp_path / "run" / "4"), {"w": np.ones(2)})


def test_deletion_leaves_orbaxs_checkpoints_alone(ours, theirs, tmp_path):
    theirs.save(tmp_path / "c", {"w": np.ones(2)})
    with pytest.raises(ours.errors.InvalidLayoutError, match="no checkpoint of Milepost"):
        ours.delete(tmp_path / "c")
    assert theirs.is_orbax_checkpoint(tmp_path / "c") and ours.is_orbax_checkpoint(tmp_path / "c")
    assert not ours.is_orbax_checkpoint(tmp_path / "c" / "state")


def test_checkpoints_of_the_native_api_load(ours, tmp_path):
    import milepost as mp

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    items = {
        "state": {"w": np.ones(2), "t": (1, b"x")},
        "one": mp.Array(np.arange(3)),
        "config": mp.Json({"a": [1, None]}),
        "blob": mp.Bytes(b"abc"),
    }
    mp.save(tmp_path / "c", items=items, metadata={"k": 1})
    assert_same(ours.load(tmp_path / "c"), {"w": np.ones(2), "t": [1, b"x"]})
    loaded = ours.load_checkpointables(tmp_path / "c")
    assert_same(loaded["one"], np.arange(3))
    assert loaded["config"] == {"a": [1, None]} and loaded["blob"] == b"abc"
    assert ours.metadata(tmp_path / "c").custom_metadata == {"k": 1}
    mp.save(tmp_path / "d", items={"state": {"w": 1}, "files": mp.Files(tmp_path / "notes")})
    assert ours.load(tmp_path / "d") == {"w": 1}
    with pytest.raises(KeyError, match="files"):
        ours.load_checkpointables(tmp_path / "d")


def test_what_v1_saved_is_plain_zarr(ours, tmp_path):
    zarr = pytest.importorskip("zarr")
    ours.save(tmp_path / "c", {"p": {"w": np.arange(6.0).reshape(2, 3)}})
    np.testing.assert_array_equal(
        zarr.open(tmp_path / "c", mode="r")["state/p/w"][:], np.arange(6.0).reshape(2, 3)
    )


def test_installed_in_orbaxs_place_it_is_v1_there_too(tmp_path):
    import subprocess
    import sys

    code = """
import sys, milepost.orbax
milepost.orbax.install()
from orbax.checkpoint import v1 as ocp
import orbax.checkpoint.experimental.v1 as again
import milepost.orbax.v1 as ours
assert ocp is ours and again is ours
ocp.save(sys.argv[1] + "/c", {"a": 1})
assert ocp.load(sys.argv[1] + "/c") == {"a": 1}
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
