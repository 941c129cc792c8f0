"""Runs beside other programs: trash, the v0 manager, snapshots, limits, leases."""

from __future__ import annotations

import os
import threading

import jax
import numpy as np
import pytest
from equality import assert_same
from points import Point, SlowPointHandler, with_handler
from test_v1_training import TREE, checkpointer, every, steps


def test_deleted_steps_go_to_the_trash_that_is_named(ours, tmp_path):
    ctx = ours.Context()
    ctx.deletion.gcs_deletion_options.todelete_full_path = "trash"
    with checkpointer(ours, tmp_path / "run", context=ctx) as ckptr:
        ckptr.save(0, TREE)
        ckptr.save(1, TREE)
        ckptr.delete(0)
        ckptr.wait()
    moved = [p for p in (tmp_path / "run").rglob("*") if p.name.startswith("0") and p.is_dir()]
    assert any("trash" in str(p) for p in moved)


def test_steps_of_the_v0_manager_and_of_v1_are_the_same_run(ours, tmp_path):
    import milepost.orbax.checkpoint as v0

    with v0.CheckpointManager(tmp_path / "run") as manager:
        item = v0.args.Composite(state=v0.args.StandardSave(TREE), extra=v0.args.JsonSave({"z": 1}))
        manager.save(3, args=item, metrics={"loss": 0.5})
    with checkpointer(ours, tmp_path / "run") as ckptr:
        assert ckptr.latest.step == 3 and ckptr.latest.metrics == {"loss": 0.5}
        assert_same(ckptr.load(), TREE)
        assert ckptr.load_checkpointables(3, {"extra": None}) == {"extra": {"z": 1}}
        ckptr.save(4, TREE, metrics={"loss": 0.25, "epoch": 2})
    with v0.CheckpointManager(tmp_path / "run") as manager:
        assert list(manager.all_steps()) == [3, 4]
        assert manager.metrics(4) == {"loss": 0.25, "epoch": 2}
        restored = manager.restore(4, args=v0.args.Composite(state=v0.args.StandardRestore()))
        assert_same(restored["state"], TREE)


def test_a_snapshot_is_the_newest_state(ours):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    snapshotter = ours.training.pathways.Snapshotter()
    abstract = {"w": jax.ShapeDtypeStruct((8,), "f4", sharding=whole), "n": 0}
    assert snapshotter.latest is None
    with pytest.raises(RuntimeError, match="No snapshots"):
        snapshotter.load(abstract)
    state = {"w": jax.device_put(np.arange(8, dtype="f4"), rows), "n": 3}
    snapshotter.save(5, state)
    snapshotter.join()
    state["w"].delete()
    loaded = snapshotter.load(abstract, reset_snapshot_state=False)
    assert loaded["w"].sharding == whole and loaded["n"] == 3
    np.testing.assert_array_equal(loaded["w"], np.arange(8))
    assert snapshotter.latest is None


def test_many_threads_may_wait(ours, tmp_path):
    with with_handler(ours, SlowPointHandler):
        with checkpointer(ours, tmp_path / "run") as ckptr:
            ckptr.save_checkpointables_async(0, {"p": Point(1, 2)})
            threads = [threading.Thread(target=ckptr.wait) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=30)
                assert not thread.is_alive()


def test_directories_are_made_with_the_mode_asked_for(ours, tmp_path):
    ctx = ours.Context()
    ctx.file.path_permission_mode = 0o700
    with checkpointer(ours, tmp_path / "a" / "run", context=ctx) as ckptr:
        ckptr.save(0, TREE)
    assert os.stat(tmp_path / "a" / "run").st_mode & 0o777 == 0o700
    assert os.stat(tmp_path / "a" / "run" / "0").st_mode & 0o777 == 0o700


def test_the_checkpointers_memory_limits_are_budgets(ours, tmp_path):
    from milepost.orbax.v1 import _budget

    ctx = ours.Context()
    ctx.memory.write_concurrent_bytes = 5 << 20
    ctx.memory.read_concurrent_bytes = 3 << 20
    tree = {f"w{n}": np.full(1 << 18, float(n)) for n in range(8)}
    with checkpointer(ours, tmp_path / "run", context=ctx) as ckptr:
        ckptr.save(0, tree)
        assert_same(ckptr.load(), tree)
    assert 0 < _budget.for_save(ctx).high_water_bytes < 6 << 20
    assert 0 < _budget.for_load(ctx).high_water_bytes < 4 << 20


def test_a_step_being_loaded_is_not_deleted_by_a_policy(ours, tmp_path):
    policy = ours.training.preservation_policies.LatestN(1)
    with checkpointer(
        ours, tmp_path / "run", save_decision_policy=every(ours), preservation_policy=policy
    ) as ckptr:
        ckptr.save(0, TREE)
        load, number = ckptr._prepared_load(0, None, "state", lease=True)
        assert number == 0
        ckptr.save(1, TREE)
        ckptr.wait()
        assert_same(load(), TREE)
        del load
        ckptr.save(2, TREE)
        ckptr.wait()
        assert steps(ckptr) == [2]


def test_custom_metadata_is_the_same_for_v0_and_v1(ours, tmp_path):
    import milepost.orbax.checkpoint as v0

    with v0.CheckpointManager(tmp_path / "run", metadata={"root": 1}) as manager:
        args = v0.args.Composite(state=v0.args.StandardSave(TREE))
        manager.save(3, args=args, custom_metadata={"a": 1}, metrics={"n": 3})
    with checkpointer(ours, tmp_path / "run") as ckptr:
        assert ckptr.metadata(3).custom_metadata == {"a": 1}
        assert ckptr.root_metadata().custom_metadata == {"root": 1}
        ckptr.save(4, TREE, custom_metadata={"b": 2}, metrics={"n": 4})
    with v0.CheckpointManager(tmp_path / "run") as manager:
        assert manager.metadata(4).custom_metadata == {"b": 2}
        assert manager.metadata(4).metrics == {"n": 4}
    v0.PyTreeCheckpointer().save(tmp_path / "c", TREE, custom_metadata={"c": 3})
    assert ours.metadata(tmp_path / "c").custom_metadata == {"c": 3}
    ours.save(tmp_path / "d", TREE, custom_metadata={"d": 4})
    assert v0.PyTreeCheckpointer().metadata(tmp_path / "d").custom_metadata == {"d": 4}
    assert_same(v0.PyTreeCheckpointer().restore(tmp_path / "d"), TREE)
    assert_same(v0.StandardCheckpointer().restore(tmp_path / "d"), TREE)
