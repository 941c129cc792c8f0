"""A changed import line on an existing run: its steps are found, restored, never written, and
training goes on."""

from __future__ import annotations

import numpy as np
import pytest

import milepost as mp
from milepost.orbax import args
from milepost.orbax.checkpoint_manager import CheckpointManager, CheckpointManagerOptions

orbax = pytest.importorskip("orbax.checkpoint")


def opened(run, **options):
    return CheckpointManager(
        run, options=CheckpointManagerOptions(enable_async_checkpointing=False, **options)
    )


def snapshot(run):
    return {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.fixture
def orbax_run(run, tree):
    options = orbax.CheckpointManagerOptions(best_fn=lambda metrics: metrics["x"])
    with orbax.CheckpointManager(run, options=options) as manager:
        for step in (10, 20):
            state = {**tree, "step": step}
            manager.save(
                step,
                args=orbax.args.StandardSave(state),
                metrics={"x": -float(step)},
                custom_metadata={"lr": 0.1},
            )
    return run


def test_training_goes_on_where_orbax_stopped(orbax_run, tree, same):
    before = snapshot(orbax_run)
    manager = opened(orbax_run, max_to_keep=1)
    assert manager.all_steps() == [10, 20] and manager.latest_step() == 20
    assert same(manager.restore(manager.latest_step()), {**tree, "step": 20})
    assert same(manager.restore(None), {**tree, "step": 20})
    target = {"params": {"w": np.zeros((2, 3)), "b": np.zeros(3, np.float32)}, "step": 0}
    assert same(manager.restore(10, args=args.StandardRestore(target)), {**tree, "step": 10})
    assert not manager.should_save(20) and not manager.save(15, args=args.StandardSave(tree))
    assert manager.save(21, args=args.StandardSave({**tree, "step": 21}))
    assert manager.save(22, args=args.StandardSave({**tree, "step": 22}))
    assert manager.all_steps() == [22] and manager.latest_step() == 22
    assert same(manager.restore(None), {**tree, "step": 22})
    assert same(manager.restore(20), {**tree, "step": 20}), "asked for by its number"
    assert before.items() <= snapshot(orbax_run).items(), "nothing of Orbax's was touched"


def test_the_first_save_beside_them_is_not_the_first_of_the_run(orbax_run, tree):
    manager = opened(orbax_run, save_interval_steps=100)
    assert not manager.save(21, args=args.StandardSave(tree))
    assert manager.save(100, args=args.StandardSave(tree))


def test_policies_of_the_caller_know_them(orbax_run, tree):
    seen = []

    class Own:
        def should_save(self, step, previous_steps, *, context):
            seen.extend((p.step, p.metrics) for p in previous_steps)
            return True

    manager = opened(orbax_run, save_decision_policy=Own())
    assert manager.should_save(30) and seen == [(10, {"x": -10.0}), (20, {"x": -20.0})]


def test_one_of_them_is_never_overwritten_or_deleted(orbax_run, tree):
    before = snapshot(orbax_run)
    manager = opened(orbax_run)
    with pytest.raises(ValueError, match="another library"):
        manager.save(20, args=args.StandardSave(tree), force=True)
    with pytest.raises(mp.ForeignFormat):
        manager.delete(10)
    assert snapshot(orbax_run) == before


def test_what_is_known_of_them_is_told(orbax_run):
    manager = opened(orbax_run, best_fn=lambda metrics: metrics["x"])
    assert manager.metrics(10) == {"x": -10.0} and manager.best_step() == 10
    metadata = manager.metadata(20)
    assert metadata.custom_metadata == {"lr": 0.1} and metadata.metrics == {"x": -20.0}
    assert metadata.commit_timestamp_nsecs > 0
    assert "StandardCheckpointHandler" in metadata.item_handlers["default"]


def test_items_by_name_are_a_composite(run, tree, same):
    with orbax.CheckpointManager(run) as manager:
        both = orbax.args.Composite(
            state=orbax.args.StandardSave(tree), extra=orbax.args.JsonSave({"a": 1})
        )
        manager.save(5, args=both)
    manager = opened(run)
    restored = manager.restore(5)
    assert same(restored.state, tree) and restored.extra == {"a": 1}
    state = manager.restore(5, args=args.Composite(state=args.PyTreeRestore()))
    assert set(state) == {"state"} and same(state.state, tree)
    with pytest.raises(KeyError):
        manager.restore(5, args=args.Composite(other=args.StandardRestore()))


def test_names_with_a_prefix_are_found(run, tree):
    options = orbax.CheckpointManagerOptions(step_prefix="test", step_format_fixed_length=4)
    with orbax.CheckpointManager(run, options=options) as manager:
        manager.save(7, args=orbax.args.StandardSave(tree))
    assert opened(run, step_prefix="test", step_format_fixed_length=4).all_steps() == [7]
    assert opened(run).all_steps() == [7]
    assert opened(run, step_prefix="other", read_only=True).all_steps() == []


def test_another_run_of_orbax_s_is_restored_from(orbax_run, tmp_path, tree, same):
    manager = opened(tmp_path / "new")
    assert same(manager.restore(10, directory=orbax_run), {**tree, "step": 10})
    assert same(manager.restore(None, directory=orbax_run), {**tree, "step": 20})


def test_flax_s_msgpack_steps_are_found(run, same):
    flax = pytest.importorskip("flax")
    from flax.training import checkpoints

    flax.config.update("flax_use_orbax_checkpointing", False)
    state = {"w": np.arange(3.0), "b": {"c": np.ones(2)}}
    checkpoints.save_checkpoint(run, state, 4)
    manager = opened(run)
    assert manager.all_steps() == [4] and same(manager.restore(None), state)
    assert not manager.should_save(4)


def test_a_reader_finds_them_too(orbax_run):
    reader = opened(orbax_run, read_only=True)
    assert reader.all_steps() == [10, 20] and reader.restore(None)["step"] == 20


def test_an_unfinished_save_of_orbax_is_no_step(orbax_run):
    (orbax_run / "30.orbax-checkpoint-tmp").mkdir()
    (orbax_run / "40").mkdir()
    assert opened(orbax_run).all_steps() == [10, 20]
