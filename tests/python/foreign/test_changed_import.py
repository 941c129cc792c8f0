"""One import line is changed on a run: training goes on, and nothing is overwritten."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
import warnings

import flax
import jax
import jax.numpy as jnp
import milepost as mp
import numpy as np
import orbax.checkpoint as real
import pytest
from flax.training import checkpoints as real_flax
from foreign_runs import contents, manager_run, plain, same, tree
from safetensors.numpy import save_file

LIBRARIES = ["orbax.checkpoint", "milepost.orbax.checkpoint"]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"step_prefix": "test", "step_format_fixed_length": 6},
        {"enable_async_checkpointing": False},
    ],
)
def test_a_manager_lists_and_restores_the_run_that_is_there(tmp_path, library, options):
    ocp = importlib.import_module(library)
    run = manager_run(tmp_path / "run", [1, 5, 20], **options)
    before = contents(run)
    settings = ocp.CheckpointManagerOptions(**options)
    with ocp.CheckpointManager(run, options=settings) as manager:
        assert manager.latest_step() == 20
        assert sorted(manager.all_steps()) == [1, 5, 20]
        raw = manager.restore(20, args=ocp.args.PyTreeRestore())
        assert same(np.asarray(raw["layer0"]["w"]), np.asarray(tree(20)["layer0"]["w"]))
        assert isinstance(raw["layer0"]["w"], jax.Array)
        assert raw["step"] == 27
        # Orbax's own legacy name of the same: the default item, no args.
        assert same(manager.restore(5)["layer0"]["b"], tree(5)["layer0"]["b"])
    # Ours may note its format of names in a `zarr.json` of its own; what was there is as it was.
    after = contents(run)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("library", LIBRARIES)
def test_targets_restore_args_and_items_work_on_the_old_run(tmp_path, library):
    ocp = importlib.import_module(library)
    value = {"w": jnp.arange(8.0), "b": np.ones(3)}
    with real.CheckpointManager(tmp_path / "run") as manager:
        manager.save(
            3,
            args=real.args.Composite(
                state=real.args.StandardSave(value), extra=real.args.JsonSave({"lr": 0.1})
            ),
        )
    zeros = {"w": jax.ShapeDtypeStruct((8,), jnp.bfloat16, sharding=_one()), "b": np.zeros(3)}
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        got = manager.restore(
            3,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(zeros), extra=ocp.args.JsonRestore()
            ),
        )
        assert got.extra == {"lr": 0.1}
        assert got["state"]["w"].dtype == jnp.bfloat16
        assert same(got.state["b"], np.ones(3))
        args = {
            "w": ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=_one(), dtype=jnp.float16),
            "b": ocp.RestoreArgs(restore_type=np.ndarray),
        }
    # A new one: Orbax fixes the args of an item by the first.
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        got = manager.restore(
            3, args=ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=args))
        )
        assert got.state["w"].dtype == jnp.float16
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        whole = manager.restore(3)
        assert sorted(whole.keys()) == ["extra", "state"]


def _one():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.mark.parametrize("library", LIBRARIES)
def test_checkpointers_and_v1_restore_what_stands_alone(tmp_path, library):
    ocp = importlib.import_module(library)
    value = {"w": jnp.arange(4.0), "b": np.ones(2), "n": 3}
    plain(tmp_path / "tree", value, ocdbt=True, zarr3=False)
    real.v1.save(tmp_path / "v1", value)
    with real.Checkpointer(real.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "json", {"a": 1})
    zeros = {"w": np.zeros(4, np.float32), "b": np.zeros(2), "n": 0}
    with ocp.StandardCheckpointer() as checkpointer:
        assert same(checkpointer.restore(tmp_path / "tree"), value)
        got = checkpointer.restore(tmp_path / "tree", zeros)
        assert same(got, {**zeros, "w": np.arange(4, dtype=np.float32), "b": np.ones(2), "n": 3})
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert same(checkpointer.restore(tmp_path / "tree"), value)
        assert same(checkpointer.restore(tmp_path / "tree", item=zeros), value), "placeholders"
    with ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        assert same(checkpointer.restore(tmp_path / "tree"), value)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        assert checkpointer.restore(tmp_path / "json") == {"a": 1}
    assert same(ocp.v1.load(tmp_path / "v1"), value)
    assert same(ocp.v1.load(tmp_path / "tree"), value)


def test_force_and_overwrite_do_not_reach_what_orbax_wrote(tmp_path):
    import milepost.orbax.checkpoint as ocp

    value = {"w": np.ones(2)}
    plain(tmp_path / "tree", value, ocdbt=True, zarr3=False)
    before = contents(tmp_path)
    with ocp.PyTreeCheckpointer() as checkpointer:
        with pytest.raises(mp.ForeignFormat, match="milepost convert"):
            checkpointer.save(tmp_path / "tree", value, force=True)
    with pytest.raises(mp.ForeignFormat, match="milepost convert"):
        ocp.v1.save(tmp_path / "tree", value, overwrite=True)
    assert contents(tmp_path) == before


def test_orbax_manager_saves_beside_the_old_steps_and_goes_on_from_its_own(tmp_path):
    import milepost.orbax.checkpoint as ocp

    run = manager_run(tmp_path / "run", [1, 2])
    before = contents(run)
    args = ocp.args.StandardSave({"w": jnp.ones(3)})
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    with ocp.CheckpointManager(run, options=options) as manager:
        assert not manager.save(2, args=args), "it is the latest"
        with pytest.raises(ValueError, match="not overwritten"):
            manager.save(2, args=args, force=True)
        with pytest.raises(mp.ForeignFormat, match="not deleted"):
            manager.delete(1)
        for step in (3, 4):
            assert manager.save(step, args=args)
        manager.wait_until_finished()
        assert (manager.latest_step(), manager.all_steps()) == (4, [4])
        assert manager.restore(2)["step"] == 9, "an old one is restored by its number"
    after = contents(run)
    assert {name: after.get(name) for name in before} == before, "an old step was touched"


def test_the_native_manager_and_load_read_the_old_run_and_write_nothing_into_it(tmp_path):
    run = manager_run(tmp_path / "run", [1, 2])
    before = contents(run)
    with mp.CheckpointManager(run) as manager:
        assert manager.steps() == [1, 2]
        assert manager.latest_step() == 2
        assert manager.restore()["step"] == 9
        assert manager.restore(1)["step"] == 8
        with pytest.raises(mp.ForeignFormat, match=f"milepost convert {run}"):
            manager.save(3, {"w": np.ones(3)})
    assert mp.load(run)["step"] == 9
    assert mp.load(run, step=1)["step"] == 8
    assert mp.load(run / "2")["step"] == 9
    with pytest.raises(mp.ForeignFormat, match="milepost convert"):
        mp.open(run)
    with pytest.raises(mp.ForeignFormat, match="milepost convert"):
        mp.open(run, 1)
    for place in (run, run / "2"):
        for overwrite in (False, True):
            with pytest.raises(mp.ForeignFormat, match=f"milepost convert {place} "):
                mp.save(place, {"w": np.ones(3)}, overwrite=overwrite)
    assert contents(run) == before


@pytest.mark.parametrize("library", ["flax.training", "milepost.flax"])
@pytest.mark.parametrize("through_orbax", [True, False])
def test_flax_restores_the_newest_of_the_old_run(tmp_path, library, through_orbax):
    checkpoints = importlib.import_module(library).checkpoints
    target = {"w": np.zeros(3), "l": [jnp.zeros(2)]}
    flax.config.update("flax_use_orbax_checkpointing", through_orbax)
    try:
        for step in (1, 2, 10):
            value = {"w": np.full(3, step), "l": [jnp.full(2, step)]}
            real_flax.save_checkpoint(tmp_path, value, step, keep=9)
        before = contents(tmp_path)
        assert checkpoints.latest_checkpoint(tmp_path).endswith("checkpoint_10")
        got = checkpoints.restore_checkpoint(tmp_path, target)
        assert np.asarray(got["w"]).tolist() == [10, 10, 10]
        assert np.asarray(got["l"][0]).tolist() == [10, 10]
        got = checkpoints.restore_checkpoint(tmp_path, target, step=2)
        assert np.asarray(got["w"]).tolist() == [2, 2, 2]
        assert contents(tmp_path) == before
    finally:
        flax.config.update("flax_use_orbax_checkpointing", True)


def test_a_run_of_safetensors_is_resumed(tmp_path):
    import milepost.orbax.checkpoint as ocp

    save_file({"w": np.arange(3)}, tmp_path / "model-7.safetensors")
    with ocp.CheckpointManager(tmp_path) as manager:
        assert manager.latest_step() == 7
        assert same(manager.restore(7)["w"], np.arange(3))


def test_a_program_that_imports_orbax_itself_finds_its_run(tmp_path):
    run = manager_run(tmp_path / "run", [4])
    (tmp_path / "train.py").write_text(
        textwrap.dedent("""
        import sys
        import orbax.checkpoint as ocp
        assert ocp.__name__.startswith("milepost"), ocp
        with ocp.CheckpointManager(sys.argv[1]) as manager:
            print(manager.latest_step(), manager.restore(4, args=ocp.args.PyTreeRestore())["step"])
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "milepost.orbax", tmp_path / "train.py", run],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["4", "11"], done.stderr


def test_without_orbax_a_manager_lists_and_restore_names_the_command(tmp_path):
    run = manager_run(tmp_path / "run", [4])
    script = """
        import sys
        sys.modules["orbax"] = sys.modules["orbax.checkpoint"] = None
        import milepost as mp
        import milepost.orbax.checkpoint as ocp
        with ocp.CheckpointManager(sys.argv[1]) as manager:
            print(manager.latest_step(), manager.all_steps())
            for restore in (lambda: manager.restore(4), lambda: mp.load(sys.argv[1])):
                try:
                    restore()
                except mp.ForeignFormat as error:
                    print(error.hint)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), run], capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "4 [4]", done.stderr
    assert len(lines) == 3
    assert all(f"python -m milepost convert {run} " in line for line in lines[1:])


def test_what_was_converted_is_restored_by_milepost_orbax_as_orbax_restores_it(tmp_path):
    import milepost.orbax.checkpoint as ocp

    src = manager_run(tmp_path / "src", [1, 2], step_prefix="test", step_format_fixed_length=4)
    mp.convert(src, tmp_path / "run")
    results = []
    for library, root in ((real, src), (ocp, tmp_path / "run")):
        options = library.CheckpointManagerOptions(
            step_prefix="test", step_format_fixed_length=4, best_fn=lambda m: m["acc"]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with library.CheckpointManager(root, options=options) as manager:
                assert sorted(manager.all_steps()) == [1, 2]
                assert manager.best_step() == 2
                assert manager.metrics(1) == {"acc": 0.1}
                assert manager.metadata().custom_metadata == {"lr": 0.1}
                assert manager.metadata(2).custom_metadata == {"step": 2}
                results.append(manager.restore(2))
    assert same(*results)
    kinds = [jax.tree.map(lambda leaf: isinstance(leaf, jax.Array), r) for r in results]
    assert kinds[0] == kinds[1]


def test_what_was_converted_from_flax_is_restored_by_milepost_flax(tmp_path):
    from milepost.flax import checkpoints

    flax.config.update("flax_use_orbax_checkpointing", False)
    try:
        value = {"w": np.arange(3), "s": np.float32(2), "l": [1, "x"]}
        real_flax.save_checkpoint(tmp_path / "src", value, 7)
        expected = real_flax.restore_checkpoint(tmp_path / "src", None)
    finally:
        flax.config.update("flax_use_orbax_checkpointing", True)
    mp.convert(tmp_path / "src", tmp_path / "run")
    got = checkpoints.restore_checkpoint(tmp_path / "run", None)
    assert same(got, expected)
    assert type(got["s"]) is type(expected["s"])
