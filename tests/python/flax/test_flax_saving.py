"""`save_checkpoint`: the rows of the reference (§1.2, §1.4), and what is better than in Flax."""

import functools
import logging
import os
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

import milepost as mp
from milepost.flax import _entry

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STATE = {"a": np.array([1, 2, 3], np.int32), "b": {"c": np.ones(2)}}


def listed(directory):
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


def test_a_checkpoint_is_a_standalone_checkpoint_of_milepost(ours, tmp_path):
    path = ours.save_checkpoint(tmp_path, STATE, 7)
    assert path == str(tmp_path / "checkpoint_7")
    checkpoint = mp.open(path)
    assert list(checkpoint.items) == ["state"]
    np.testing.assert_array_equal(checkpoint["b/c"][:], np.ones(2))
    np.testing.assert_array_equal(mp.load(path)["a"], [1, 2, 3])
    assert listed(tmp_path) == ["checkpoint_7"]


def test_the_path_is_flaxs(ours, oracle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, directory in enumerate([tmp_path / "x", "./y//z/", "w/../v", ".", tmp_path]):
        step = 10 * number
        mine = ours.save_checkpoint(directory, STATE, step, prefix="m_")
        theirs = oracle.save_checkpoint(directory, STATE, step, prefix="t_")
        assert mine.replace("m_", "t_") == theirs
        assert os.path.isdir(mine)


STEPS = [0, 5, -1, 0.1, 1e5, 1e-7, np.int64(4), np.float32(0.5), jnp.int32(3)]


@pytest.mark.parametrize("step", STEPS)
def test_steps_of_any_kind_name_the_same_checkpoint(ours, oracle, tmp_path, step):
    mine = ours.save_checkpoint(tmp_path / "m", STATE, step)
    theirs = oracle.save_checkpoint(tmp_path / "t", STATE, step)
    assert os.path.basename(mine) == os.path.basename(theirs)
    assert ours.restore_checkpoint(tmp_path / "m", None, step=step)["a"].tolist() == [1, 2, 3]


def test_an_outdated_save_is_refused_with_flaxs_message(either, tmp_path):
    either.save_checkpoint(tmp_path, STATE, 5)
    for step in (5, 4, 4.5, -1):
        with pytest.raises(errors.InvalidCheckpointError) as raised:
            either.save_checkpoint(tmp_path, STATE, step)
        assert f'Trying to save an outdated checkpoint at step: "{step}"' in str(raised.value)
        assert f'path: "{tmp_path}/checkpoint_{step}"' in str(raised.value)
    assert listed(tmp_path) == ["checkpoint_5"]


def test_one_step_in_two_spellings_is_two_checkpoints(either, tmp_path):
    either.save_checkpoint(tmp_path, STATE, 1, keep=5)
    either.save_checkpoint(tmp_path, STATE, 1.0, keep=5)
    assert listed(tmp_path) == ["checkpoint_1", "checkpoint_1.0"]


def test_overwrite_replaces_a_step_and_deletes_later_ones(either, tmp_path):
    for step in (1, 2, 3, 4):
        either.save_checkpoint(tmp_path, STATE, step, keep=10)
    either.save_checkpoint(tmp_path, {"a": np.zeros(1)}, 3, keep=10, overwrite=True)
    assert listed(tmp_path) == ["checkpoint_1", "checkpoint_2", "checkpoint_3"]
    assert either.restore_checkpoint(tmp_path, None)["a"].tolist() == [0.0]


def test_overwrite_with_a_negative_step_deletes_the_fractions_above(either, tmp_path):
    for step in (0.001, 0.01, 0.1):
        either.save_checkpoint(tmp_path, STATE, step, keep=10)
    either.save_checkpoint(tmp_path, STATE, -1.0, keep=10, overwrite=True)
    assert listed(tmp_path) == ["checkpoint_-1.0"]


def test_keep_and_keep_every_n_steps(either, tmp_path):
    for step in range(21):
        either.save_checkpoint(tmp_path, {"s": np.int8(step)}, step, keep=2, keep_every_n_steps=5)
    assert either.available_steps(tmp_path) == [1, 6, 11, 16, 19, 20]


def test_nothing_is_deleted_before_the_newer_one_is_committed(ours, tmp_path, monkeypatch):
    ours.save_checkpoint(tmp_path, STATE, 1)
    seen = []
    remove = _entry.remove
    monkeypatch.setattr(_entry, "remove", lambda path: (seen.append(listed(tmp_path)), remove(path)))
    ours.save_checkpoint(tmp_path, STATE, 2)
    assert seen == [["checkpoint_1", "checkpoint_2"]]
    assert listed(tmp_path) == ["checkpoint_2"]


def test_a_save_that_fails_leaves_all_older_ones(ours, tmp_path):
    ours.save_checkpoint(tmp_path, STATE, 1)
    with pytest.raises(mp.Invalid, match="bad"):
        ours.save_checkpoint(tmp_path, {"bad": object()}, 2)
    with pytest.raises(mp.Invalid, match="bad"):
        ours.save_checkpoint(tmp_path, {"bad": object()}, 0, overwrite=True)
    assert listed(tmp_path) == ["checkpoint_1"]


def test_a_crash_between_commit_and_cleaning_is_made_up_for_by_the_next_save(ours, tmp_path):
    code = f"""
import os, numpy as np
from milepost.flax import checkpoints, _entry
checkpoints.save_checkpoint({str(tmp_path)!r}, {{"a": np.ones(2)}}, 1)
_entry.remove = lambda path: os._exit(9)
checkpoints.save_checkpoint({str(tmp_path)!r}, {{"a": np.ones(2)}}, 2)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert listed(tmp_path) == ["checkpoint_1", "checkpoint_2"]
    ours.save_checkpoint(tmp_path, STATE, 3)
    assert listed(tmp_path) == ["checkpoint_3"]


def test_a_crash_while_deleting_leaves_litter_that_is_no_checkpoint(ours, tmp_path, monkeypatch):
    ours.save_checkpoint(tmp_path, STATE, 1)
    code = f"""
import os, shutil, numpy as np
from milepost.flax import checkpoints
shutil.rmtree = lambda path: os._exit(9)
checkpoints.save_checkpoint({str(tmp_path)!r}, {{"a": np.ones(2)}}, 2)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert len(listed(tmp_path)) == 2
    assert ours.available_steps(tmp_path) == [2]
    monkeypatch.setattr(_entry, "_LITTER_SECONDS", -1)
    ours.save_checkpoint(tmp_path, STATE, 3)
    assert listed(tmp_path) == ["checkpoint_3"]


def test_files_beside_the_checkpoints_are_left_alone(ours, tmp_path):
    notes = ["checkpoint_notes.txt", "checkpoint_best_3", "checkpoint_", "other_9"]
    for name in notes:
        path = tmp_path / name
        path.mkdir() if name == "checkpoint_best_3" else path.write_text("x")
    for step in (1, 2, 3):
        ours.save_checkpoint(tmp_path, STATE, step)
    ours.save_checkpoint(tmp_path, STATE, 2, overwrite=True)
    assert listed(tmp_path) == sorted([*notes, "checkpoint_2"])


def test_prefixes_that_begin_one_another_do_not_touch_each_other(ours, tmp_path):
    # Flax deletes checkpoint_best_3 here, as a later step.
    ours.save_checkpoint(tmp_path, STATE, 3, prefix="checkpoint_best_")
    ours.save_checkpoint(tmp_path, STATE, 1)
    ours.save_checkpoint(tmp_path, STATE, 1, overwrite=True)
    ours.save_checkpoint(tmp_path, STATE, 2)
    assert listed(tmp_path) == ["checkpoint_2", "checkpoint_best_3"]
    assert ours.latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint_2")
    assert ours.available_steps(tmp_path, "checkpoint_best_") == [3]


def test_a_prefix_that_ends_in_a_minus_does_not_turn_steps_around(ours, tmp_path):
    # Flax takes ckpt-2 for step -2, and refuses it after ckpt-1.
    ours.save_checkpoint(tmp_path, STATE, 1, prefix="ckpt-")
    ours.save_checkpoint(tmp_path, STATE, 2, prefix="ckpt-")
    assert listed(tmp_path) == ["ckpt-2"]


def test_steps_that_are_texts_are_families_of_their_own(ours, tmp_path):
    ours.save_checkpoint(tmp_path, STATE, "best", overwrite=True)
    for epoch in (9, 10, 11):
        ours.save_checkpoint(tmp_path, STATE, f"epoch_{epoch}", keep=2)
    ours.save_checkpoint(tmp_path, STATE, "best", overwrite=True)
    assert listed(tmp_path) == ["checkpoint_best", "checkpoint_epoch_10", "checkpoint_epoch_11"]
    assert ours.restore_checkpoint(tmp_path, None, step="best")["a"].tolist() == [1, 2, 3]


def test_a_link_is_removed_and_not_what_it_leads_to(ours, tmp_path):
    ours.save_checkpoint(tmp_path / "elsewhere", STATE, 1)
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint_1").symlink_to(tmp_path / "elsewhere" / "checkpoint_1")
    ours.save_checkpoint(run, STATE, 2)
    assert listed(run) == ["checkpoint_2"]
    assert ours.available_steps(tmp_path / "elsewhere") == [1]


def test_a_checkpoint_with_somebodys_files_in_it_is_not_deleted(ours, tmp_path, caplog):
    ours.save_checkpoint(tmp_path, STATE, 1)
    (tmp_path / "checkpoint_1" / "notes.md").write_text("mine")
    with caplog.at_level(logging.WARNING, "milepost.flax"):
        ours.save_checkpoint(tmp_path, STATE, 2)
    assert listed(tmp_path) == ["checkpoint_1", "checkpoint_2"]
    assert "notes.md" in caplog.text


def test_a_run_or_a_directory_of_something_else_in_the_way_is_refused(ours, tmp_path):
    (tmp_path / "checkpoint_1").mkdir()
    (tmp_path / "checkpoint_1" / "data").write_text("mine")
    with pytest.raises(errors.InvalidCheckpointError):
        ours.save_checkpoint(tmp_path, STATE, 1)
    with pytest.raises(mp.Invalid, match="in the way"):
        ours.save_checkpoint(tmp_path, STATE, 1, overwrite=True)
    assert (tmp_path / "checkpoint_1" / "data").read_text() == "mine"


def test_remote_directories_are_refused_with_what_to_do(ours):
    for call in (ours.latest_checkpoint, lambda d: ours.save_checkpoint(d, STATE, 1)):
        with pytest.raises(mp.Unsupported, match="CheckpointManager"):
            call("s3://bucket/run")


def test_a_file_url_is_a_local_directory(ours, tmp_path):
    path = ours.save_checkpoint(f"file://{tmp_path}/run", STATE, 1)
    assert path == f"file://{tmp_path}/run/checkpoint_1"
    assert listed(tmp_path / "run") == ["checkpoint_1"]
    assert ours.restore_checkpoint(path, None)["a"].tolist() == [1, 2, 3]


# --- in the background ---


def test_an_async_save_holds_what_the_state_was(ours, tmp_path):
    manager = ours.AsyncManager()
    state = {"w": np.zeros(1 << 20)}
    ours.save_checkpoint(tmp_path, state, 1, async_manager=manager)
    state["w"] += 1
    manager.wait_previous_save()
    assert ours.restore_checkpoint(tmp_path, None)["w"].sum() == 0


def test_one_manager_keeps_saves_in_order(either, tmp_path):
    manager = either.AsyncManager()
    for step in range(6):
        either.save_checkpoint(tmp_path, STATE, step, keep=2, async_manager=manager)
    manager.wait_previous_save()
    assert either.available_steps(tmp_path) == [4, 5]
    assert manager.save_future.done()


def test_flaxs_own_manager_works(ours, oracle, tmp_path):
    manager = oracle.AsyncManager(max_workers=2)
    for step in range(3):
        ours.save_checkpoint(tmp_path, STATE, step, async_manager=manager)
    manager.wait_previous_save()
    manager.executor.shutdown()
    assert ours.available_steps(tmp_path) == [2]


def test_an_error_in_the_background_is_raised_once_by_what_comes_next(ours, tmp_path):
    manager = ours.AsyncManager()

    def fail():
        raise OSError("the disk is gone")

    manager.save_async(fail)
    while not manager.save_future.done():
        time.sleep(0.001)
    with pytest.raises(OSError, match="the disk is gone"):
        ours.save_checkpoint(tmp_path, STATE, 1, async_manager=manager)
    ours.save_checkpoint(tmp_path, STATE, 1, async_manager=manager)
    manager.wait_previous_save()
    assert ours.available_steps(tmp_path) == [1]


def test_flax_loses_that_error(oracle):
    manager = oracle.AsyncManager()
    manager.save_async(lambda: 1 / 0)
    while not manager.save_future.done():
        time.sleep(0.001)
    manager.wait_previous_save()  # the difference, by name


def test_a_task_waits_for_the_one_before(ours):
    manager, order = ours.AsyncManager(max_workers=3), []
    gate = threading.Event()
    manager.save_async(lambda: (gate.wait(), order.append(1)))
    threading.Timer(0.05, gate.set).start()
    manager.save_async(lambda: order.append(2))
    manager.wait_previous_save()
    assert order == [1, 2]


def test_the_end_of_a_process_waits_and_tells(tmp_path):
    code = f"""
import numpy as np
from milepost.flax import checkpoints
manager = checkpoints.AsyncManager()
checkpoints.save_checkpoint({str(tmp_path)!r}, {{"w": np.zeros(1 << 22)}}, 1, async_manager=manager)
if {{last}}:
    def fail(): raise OSError("the disk is gone")
    manager.save_async(fail)
"""
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    done = run([sys.executable, "-c", code.replace("{last}", "False")])
    assert listed(tmp_path) == ["checkpoint_1"] and "gone" not in done.stderr
    (tmp_path / "checkpoint_1").rename(tmp_path / "moved")
    done = run([sys.executable, "-c", code.replace("{last}", "True")])
    assert "the disk is gone" in done.stderr


def test_a_child_of_a_fork_neither_waits_for_the_parents_save_nor_hangs(tmp_path):
    code = f"""
import os, signal, threading, numpy as np
from milepost.flax import checkpoints
manager, gate = checkpoints.AsyncManager(), threading.Event()
manager.save_async(gate.wait)
child = os.fork()
if child == 0:
    signal.alarm(20)
    manager.wait_previous_save()
    done = []
    manager.save_async(lambda: done.append(1))
    manager.wait_previous_save()
    checkpoints.save_checkpoint({str(tmp_path)!r}, {{"a": np.ones(3)}}, 1, async_manager=manager)
    manager.wait_previous_save()
    os._exit(0 if done else 1)
gate.set()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n", done
    assert listed(tmp_path) == ["checkpoint_1"]


def test_ctrl_c_cancels_a_save_and_leaves_the_older_one(tmp_path):
    code = f"""
import os, signal, threading, numpy as np
from milepost.flax import checkpoints
checkpoints.save_checkpoint({str(tmp_path)!r}, {{"a": np.ones(3)}}, 1)
state = {{"w": np.ones(48 << 20)}}
threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    checkpoints.save_checkpoint({str(tmp_path)!r}, state, 2)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "interrupted\n", done
    assert listed(tmp_path) == ["checkpoint_1"]


@pytest.mark.parametrize("workers", [0, -1])
def test_a_manager_without_threads_is_refused(ours, workers):
    with pytest.raises(ValueError, match="max_workers"):
        ours.AsyncManager(max_workers=workers)


# --- several processes, as far as one of them goes ---


def test_an_array_of_several_processes_is_flaxs_error_where_one_saves(ours, tmp_path, monkeypatch):
    monkeypatch.setattr(
        type(jnp.ones(1)), "is_fully_addressable", property(lambda self: False)
    )
    with pytest.raises(errors.MPACheckpointingRequiredError, match="multiprocess array"):
        ours.save_checkpoint(tmp_path, {"w": jnp.ones(4)}, 1)
    assert listed(tmp_path) == []  # what several save together, without a manager: tests/python/together


def test_save_checkpoint_multiprocess_in_one_process_is_a_save(either, tmp_path):
    manager = either.GlobalAsyncCheckpointManager(timeout_secs=50)
    for step in range(4):
        path = either.save_checkpoint_multiprocess(
            tmp_path, STATE, step, keep=2, gda_manager=manager, prefix="mp_"
        )
    manager.wait_until_finished()
    manager.check_for_errors()
    assert path == str(tmp_path / "mp_3")
    assert either.available_steps(tmp_path, "mp_") == [2, 3]
    with pytest.raises(errors.InvalidCheckpointError):
        either.save_checkpoint_multiprocess(tmp_path, STATE, 1, prefix="mp_", gda_manager=manager)


def test_a_save_that_takes_longer_than_timeout_secs_is_cancelled(ours, tmp_path):
    manager = ours.GlobalAsyncCheckpointManager(timeout_secs=1e-6)
    state = {"w": np.zeros(16 << 20)}
    with pytest.raises(TimeoutError):
        ours.save_checkpoint_multiprocess(tmp_path, state, 1, gda_manager=manager)
    time.sleep(0.5)  # one that went on would be there by now
    assert listed(tmp_path) == []


@pytest.mark.parametrize("seconds", [0, -3])
def test_a_timeout_that_is_none_is_refused(ours, seconds):
    with pytest.raises(ValueError, match="timeout_secs"):
        ours.GlobalAsyncCheckpointManager(timeout_secs=seconds)


def test_leaves_that_are_held_and_leaves_that_are_copied_do_not_change_places(ours, tmp_path):
    # The engine once gave each held leaf the copy of the next one (fixed in 9add4c1).
    state = {"held": jnp.zeros(4), "number": 7}
    state |= {f"copied {n}": np.full(4, n, np.float32) for n in range(5)}
    state |= {"text": "x", "last": np.full(4, 9, np.float32)}
    ours.save_checkpoint(tmp_path, state, 1)
    found = ours.restore_checkpoint(tmp_path, None)
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value)
