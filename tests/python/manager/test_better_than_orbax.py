"""Where Orbax loses data or stays silent (reference §0, 4 to 7): what happens here instead."""

from __future__ import annotations

import _thread
import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import milepost as mp
from milepost.orbax import args
from milepost.orbax.checkpoint_manager import CheckpointManager, CheckpointManagerOptions
from milepost.orbax.checkpoint_managers import preservation_policy as keep
from milepost.orbax.options import AsyncOptions


def opened(run, **options):
    return CheckpointManager(run, options=CheckpointManagerOptions(**options))


def sync(run, **options):
    return opened(run, enable_async_checkpointing=False, **options)


def save(manager, step, **given):
    return manager.save(step, args=args.JsonSave({"step": step}), **given)


class Gate:
    """A custom handler that waits, so that a save is in flight as long as a test wants."""

    def __init__(self):
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self):
        self.entered.set()
        assert self.open.wait(20)


def in_flight(run, **options):
    """A manager whose saves are not over until the gate is opened."""
    gate = Gate()
    asynchronous = AsyncOptions(post_finalization_callback=gate)
    return opened(run, async_options=asynchronous, **options), gate


# --- retention (§0, 4)


def test_best_n_without_best_fn_keeps_the_best_over_a_restart(run):
    best = keep.BestN(
        get_metric_fn=lambda metrics: metrics["acc"], n=1, keep_checkpoints_without_metrics=False
    )
    with sync(run, preservation_policy=best) as manager:
        save(manager, 1, metrics={"acc": 0.9})
    with sync(run, preservation_policy=best) as manager:
        save(manager, 2, metrics={"acc": 0.1})
        assert manager.all_steps() == [1, 2] and manager.best_step() == 1
        save(manager, 3, metrics={"acc": 0.2})
        assert manager.all_steps() == [1, 3], "the newest is kept whatever its metric"


def test_metrics_are_stored_whether_or_not_anything_ranks_by_them(run):
    with sync(run) as manager:
        save(manager, 1, metrics={"loss": 0.5})
    assert opened(run).metrics(1) == {"loss": 0.5}
    assert mp.open(str(run / "1")).metrics == {"loss": 0.5}
    assert opened(run, best_fn=lambda metrics: -metrics["loss"]).best_step() == 1


def test_nan_is_the_worst_metric(run):
    with sync(run, max_to_keep=2, best_fn=lambda m: m["loss"], best_mode="min") as manager:
        for step, loss in enumerate([5.0, 1.0, math.nan, 0.5, 9.0]):
            save(manager, step, metrics={"loss": loss})
        assert manager.all_steps() == [1, 3, 4], "4 is the newest"
        save(manager, 5, metrics={"loss": 0.7})
        assert manager.all_steps() == [3, 5] and manager.best_step() == 3


def test_order_is_that_of_the_numbers_not_of_saving(run):
    manager = sync(run, max_to_keep=1)
    save(manager, 1)
    save(manager, 3)
    save(manager, 2, force=True)
    assert manager.all_steps() == [3] and manager.latest_step() == 3
    free = sync(run)
    save(free, 1, force=True)
    assert free.all_steps() == [1, 3]


def test_the_newest_step_stays_with_max_to_keep_of_0(run):
    manager = sync(run, max_to_keep=0)
    for step in range(3):
        save(manager, step)
        assert manager.all_steps() == [step]


def test_keeping_the_best_keeps_the_latest_too(run):
    manager = sync(run, max_to_keep=1, best_fn=lambda metrics: metrics["acc"])
    for step, acc in enumerate([0.9, 0.5, 0.4]):
        save(manager, step, metrics={"acc": acc})
    assert manager.all_steps() == [0, 2]
    assert manager.restore(None) == {"step": 2}


def test_a_step_that_is_half_deleted_is_never_listed(run):
    manager = sync(run)
    for step in range(3):
        manager.save(step, args=args.StandardSave({"w": np.ones(4), "b": {"c": np.ones(2)}}))
    seen = []
    manager.native.on_event(lambda event: seen.append(sorted(opened(run).all_steps())))
    manager.delete(1)
    manager.wait_until_finished()
    assert manager.all_steps() == [0, 2] and opened(run).all_steps() == [0, 2]
    assert seen and all(1 not in steps for steps in seen)
    assert not (run / "1").exists()


# --- failures and what is in flight (§0, 5)


def test_what_is_in_flight_is_not_listed_and_is_waited_for(run):
    manager, gate = in_flight(run)
    manager.save(1, args=args.StandardSave({"w": np.ones((512, 512))}))
    reader = opened(run)
    assert gate.entered.wait(20)
    assert manager.is_saving_in_progress()
    gate.open.set()
    manager.wait_until_finished()
    assert not manager.is_saving_in_progress()
    reader.reload()
    assert reader.all_steps() == manager.all_steps() == [1]
    assert [name for name in os.listdir(run) if name not in ("1", ".milepost", "zarr.json")] == []


def test_a_failed_save_hides_no_step_and_is_told_once(run):
    manager = opened(run, max_to_keep=1)
    save(manager, 1)
    manager.wait_until_finished()
    in_the_way = run / "2"
    in_the_way.write_text("a file where the step is to be")
    assert save(manager, 2)
    manager._saves.wait()
    with pytest.raises(mp.MilepostError, match="2"):
        manager.check_for_errors()
    manager.check_for_errors()
    assert manager.all_steps() == [1] and manager.latest_step() == 1
    assert not manager.is_saving_in_progress()
    assert manager.restore(None) == {"step": 1}
    in_the_way.unlink()
    assert save(manager, 2), "the step of a failed save can be saved"
    manager.wait_until_finished()
    assert manager.all_steps() == [2]


def test_the_failure_of_an_earlier_save_is_told_by_the_next_and_by_wait(run):
    def broken():
        raise OSError("the callback broke")

    for tell in ("save", "wait_until_finished", "check_for_errors", "close"):
        manager = opened(run / tell, async_options=AsyncOptions(post_finalization_callback=broken))
        save(manager, 1)
        manager._saves.wait()
        with pytest.raises(OSError, match="the callback broke"):
            save(manager, 2) if tell == "save" else getattr(manager, tell)()
        assert manager.all_steps() == [1], "it is committed all the same"
        manager.check_for_errors()


def test_each_thread_is_told_of_a_failure_once_until_the_next_save(run):
    def broken():
        raise OSError("the callback broke")

    manager = opened(run, async_options=AsyncOptions(post_finalization_callback=broken))
    save(manager, 1)
    told = []

    def watch():
        for _ in range(2):
            try:
                manager.wait_until_finished()
            except OSError as error:
                told.append(str(error))

    watcher = threading.Thread(target=watch)
    watcher.start()
    watcher.join()
    assert told == ["the callback broke"]
    with pytest.raises(OSError, match="the callback broke"):
        save(manager, 2)
    assert save(manager, 2)
    with pytest.raises(OSError):
        manager.close()


def test_a_failure_that_nobody_asked_for_is_printed_at_exit(run):
    died = subprocess.run([sys.executable, "-c", FAILS, str(run)], capture_output=True, timeout=60)
    assert died.returncode == 0
    assert died.stderr.decode().count("a save failed and nobody asked") == 1


FAILS = """
import os, sys
from milepost.orbax import args
from milepost.orbax.checkpoint_manager import CheckpointManager
manager = CheckpointManager(sys.argv[1])
open(os.path.join(sys.argv[1], "2"), "w").close()
manager.save(2, args=args.JsonSave({}))
"""


def test_ctrl_c_cancels_a_synchronous_save(run):
    manager = sync(run)
    state = {"w": np.ones((4096, 4096))}
    manager.save(0, args=args.StandardSave({"w": np.ones(4)}))
    timer = threading.Timer(0.02, _thread.interrupt_main)
    timer.start()
    try:
        manager.save(1, args=args.StandardSave(state))
    except KeyboardInterrupt:
        manager.wait_until_finished()
        assert not manager.is_saving_in_progress()
        manager.reload()
        assert manager.all_steps() in ([0], [0, 1])
    timer.join()
    assert manager.save(2, args=args.StandardSave({"w": np.ones(4)}))


def test_a_forked_child_does_not_wait_for_its_parent_s_saves(run):
    died = subprocess.run([sys.executable, "-c", FORKS, str(run)], capture_output=True, timeout=60)
    assert died.returncode == 0, died.stderr.decode()
    assert died.stdout.decode().split() == ["child", "parent", "[1]"]


FORKS = """
import os, sys, threading
from milepost.orbax import args
from milepost.orbax.checkpoint_manager import CheckpointManager, CheckpointManagerOptions
from milepost.orbax.options import AsyncOptions
gate = threading.Event()
options = CheckpointManagerOptions(async_options=AsyncOptions(post_finalization_callback=gate.wait))
manager = CheckpointManager(sys.argv[1], options=options)
manager.save(1, args=args.JsonSave({}))
child = os.fork()
if child == 0:
    print("child", flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
gate.set()
manager.wait_until_finished()
print("parent", manager.all_steps())
"""


def test_a_sync_failure_leaves_nothing_in_progress(run):
    manager = sync(run)
    with pytest.raises(Exception, match="object"):
        manager.save(1, args=args.StandardSave({"bad": object()}))
    assert not manager.is_saving_in_progress() and manager.all_steps() == []
    assert save(manager, 1) and manager.all_steps() == [1]


# --- force, read-only (§0, 6 and 7)


@pytest.mark.parametrize("force", [False, True])
def test_a_read_only_manager_never_writes(run, tmp_path, force):
    with sync(run) as manager:
        save(manager, 1)
    before = sorted(p.relative_to(run) for p in run.rglob("*"))
    reader = opened(run, read_only=True, max_to_keep=0, cleanup_tmp_directories=True)
    assert not save(reader, 4, force=force) and not reader.should_save(4)
    assert not reader.save(str(tmp_path / "alone"), args=args.JsonSave({}), force=force)
    reader.delete(1)
    reader.close()
    assert sorted(p.relative_to(run) for p in run.rglob("*")) == before
    assert not (tmp_path / "alone").exists() and reader.restore(1) == {"step": 1}


def test_force_skips_the_policy_and_never_overwrites(run):
    manager = sync(run, save_interval_steps=10)
    save(manager, 0)
    assert not save(manager, 3) and save(manager, 3, force=True)
    with pytest.raises(ValueError, match="exists"):
        manager.save(3, args=args.JsonSave({"other": 1}), force=True)
    assert manager.restore(3) == {"step": 3}


def test_a_forced_standalone_save_replaces_only_when_it_is_whole(run, tmp_path):
    manager = sync(run)
    alone = str(tmp_path / "alone")
    manager.save(alone, args=args.StandardSave({"v": 1}))
    with pytest.raises(Exception, match="object"):
        manager.save(alone, args=args.StandardSave({"bad": object()}), force=True)
    assert manager.restore(alone) == {"v": 1}
    manager.save(alone, args=args.StandardSave({"v": 2}), force=True)
    assert manager.restore(alone) == {"v": 2}


# --- best_fn


def test_an_error_in_best_fn_comes_before_anything_is_written_and_poisons_nothing(run):
    manager = opened(run, max_to_keep=1, best_fn=lambda metrics: metrics["acc"])
    save(manager, 1, metrics={"acc": 0.5})
    manager.wait_until_finished()
    with pytest.raises(KeyError, match="acc"):
        save(manager, 2, metrics={"loss": 1.0})
    with pytest.raises(TypeError, match="best_fn returns a number"):
        save(manager, 2, metrics={"acc": "high"})
    assert manager.all_steps() == [1] and not (run / "2").exists()
    assert not manager.is_saving_in_progress()
    assert save(manager, 2, metrics={"acc": 0.9})
    manager.wait_until_finished()
    assert manager.all_steps() == [2]


def test_a_step_whose_metrics_another_best_fn_cannot_rank_is_kept(run):
    with sync(run) as manager:
        save(manager, 1, metrics={"loss": 0.5})
    manager = sync(
        run, max_to_keep=1, best_fn=lambda m: m["acc"], keep_checkpoints_without_metrics=False
    )
    for step in (2, 3, 4):
        save(manager, step, metrics={"acc": float(-step)})
    assert manager.all_steps() == [1, 2, 4] and manager.best_step() == 2


def test_a_broken_policy_of_the_caller_deletes_nothing_and_is_told(run):
    class Broken:
        def should_preserve(self, checkpoints, *, context):
            if len(checkpoints) > 1:
                raise RuntimeError("the policy broke")
            return [True]

    manager = opened(run, preservation_policy=Broken())
    save(manager, 1)
    manager.wait_until_finished()
    assert save(manager, 2)
    with pytest.raises(RuntimeError, match="the policy broke"):
        manager.wait_until_finished()
    assert save(manager, 3), "it costs no save"
    with pytest.raises(RuntimeError, match="the policy broke"):
        manager.close()
    assert manager.all_steps() == [1, 2, 3]


def test_a_policy_of_the_caller_that_raises_is_told_by_should_save(run):
    class Broken:
        def should_save(self, step, previous_steps, *, context):
            raise RuntimeError("the policy broke")

    manager = opened(run, save_decision_policy=Broken())
    with pytest.raises(RuntimeError, match="the policy broke"):
        manager.should_save(1)
    with pytest.raises(RuntimeError, match="the policy broke"):
        save(manager, 1)
    assert save(manager, 1, force=True)
