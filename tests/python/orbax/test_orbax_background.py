"""Async checkpointers: errors, deadlines, threads, the end of the process, forks."""

from __future__ import annotations

import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import milepost as mp


def slow_tree():
    """Two gigabytes to write, eighty megabytes to hold: the leaves are one array."""
    one = jnp.ones(20_000_000)
    return {f"l{number}": one for number in range(25)}


def test_a_timeout_cancels_the_save_and_is_raised_where_one_waits(ours, tmp_path):
    """Orbax raises, and leaves the temporary directory and the writer."""
    checkpointer = ours.AsyncCheckpointer(ours.PyTreeCheckpointHandler(), timeout_secs=0.01)
    checkpointer.save(tmp_path / "a", slow_tree())
    with pytest.raises(TimeoutError, match="0.01 seconds"):
        checkpointer.wait_until_finished()
    checkpointer.wait_until_finished()
    assert os.listdir(tmp_path) == []
    checkpointer.close()


def test_a_background_error_is_raised_once_where_one_waits_or_saves_next(ours, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    checkpointer = ours.StandardCheckpointer()
    checkpointer.save(blocked / "a", {"x": np.ones(3)})
    with pytest.raises(Exception, match="file"):
        checkpointer.wait_until_finished()
    checkpointer.wait_until_finished()
    checkpointer.check_for_errors()
    checkpointer.save(blocked / "a", {"x": np.ones(3)})
    with pytest.raises(Exception, match="file"):
        checkpointer.save(tmp_path / "b", {"x": np.ones(3)})
    checkpointer.save(tmp_path / "b", {"x": np.ones(3)})
    checkpointer.close()


def test_cancel_leaves_nothing(ours, tmp_path):
    checkpointer = ours.StandardCheckpointer()
    checkpointer.save(tmp_path / "a", slow_tree())
    assert checkpointer.is_saving_in_progress()
    checkpointer.cancel()
    assert os.listdir(tmp_path) == [] and not checkpointer.is_saving_in_progress()
    checkpointer.save(tmp_path / "a", {"x": 1})
    checkpointer.close()


def test_two_threads_that_wait_both_return(ours, tmp_path):
    checkpointer = ours.StandardCheckpointer()
    checkpointer.save(tmp_path / "a", {"x": np.ones(1_000_000)})
    threads = [threading.Thread(target=checkpointer.wait_until_finished) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    checkpointer.close()


def test_barrier_and_file_mode_after_the_commit(ours, tmp_path):
    keys = []
    checkpointer = ours.AsyncCheckpointer(
        ours.PyTreeCheckpointHandler(),
        async_options=ours.AsyncOptions(
            timeout_secs=7,
            barrier_sync_fn=lambda *, key, timeout_ms: keys.append((key, timeout_ms)),
        ),
        multiprocessing_options=ours.options.MultiprocessingOptions(barrier_sync_key_prefix="p"),
        file_options=ours.options.FileOptions(path_permission_mode=0o750),
    )
    checkpointer.save(tmp_path / "a", {"x": 1})
    checkpointer.close()
    assert keys == [(f"p_async_commit_complete.{tmp_path / 'a'}", 7000)]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750


def test_a_mode_of_atomicity_that_is_not_ours_is_refused(ours, tmp_path):
    mode = ours.options.AtomicityMode.COMMIT_FILE
    checkpointer = ours.Checkpointer(
        ours.PyTreeCheckpointHandler(),
        atomicity_options=ours.options.AtomicityOptions(mode=mode),
    )
    with pytest.raises(ValueError, match="atomicity"):
        checkpointer.save(tmp_path / "a", {"x": 1})


def test_a_long_async_save_does_not_hold_the_caller(ours, tmp_path):
    """Orbax copies and creates files first (issue 179)."""
    import time

    with ours.StandardCheckpointer() as checkpointer:
        tree = {f"l{i}": jnp.ones(2_000_000) for i in range(20)}
        jax.block_until_ready(tree)
        checkpointer.save(tmp_path / "warm", {"a": jnp.ones(2)})
        checkpointer.wait_until_finished()
        begun = time.perf_counter()
        checkpointer.save(tmp_path / "a", tree)
        held = time.perf_counter() - begun
        assert checkpointer.is_saving_in_progress()
        checkpointer.wait_until_finished()
        took = time.perf_counter() - begun
    assert held < took / 2


def run_python(code: str):
    import subprocess
    import sys

    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_the_end_of_the_process_waits_for_the_save_and_its_callback(tmp_path):
    """Orbax loses the last async save at exit (levanter 5022)."""
    done = run_python(
        "import numpy as np, milepost.orbax as ocp\n"
        "called = lambda: print('called', flush=True)\n"
        "options = ocp.AsyncOptions(post_finalization_callback=called)\n"
        "checkpointer = ocp.StandardCheckpointer(async_options=options)\n"
        f"checkpointer.save({str(tmp_path / 'a')!r}, {{'x': np.ones(5_000_000)}})\n"
        "del checkpointer\n"
    )
    assert done.returncode == 0 and done.stdout == "called\n", done.stderr
    assert mp.load(str(tmp_path / "a"))["x"].shape == (5_000_000,)


def test_a_failed_save_that_nobody_asked_for_is_told_at_the_end(tmp_path):
    """Orbax is silent."""
    (tmp_path / "file").write_text("x")
    done = run_python(
        "import numpy as np, milepost.orbax as ocp\n"
        "checkpointer = ocp.StandardCheckpointer()\n"
        f"checkpointer.save({str(tmp_path / 'file' / 'a')!r}, {{'x': np.ones(5)}})\n"
        "del checkpointer\n"
    )
    assert "nobody asked" in done.stderr


def test_a_checkpointer_that_came_through_a_fork_says_so(tmp_path):
    done = run_python(
        "import os, sys, numpy as np, milepost as mp, milepost.orbax as ocp\n"
        "checkpointer = ocp.StandardCheckpointer()\n"
        f"checkpointer.save({str(tmp_path / 'a')!r}, {{'x': np.ones(20_000_000)}})\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        checkpointer.wait_until_finished()\n"
        "    except mp.Forked:\n"
        "        sys.exit(7)\n"
        "    sys.exit(1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "checkpointer.close()\n"
    )
    assert done.returncode == 0, done.stderr


def test_threads_may_save_through_one_checkpointer(ours, tmp_path):
    with ours.StandardCheckpointer() as checkpointer:
        threads = [
            threading.Thread(target=checkpointer.save, args=(tmp_path / str(n), {"n": n}))
            for n in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert [checkpointer.restore(tmp_path / str(n))["n"] for n in range(6)] == list(range(6))
