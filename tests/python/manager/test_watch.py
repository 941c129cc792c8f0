"""An evaluator waits for steps; none is deleted while it evaluates, and none is copied."""

from __future__ import annotations

import os
import threading
import time

import pytest

from milepost.orbax import _watch, args
from milepost.orbax.checkpoint_manager import CheckpointManager, CheckpointManagerOptions


def trainer(run, **options):
    return CheckpointManager(
        run, options=CheckpointManagerOptions(enable_async_checkpointing=False, **options)
    )


def save(manager, step):
    manager.save(step, args=args.JsonSave({"step": step}))


def test_new_steps_come_as_they_are_saved_always_the_newest(run):
    seen = []
    with trainer(run) as manager:
        save(manager, 0)
        save(manager, 1)
        for step in _watch.checkpoints_iterator(run, seconds_to_sleep=0.01, timeout=0.1):
            seen.append(step)
            if step < 9:
                save(manager, step + 3)
                save(manager, step + 4)
    assert seen == [1, 5, 9]


def test_a_run_that_is_not_there_yet_is_waited_for_and_its_names_are_learned(run):
    def later():
        time.sleep(0.3)
        with trainer(run, step_prefix="step", step_format_fixed_length=5) as manager:
            save(manager, 4)

    thread = threading.Thread(target=later)
    thread.start()
    with _watch.wait_for_new_checkpoint(run, seconds_to_sleep=0.05, timeout=20) as step:
        assert step == 4
    thread.join()


def test_a_step_is_not_deleted_while_it_is_evaluated_and_is_not_copied(run):
    with trainer(run, max_to_keep=1) as manager:
        save(manager, 1)
        with _watch.wait_for_new_checkpoint(run) as step:
            save(manager, 2)
            save(manager, 3)
            assert step == 1 and manager.restore(1) == {"step": 1}
            assert manager.all_steps() == [1, 3]
            assert not (run / "_SNAPSHOTS").exists()
        save(manager, 4)
        assert manager.all_steps() == [4]


def test_the_step_is_at_least_the_one_that_is_wanted(run):
    with trainer(run) as manager:
        save(manager, 3)
        with _watch.wait_for_new_checkpoint(run, until_step=3) as step:
            assert step == 3
        wait = {"timeout": 0.1, "seconds_to_sleep": 0.02}
        with _watch.wait_for_new_checkpoint(run, until_step=4, **wait) as step:
            assert step == -1
        with _watch.wait_for_new_checkpoint(run, until_step=0) as step:
            assert step == 3


def test_after_the_timeout_the_caller_decides_whether_to_go_on(run):
    asked = []

    def give_up():
        asked.append(True)
        if len(asked) == 2:
            with trainer(run) as manager:
                save(manager, 5)
        return len(asked) > 4

    wait = {"timeout": 0.05, "seconds_to_sleep": 0.02, "timeout_fn": give_up}
    assert list(_watch.checkpoints_iterator(run, **wait)) == [5]
    assert len(asked) >= 4


def test_steps_are_not_closer_than_the_interval(run):
    with trainer(run) as manager:
        save(manager, 1)
        wait = {"min_interval_secs": 0.3, "seconds_to_sleep": 0.01, "timeout": 1}
        steps = _watch.checkpoints_iterator(run, **wait)
        next(steps)
        began = time.monotonic()
        save(manager, 2)
        assert next(steps) == 2 and time.monotonic() - began > 0.25
        steps.close()


def test_a_copy_is_made_where_one_is_asked_for(run, tmp_path):
    with trainer(run, step_prefix="s") as manager:
        save(manager, 1)
        copies = tmp_path / "copies"
        (copies / "s_0").mkdir(parents=True)
        watch = _watch.checkpoints_iterator(
            run, snapshot_dir=copies, set_immutable=True, step_prefix="s", timeout=0
        )
        for step in watch:
            assert step == 1 and os.listdir(copies) == ["s_1"]
            copy = _watch.get_snapshot_dir_from_step_dir(run / "s_1", copies)
            assert manager.restore(str(copy)) == {"step": 1}
            assert os.stat(copy / "zarr.json").st_mode & 0o222 == 0
        assert os.listdir(copies) == []


def test_steps_of_another_name_are_not_waited_for(run):
    with trainer(run) as manager:
        save(manager, 1)
    wait = {"timeout": 0.05, "seconds_to_sleep": 0.02}
    (run / "zarr.json").unlink(missing_ok=True)
    os.rename(run / "1", run / "other_1")
    assert list(_watch.checkpoints_iterator(run, **wait)) == []
    assert list(_watch.checkpoints_iterator(run, step_prefix="other", **wait)) == [1]


def test_steps_that_orbax_saved_are_seen(run):
    orbax = pytest.importorskip("orbax.checkpoint")
    with orbax.CheckpointManager(run) as manager:
        manager.save(3, args=orbax.args.JsonSave({"a": 1}))
    assert list(_watch.checkpoints_iterator(run, timeout=0, seconds_to_sleep=0.01)) == [3]
