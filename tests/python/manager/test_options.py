"""Every option of the manager does what it says, or is refused."""

from __future__ import annotations

import datetime
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import milepost as mp
from milepost.orbax import args
from milepost.orbax.checkpoint_manager import CheckpointManager, CheckpointManagerOptions
from milepost.orbax.checkpoint_managers import preservation_policy as keep
from milepost.orbax.checkpoint_managers import save_decision_policy as decide
from milepost.orbax.options import (
    AsyncOptions,
    AtomicityMode,
    AtomicityOptions,
    FileOptions,
    MultiprocessingOptions,
)
from milepost.orbax.path import step as step_names

orbax = pytest.importorskip("orbax.checkpoint")


def opened(run, **options):
    return CheckpointManager(run, options=CheckpointManagerOptions(**options))


def sync(run, **options):
    return opened(run, enable_async_checkpointing=False, **options)


def save(manager, step, **given):
    return manager.save(step, args=args.JsonSave({"step": step}), **given)


def kept(run, steps, **options):
    with sync(run, **options) as manager:
        for step in steps:
            save(manager, step)
        return manager.all_steps()


def test_every_option_of_orbax_is_there_with_its_default():
    import dataclasses

    ours = {f.name: f for f in dataclasses.fields(CheckpointManagerOptions)}
    mine, theirs = CheckpointManagerOptions(), orbax.CheckpointManagerOptions()
    for field in dataclasses.fields(orbax.CheckpointManagerOptions):
        assert field.name in ours, field.name
        if field.name not in ("multiprocessing_options", "file_options"):
            assert getattr(mine, field.name) == getattr(theirs, field.name), field.name
    for name in ("AsyncOptions", "MultiprocessingOptions", "FileOptions", "AtomicityOptions"):
        from milepost.orbax import options

        wanted = {f.name: f.default for f in dataclasses.fields(getattr(orbax.options, name))}
        got = {f.name: f.default for f in dataclasses.fields(getattr(options, name))}
        assert wanted.keys() == got.keys() and all(str(got[k]) == str(wanted[k]) for k in got), name


def test_the_latest_are_kept_and_the_multiples_of_a_period(run):
    assert kept(run, range(8), max_to_keep=2, keep_period=3) == [0, 3, 6, 7]


@pytest.mark.parametrize("hour", [3600, datetime.timedelta(hours=1)])
def test_a_time_interval_is_a_timedelta_or_seconds(run, hour):
    assert kept(run, range(4), max_to_keep=1, keep_time_interval=hour) == [0, 3]


def test_a_time_interval_counts_from_the_last_step_that_was_kept(run):
    with sync(run, max_to_keep=1, keep_time_interval=0.4) as manager:
        for step in range(3):
            save(manager, step)
        time.sleep(0.45)
        save(manager, 3)
        save(manager, 4)
        assert manager.all_steps() == [0, 3, 4]


def test_what_excludes_each_other_or_can_never_be_meant_is_a_value_error(run):
    policy = keep.LatestN(2)
    for wrong in (
        {"max_to_keep": -1},
        {"best_mode": "most"},
        {"todelete_subdir": "a", "todelete_full_path": "b"},
        {"num_deletion_threads": 0},
        {"enable_per_process_directory_creation": True},
        {
            "single_host_load_and_broadcast": True,
            "step_name_format": step_names.standard_name_format(),
        },
        {"preservation_policy": policy, "max_to_keep": 3},
        {"preservation_policy": policy, "keep_period": 3},
        {"preservation_policy": policy, "keep_time_interval": 3},
        {"keep_period": 0},
        {"save_interval_steps": 0},
        {"multiprocessing_options": MultiprocessingOptions(1, {0, 2}), "create": False},
    ):
        with pytest.raises(ValueError):
            opened(run, **wrong)
    with pytest.raises(ValueError, match="Timeout must be positive, but got 0 seconds"):
        AsyncOptions(timeout_secs=0)
    with pytest.raises(ValueError, match="asynchronous"):
        sync(run, async_options=AsyncOptions(post_finalization_callback=print))
    with pytest.raises(NotImplementedError, match="create the root directory yourself"):
        opened(run, multiprocessing_options=MultiprocessingOptions(0, {0}))


def test_what_cannot_be_followed_is_refused(run):
    for wrong in (
        {"todelete_full_path": "trash/"},
        {"atomicity_options": AtomicityOptions(AtomicityMode.COMMIT_FILE)},
        {"temporary_path_class": dict},
    ):
        with pytest.raises(mp.Unsupported):
            opened(run, **wrong)
    assert save(sync(run, atomicity_options=AtomicityOptions(AtomicityMode.ATOMIC_RENAME)), 1)


def test_a_process_that_is_not_there_cannot_be_the_primary_one(run):
    with pytest.raises(ValueError, match="primary_host"):
        opened(run, multiprocessing_options=MultiprocessingOptions(primary_host=1))
    assert save(sync(run, multiprocessing_options=MultiprocessingOptions(primary_host=None)), 1)


def test_steps_to_save_come_by_interval_by_number_or_by_a_function(run):
    with sync(run / "a", save_interval_steps=4, save_on_steps=[5, 6]) as manager:
        assert [s for s in range(1, 10) if save(manager, s)] == [1, 4, 5, 6, 8]
    asked = []

    def wanted(step, latest):
        asked.append((step, latest))
        return step % 3 == 0

    with sync(run / "b", should_save_fn=wanted) as manager:
        assert [s for s in range(1, 10) if save(manager, s)] == [3, 6, 9]
    assert asked[:4] == [(1, None), (2, None), (3, None), (4, 3)]


def test_a_policy_of_the_caller_knows_the_steps_and_what_is_in_flight(run):
    seen = []

    class Own:
        def should_save(self, step, previous_steps, *, context):
            seen.append(
                (
                    step.step,
                    [(p.step, p.metrics) for p in previous_steps],
                    context.reached_preemption,
                )
            )
            return True

    with opened(run, save_decision_policy=Own()) as manager:
        save(manager, 1, metrics={"x": 1.0})
        save(manager, 2)
        manager.native.preempt()
        save(manager, 3)
    assert seen[0] == (1, [], False)
    assert seen[1] == (2, [(1, {"x": 1.0})], False)
    assert seen[2] == (3, [(1, {"x": 1.0}), (2, None)], True)


def test_a_policy_of_the_caller_keeps_steps_by_time_and_metrics(run):
    seen = []

    class Own:
        def should_preserve(self, checkpoints, *, context):
            seen.append([(c.step, c.metrics) for c in checkpoints])
            now = datetime.datetime.now(tz=datetime.timezone.utc)
            assert all(now - c.time < datetime.timedelta(minutes=5) for c in checkpoints)
            return [c.metrics is not None for c in checkpoints]

    with sync(run, preservation_policy=Own()) as manager:
        save(manager, 1, metrics={"x": {"y": 1}, "name": "a"})
        save(manager, 2)
        save(manager, 3)
        assert manager.all_steps() == [1, 3]
    assert seen[-1] == [(1, {"x": {"y": 1}, "name": "a"}), (2, None), (3, None)]


def test_continuous_saving_waits_for_the_save_in_flight_unless_it_is_not_asked(run):
    gate = threading.Event()
    slow = AsyncOptions(barrier_sync_fn=lambda *, key, timeout_ms: gate.wait(20))
    for watched in (True, False):
        manager = opened(
            run / str(watched),
            save_decision_policy=decide.ContinuousCheckpointingPolicy(minimum_interval_secs=None),
            enable_should_save_is_saving_in_progress_check=watched,
            async_options=slow,
        )
        manager.save(1, args=args.StandardSave({"w": np.ones((2048, 2048))}))
        if manager.native.is_saving():
            assert manager.should_save(2) is not watched
        gate.set()
        manager.close()
    rare = decide.ContinuousCheckpointingPolicy(minimum_interval_secs=3600)
    with sync(run / "rare", save_decision_policy=rare) as manager:
        assert save(manager, 1) and not save(manager, 2)
    with sync(run / "rare", save_decision_policy=rare) as manager:
        assert not save(manager, 3), "a restart is no reason"


def test_names_have_a_prefix_and_a_length(run):
    with sync(run, step_prefix="test", step_format_fixed_length=6) as manager:
        save(manager, 1)
        assert (run / "test_000001").is_dir()
    assert sync(run, step_prefix="test", step_format_fixed_length=6).all_steps() == [1]
    assert sync(run).all_steps() == [1], "the run itself knows"
    with pytest.raises(ValueError, match="names its steps otherwise"):
        sync(run, step_prefix="other")


def test_the_run_is_created_at_once_or_by_the_first_save(run):
    opened(run / "a")
    assert (run / "a").is_dir()
    late = sync(run / "b", create=False)
    assert not (run / "b").exists() and late.all_steps() == []
    assert save(late, 1) and late.all_steps() == [1]


DIES_WHILE_SAVING = """
import os, signal, sys
import numpy as np
from milepost.orbax import args
from milepost.orbax.checkpoint_manager import CheckpointManager
manager = CheckpointManager(sys.argv[1])
manager.save(1, args=args.StandardSave({"w": 1}))
manager.wait_until_finished()
manager.save(2, args=args.StandardSave({"w": np.ones((4096, 4096))}))
tmp = os.path.join(sys.argv[1], ".milepost", "tmp")
while not any(entry.is_dir() for entry in os.scandir(tmp)):
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_dead_writers_are_swept_where_that_is_asked_for(run):
    died = subprocess.run([sys.executable, "-c", DIES_WHILE_SAVING, str(run)], timeout=60)
    assert died.returncode == -signal.SIGKILL
    tmp = run / ".milepost" / "tmp"

    def left():
        return [path for path in tmp.iterdir() if path.is_dir()]

    with opened(run) as manager:
        assert manager.all_steps() == [1]
    assert left()
    with opened(run, cleanup_tmp_directories=True) as manager:
        manager.wait_until_finished()
        assert left() == [] and manager.all_steps() == [1]
        assert manager.save(2, args=args.StandardSave({"w": 2}))


def test_steps_to_delete_are_moved_where_that_is_asked_for(run):
    with sync(run, max_to_keep=1, todelete_subdir="old") as manager:
        for step in range(3):
            save(manager, step)
        assert manager.all_steps() == [2]
        manager.delete(2)
        manager.wait_until_finished()
    assert sorted(os.listdir(run / "old")) == ["0", "1", "2"]
    assert mp.load(str(run / "old" / "1")) == {"step": 1}


@pytest.mark.parametrize("background", [True, False])
def test_old_steps_are_gone_when_close_returns(run, background):
    options = {"enable_background_delete": background, "num_deletion_threads": 2}
    with sync(run, max_to_keep=1, **options) as manager:
        for step in range(4):
            save(manager, step)
            if not background:
                assert manager.all_steps() == [step] and not (run / str(step - 1)).exists()
    assert sorted(p.name for p in run.iterdir() if p.name.isdigit()) == ["3"]


def test_async_saves_return_before_and_sync_ones_after_the_commit(run):
    gate = threading.Event()
    told = []

    def callback():
        assert gate.wait(20)
        told.append(True)

    manager = opened(run / "a", async_options=AsyncOptions(post_finalization_callback=callback))
    assert save(manager, 1) and manager.is_saving_in_progress() and not told
    gate.set()
    manager.wait_until_finished()
    assert told == [True]
    other = sync(run / "b")
    assert save(other, 1) and (run / "b" / "1" / "zarr.json").exists()


def test_the_barrier_is_called_after_each_commit_with_the_same_key_everywhere(run):
    called = []
    manager = opened(
        run,
        async_options=AsyncOptions(
            timeout_secs=7,
            barrier_sync_fn=lambda *, key, timeout_ms: called.append((key, timeout_ms)),
        ),
        multiprocessing_options=MultiprocessingOptions(barrier_sync_key_prefix="mine"),
    )
    save(manager, 3)
    manager.wait_until_finished()
    assert called == [("mine_milepost_committed_3", 7000)]


def test_the_mode_of_directories_is_the_caller_s(run):
    with sync(run, file_options=FileOptions(path_permission_mode=0o750)) as manager:
        manager.save(1, args=args.StandardSave({"w": np.ones(3)}))
    for directory in (run, run / "1", run / "1" / "default"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o750, directory


def test_compression_is_what_is_asked_for(run):
    zeros = {"w": np.zeros(1 << 18)}
    sizes = {}
    for compression in (None, "zstd", "zstd:9", "none"):
        name = str(compression)
        with sync(run / name, compression=compression) as manager:
            manager.save(1, args=args.StandardSave(zeros))
            manager.save(str(run / f"{name}-alone"), args=args.StandardSave(zeros))
        alone, step = (
            sum(info.stored_bytes for info in mp.open(str(url)).items.values())
            for url in (run / f"{name}-alone", run / name / "1")
        )
        assert alone == step
        sizes[name] = step
    assert sizes["zstd"] < sizes["none"] / 50 and sizes["None"] == sizes["none"]
    with pytest.raises(ValueError, match="rar"):
        opened(run / "wrong", compression="rar")


def test_the_tree_s_metadata_for_others_is_left_out_where_that_is_asked_for(run):
    texts = []
    for wanted in (True, False):
        with sync(run / str(wanted), write_tree_metadata=wanted) as manager:
            manager.save(1, args=args.StandardSave({"a": np.ones(2), "b": np.ones(2)}))
        texts.append((run / str(wanted) / "1" / "default" / "zarr.json").read_text())
    assert "consolidated_metadata" in texts[0] and "consolidated_metadata" not in texts[1]


def test_metrics_that_are_not_to_be_written_rank_as_long_as_the_manager_lives(run):
    options = {"prevent_write_metrics": True, "best_fn": lambda metrics: metrics["x"]}
    with sync(run, max_to_keep=1, **options) as manager:
        save(manager, 1, metrics={"x": 2.0})
        save(manager, 2, metrics={"x": 1.0})
        assert manager.all_steps() == [1, 2] and manager.best_step() == 1
        save(manager, 3, metrics={"x": 1.5})
        assert manager.all_steps() == [1, 3] and manager.metrics(1) == {"x": 2.0}
    assert mp.open(str(run / "1")).metrics == {} and opened(run).metrics(1) is None


def test_a_light_start_knows_metrics_all_the_same(run):
    with sync(run) as manager:
        save(manager, 1, metrics={"x": 2.0})
        save(manager, 2, metrics={"x": 1.0})
    light = opened(run, lightweight_initialize=True, best_fn=lambda metrics: metrics["x"])
    assert light.best_step() == 1


def test_a_save_that_takes_too_long_fails_with_a_timeout(run):
    manager = opened(run, async_options=AsyncOptions(timeout_secs=1e-6))
    with pytest.raises(TimeoutError):
        manager.save(1, args=args.StandardSave({"w": np.ones((4096, 4096))}))
        manager.wait_until_finished()
    assert manager.all_steps() == []
    alone = str(run / "alone")
    with pytest.raises(TimeoutError):
        manager.save(alone, args=args.StandardSave({"w": np.ones((4096, 4096))}))
        manager.wait_until_finished()
    assert not os.path.exists(alone)


def test_read_only_puts_aside_what_writes():
    options = CheckpointManagerOptions(
        read_only=True, max_to_keep=3, keep_period=2, save_on_steps=[1], todelete_subdir="x"
    )
    assert (options.max_to_keep, options.keep_period, options.create) == (None, None, False)
    assert options.save_interval_steps == 0 and options.todelete_subdir is None
