"""What the drop-in manager does, row by row; a test with `lib` runs on Orbax's manager, too."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import milepost as mp
from milepost.orbax import args as our_args
from milepost.orbax import checkpoint_manager as our_manager
from milepost.orbax.checkpoint_manager import CheckpointManager, CheckpointManagerOptions
from milepost.orbax.options import FileOptions

orbax = pytest.importorskip("orbax.checkpoint")


class Library:
    """Either library's names."""

    def __init__(self, manager, options, args):
        self.manager, self.options, self.args = manager, options, args

    def open(self, path, **options):
        constructor = {k: options.pop(k) for k in list(options) if k in CONSTRUCTOR}
        return self.manager(path, options=self.options(**options), **constructor)


CONSTRUCTOR = ("item_names", "item_handlers", "metadata", "handler_registry")
OURS = Library(CheckpointManager, CheckpointManagerOptions, our_args)
THEIRS = Library(orbax.CheckpointManager, orbax.CheckpointManagerOptions, orbax.args)


@pytest.fixture(params=["milepost", "orbax"])
def lib(request):
    return OURS if request.param == "milepost" else THEIRS


def test_a_loop_saves_and_a_fresh_manager_resumes(lib, run, tree, same):
    with lib.open(run, max_to_keep=2, save_interval_steps=2) as manager:
        saved = [manager.save(s, args=lib.args.StandardSave({**tree, "step": s})) for s in range(6)]
        manager.wait_until_finished()
        assert saved == [True, False, True, False, True, False]
        assert list(manager.all_steps()) == [2, 4] and manager.latest_step() == 4
    fresh = lib.open(run)
    assert same(fresh.restore(fresh.latest_step()), {**tree, "step": 4})
    assert same(fresh.restore(None), {**tree, "step": 4})
    target = jax.tree.map(np.zeros_like, {**tree, "step": 0})
    assert same(fresh.restore(2, args=lib.args.StandardRestore(target)), {**tree, "step": 2})


def test_items_by_name_come_back_as_a_composite(lib, run, tree, same):
    manager = lib.open(run, item_names=("state", "extra"))
    args = lib.args.Composite(
        state=lib.args.StandardSave(tree), extra=lib.args.JsonSave({"lr": 0.1})
    )
    assert manager.save(1, args=args)
    manager.wait_until_finished()
    restored = manager.restore(1)
    assert set(restored.keys()) == {"state", "extra"}
    assert same(restored.state, tree) and restored["extra"] == {"lr": 0.1} and "state" in restored
    only = manager.restore(1, args=lib.args.Composite(extra=lib.args.JsonRestore()))
    assert dict(only.items()) == {"extra": {"lr": 0.1}}
    with pytest.raises(KeyError, match="foo.*Available items"):
        manager.restore(1, args=lib.args.Composite(foo=lib.args.JsonRestore()))


def test_metrics_are_an_item_of_composite_restores(lib, run, tree):
    manager = lib.open(run, best_fn=lambda metrics: metrics["x"])
    state = lib.args.Composite(state=lib.args.StandardSave(tree))
    manager.save(0, args=state, metrics={"x": 1.5})
    manager.wait_until_finished()
    assert set(manager.restore(0).keys()) == {"metrics", "state"}
    assert manager.restore(0).metrics == {"x": 1.5} and manager.metrics(0) == {"x": 1.5}
    assert manager.metrics(5) is None


def test_args_of_the_other_mode_are_refused(lib, run, tree):
    one = lib.open(run / "one")
    one.save(0, args=lib.args.StandardSave(tree))
    with pytest.raises(ValueError):
        one.save(1, args=lib.args.Composite(state=lib.args.StandardSave(tree)))
    several = lib.open(run / "several")
    several.save(0, args=lib.args.Composite(state=lib.args.StandardSave(tree)))
    several.wait_until_finished()
    with pytest.raises(ValueError):
        several.save(1, args=lib.args.StandardSave(tree))
    fresh = lib.open(run / "several")
    with pytest.raises(ValueError):
        fresh.restore(0, args=lib.args.StandardRestore())


def test_only_the_items_that_are_given_are_saved_and_restored(lib, run, tree):
    manager = lib.open(run)
    both = lib.args.Composite(a=lib.args.StandardSave(tree), b=lib.args.JsonSave([1]))
    manager.save(0, args=both)
    manager.save(1, args=lib.args.Composite(b=lib.args.JsonSave([2])))
    manager.wait_until_finished()
    assert set(manager.restore(1).keys()) == {"b"}
    only = manager.restore(0, args=lib.args.Composite(b=lib.args.JsonRestore()))
    assert set(only.keys()) == {"b"}


def test_custom_metadata_is_kept_with_the_step_and_with_the_run(lib, run, tree):
    with lib.open(run, metadata={"version": 1.1}) as manager:
        custom = {"lr": 0.1, "tags": ["a"]}
        manager.save(0, args=lib.args.StandardSave(tree), custom_metadata=custom)
        manager.wait_until_finished()
        step = manager.metadata(0)
        assert step.custom_metadata == {"lr": 0.1, "tags": ["a"]}
        assert step.init_timestamp_nsecs <= step.commit_timestamp_nsecs
        assert set(step.item_handlers) == {"default"}
    again = lib.open(run, metadata={"version": 2})
    assert again.metadata().custom_metadata == {"version": 1.1}


def test_metadata_that_is_not_to_be_stored_is_not(lib, run):
    lib.open(run, metadata={"version": 1}, save_root_metadata=False)
    assert lib.open(run).metadata().custom_metadata == {}


def test_a_read_only_manager_knows_the_metadata_it_is_given(lib, run):
    run.mkdir()
    reader = lib.open(run, read_only=True, metadata={"version": 3})
    assert reader.metadata().custom_metadata == {"version": 3}
    assert list(run.iterdir()) == []


def test_steps_may_be_integers_of_numpy_and_jax(lib, run):
    manager = lib.open(run)
    for step in (np.int64(1), np.array(2), jnp.int32(3), 4):
        assert manager.save(step, args=lib.args.JsonSave({}))
    manager.wait_until_finished()
    assert [int(step) for step in manager.all_steps()] == [1, 2, 3, 4]


def test_a_save_that_the_policy_does_not_want_answers_false(lib, run):
    manager = lib.open(run, save_interval_steps=5)
    save = lib.args.JsonSave({})
    assert manager.save(3, args=save), "the first step is saved in any case"
    assert not manager.save(4, args=save)
    assert not manager.should_save(4) and manager.should_save(5)
    assert manager.save(4, args=save, force=True)
    manager.wait_until_finished()
    assert not manager.save(2, args=save)
    assert list(manager.all_steps()) == [3, 4]


def test_a_step_that_is_there_is_never_overwritten(lib, run):
    manager = lib.open(run)
    manager.save(1, args=lib.args.JsonSave({"v": 1}))
    manager.wait_until_finished()
    assert not manager.save(1, args=lib.args.JsonSave({"v": 2}))
    with pytest.raises(ValueError, match="1"):
        manager.save(1, args=lib.args.JsonSave({"v": 2}), force=True)
    assert manager.restore(1) == {"v": 1}
    assert issubclass(our_manager.StepAlreadyExistsError, (ValueError, FileExistsError))


def test_what_is_missing_is_a_file_not_found_error(lib, run):
    manager = lib.open(run)
    with pytest.raises(FileNotFoundError, match="No steps found in"):
        manager.restore(None)
    manager.save(1, args=lib.args.JsonSave({}))
    manager.wait_until_finished()
    with pytest.raises(FileNotFoundError):
        manager.restore(7)
    with pytest.raises(FileNotFoundError):
        manager.delete(7)
    manager.delete(1)
    assert list(manager.all_steps()) == [] and manager.latest_step() is None


def test_another_run_is_restored_from(lib, run, tmp_path):
    with lib.open(tmp_path / "other") as other:
        other.save(3, args=lib.args.JsonSave({"v": 3}))
        other.save(5, args=lib.args.JsonSave({"v": 5}))
    manager = lib.open(run)
    assert manager.restore(3, directory=tmp_path / "other") == {"v": 3}
    assert manager.restore(None, directory=tmp_path / "other") == {"v": 5}


def test_reload_sees_what_others_saved_and_deleted(lib, run):
    writer, reader = lib.open(run), lib.open(run)
    writer.save(1, args=lib.args.JsonSave({}))
    writer.wait_until_finished()
    assert list(reader.all_steps()) == []
    reader.reload()
    assert list(reader.all_steps()) == [1]
    writer.delete(1)
    assert list(reader.all_steps(read=True)) == []


def test_nothing_given_is_an_error(lib, run):
    with pytest.raises(ValueError, match="args"):
        lib.open(run).save(1)
    with pytest.raises(ValueError, match="CheckpointArgs"):
        lib.open(run).save(1, args={"not": "args"})


def test_the_directory_is_a_path(lib, run):
    manager = lib.open(run)
    assert (manager.directory / "1").parent == type(manager.directory)(run)
    assert run.is_dir()


# --- ours alone


def test_metadata_that_json_cannot_hold_is_refused_before_anything_is_written(run):
    manager = OURS.open(run)
    with pytest.raises(TypeError, match="metadata.*object"):
        manager.save(1, args=our_args.JsonSave({}), custom_metadata={"a": {"b": object()}})
    with pytest.raises(ValueError, match="milepost.orbax"):
        manager.save(1, args=our_args.JsonSave({}), custom_metadata={"milepost.orbax": 1})
    assert manager.all_steps() == [] and manager.save(1, args=our_args.JsonSave({}))


def test_args_in_the_place_of_items_are_args(run, tree, same):
    manager = OURS.open(run)
    assert manager.save(1, our_args.StandardSave(tree))
    assert same(manager.restore(1, our_args.StandardRestore(tree)), tree)


def test_an_item_that_is_none_is_left_out(run):
    manager = OURS.open(run)
    manager.save(1, args=our_args.Composite(a=our_args.JsonSave(1), b=None))
    assert dict(manager.restore(1)) == {"a": 1}
    manager.save(2, args=our_args.Composite(a=our_args.JsonSave(1), b=our_args.JsonSave(2)))
    assert dict(manager.restore(2, args=our_args.Composite(b=None))) == {"b": 2}


def test_restore_right_after_an_async_save_waits(run):
    manager = OURS.open(run)
    for step in range(3):
        manager.save(step, args=our_args.StandardSave({"w": np.full((256, 256), float(step))}))
    assert manager.restore(None)["w"][0, 0] == 2
    manager.save(3, args=our_args.StandardSave({"w": np.full((256, 256), 3.0)}))
    assert manager.restore(3)["w"][0, 0] == 3


def test_a_run_may_be_behind_a_url(tree, same):
    url = f"memory://bucket/{os.urandom(8).hex()}"
    with OURS.open(url, max_to_keep=2, step_prefix="s") as manager:
        for step in range(4):
            manager.save(step, args=our_args.StandardSave({**tree, "step": step}))
        manager.wait_until_finished()
        assert manager.all_steps() == [2, 3]
        assert same(manager.restore(None), {**tree, "step": 3})
        assert str(manager.directory / "s_3") == f"{url}/s_3"
    for wrong in ({"file_options": FileOptions(path_permission_mode=0o700)},):
        with pytest.raises(mp.Unsupported, match="path_permission_mode"):
            OURS.open(url, **wrong)


def test_a_relative_directory_is_below_the_current_one(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with OURS.open("run") as manager:
        manager.save(1, args=our_args.JsonSave({}))
    assert (tmp_path / "run" / "1").is_dir()


def test_a_path_for_a_step_saves_a_checkpoint_that_stands_alone(run, tmp_path, tree, same):
    manager = OURS.open(run, max_to_keep=1)
    manager.save(1, args=our_args.StandardSave(tree))
    alone = str(tmp_path / "backup" / "best")
    assert manager.save(alone, args=our_args.StandardSave(tree), metrics={"x": 2.0})
    manager.save(2, args=our_args.StandardSave(tree))
    manager.wait_until_finished()
    assert manager.all_steps() == [2]
    assert same(mp.load(alone), tree) and same(manager.restore(alone), tree)
    assert mp.open(alone).metrics == {"x": 2.0}
    with pytest.raises(ValueError, match="force=True"):
        manager.save(alone, args=our_args.StandardSave(tree))
    manager.save(alone, args=our_args.StandardSave({"new": 1}), force=True)
    manager.wait_until_finished()
    assert manager.restore(alone) == {"new": 1}
    with pytest.raises(ValueError, match="a step is a number"):
        manager.save("12", args=our_args.StandardSave(tree))


@pytest.mark.parametrize("step", [5.0, -1, None, object()])
def test_what_is_no_step_is_refused(run, step):
    with pytest.raises((TypeError, ValueError), match="a step is"):
        OURS.open(run).save(step, args=our_args.JsonSave({}))
    assert [p.name for p in run.iterdir()] == []


def test_metadata_of_a_fresh_manager_is_whole(run, tree):
    with OURS.open(run) as manager:
        manager.save(
            0,
            args=our_args.Composite(s=our_args.StandardSave(tree), j=our_args.JsonSave({})),
            metrics={"x": 1.0},
        )
    fresh = OURS.open(run)
    described = fresh.item_metadata(0)
    assert described.s["params"]["w"].shape == (2, 3)
    assert described.s["params"]["b"].dtype == np.float32
    metadata = fresh.metadata(0)
    assert metadata.metrics == {"x": 1.0} and metadata.custom_metadata == {}
    assert "StandardCheckpointHandler" in metadata.item_handlers["s"]


def test_close_ends_the_manager_and_is_harmless_twice(run):
    manager = OURS.open(run)
    manager.save(0, args=our_args.JsonSave({}))
    manager.close()
    manager.close()
    assert os.path.isdir(run / "0")
    with pytest.raises(ValueError, match="closed"):
        manager.save(1, args=our_args.JsonSave({}))


def test_a_logger_is_told_of_every_save_and_restore(run):
    class Logger:
        def __init__(self):
            self.entries = []

        def log_entry(self, entry):
            self.entries.append(entry)

    logger = Logger()
    manager = CheckpointManager(run, logger=logger)
    manager.save(1, args=our_args.JsonSave({}))
    manager.restore(1)
    assert [(e["event_type"], e["step"]) for e in logger.entries] == [("save", 1), ("restore", 1)]
    assert logger.entries[0]["checkpoint_manager_blocking_duration_secs"] >= 0
    from orbax.checkpoint._src.logging import step_statistics as wanted

    assert logger.entries[0].keys() == vars(wanted.SaveStepStatistics()).keys()
    assert logger.entries[1].keys() == vars(wanted.RestoreStepStatistics()).keys()
    manager.native.preempt()
    manager.save(2, args=our_args.JsonSave({}))
    assert logger.entries[2]["reached_preemption"]
    assert logger.entries[2]["time_between_consecutive_saves_sec"] > 0


def test_jax_s_preemption_saves_the_step_that_its_processes_agreed_on(run, monkeypatch):
    from jax.experimental import multihost_utils

    manager = OURS.open(run, save_interval_steps=100)
    manager.save(0, args=our_args.JsonSave({}))
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: step == 3)
    assert [step for step in range(1, 6) if manager.should_save(step)] == [3]
    assert manager.reached_preemption(3) and not manager.reached_preemption(4)

    def no_service(step):
        raise RuntimeError

    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", no_service)
    assert not manager.reached_preemption(3) and not manager.should_save(3)


def test_preemption_saves_whatever_the_interval(run):
    manager = OURS.open(run, save_interval_steps=100)
    manager.save(0, args=our_args.JsonSave({}))
    manager.wait_until_finished()
    assert not manager.should_save(3) and not manager.reached_preemption(3)
    manager.native.preempt()
    assert manager.reached_preemption(3) and manager.save(3, args=our_args.JsonSave({}))
