"""Processes: Ctrl-C, the end with a save in flight, fork, threads, notebooks, SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import milepost as mp

SLOW = """
import numpy as np, milepost as mp, sys, os, time, threading, signal
from milepost import _arrays, _milepost

class Slow:
    '''An array whose bytes come slowly.'''
    seconds = 1.0
    def part(self, start, shape):
        time.sleep(self.seconds)
        return np.ones(shape, np.uint8)

plain = _arrays._leaf
_arrays._leaf = lambda value, *rest: (
    _milepost.Leaf.provider("uint8", [4], value.part) if isinstance(value, Slow) else plain(value, *rest)
)
url = sys.argv[1]
"""


def start(tmp_path, source, *arguments):
    file = tmp_path / "slow.py"
    file.write_text(SLOW + textwrap.dedent(source))
    return subprocess.Popen(
        [sys.executable, str(file), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(mp.__file__)), "PYTHONUNBUFFERED": "1"},
    )


def end(process, timeout=60):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def test_the_end_of_a_process_waits_for_saves_in_flight(tmp_path, url):
    code, out, err = end(start(tmp_path, "mp.save_async(url, {'a': Slow()})", url))
    assert (code, err) == (0, "")
    assert mp.load(url)["a"].tolist() == [1, 1, 1, 1]


def test_the_end_of_a_process_waits_for_a_managers_saves(tmp_path, run):
    source = """
    manager = mp.CheckpointManager(url)
    for step in range(3):
        manager.save(step, {"a": Slow(), "step": step})
    """
    code, out, err = end(start(tmp_path, source, run))
    assert (code, err) == (0, "")
    assert mp.CheckpointManager(run, read_only=True).steps() == [0, 1, 2]


@pytest.mark.parametrize("how", ["standalone", "manager", "dropped"])
def test_a_failure_that_nobody_asked_for_is_told_once_at_the_end(tmp_path, url, how):
    source = """
    class Bad(Slow):
        def part(self, start, shape):
            raise RuntimeError("the device is gone")
    if sys.argv[2] == "manager":
        manager = mp.CheckpointManager(url)
        manager.save(3, {"a": Bad()})
    elif sys.argv[2] == "dropped":
        mp.CheckpointManager(url).save(3, {"a": Bad()})
    else:
        mp.save_async(url, {"a": Bad()})
    """
    code, out, err = end(start(tmp_path, source, url, how))
    assert code == 0 and err.count("the device is gone") == 1 and err.startswith("milepost: "), err


def test_a_failure_that_was_asked_for_is_not_told_again(tmp_path, url):
    source = """
    class Bad(Slow):
        def part(self, start, shape):
            raise RuntimeError("the device is gone")
    handle = mp.save_async(url, {"a": Bad()})
    assert isinstance(handle.exception(), mp.Invalid)
    """
    assert end(start(tmp_path, source, url)) == (0, "", "")


@pytest.mark.parametrize("how", ["save", "result", "manager"])
def test_ctrl_c_ends_a_wait_and_cancels_a_save_that_is_waited_for(tmp_path, url, how):
    source = """
    Slow.seconds = 3.0
    print("ready")
    try:
        if sys.argv[2] == "save":
            mp.save(url, {"a": Slow()})
        elif sys.argv[2] == "result":
            handle = mp.save_async(url, {"a": Slow()})
            handle.result()
        else:
            manager = mp.CheckpointManager(url)
            manager.save(1, {"a": Slow()})
            manager.wait()
    except KeyboardInterrupt:
        print("interrupted", time.monotonic() - begun)
    """.replace('print("ready")', 'print("ready"); begun = time.monotonic()')
    process = start(tmp_path, source, url, how)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert code == 0 and out.startswith("interrupted"), (code, out, err)
    if how == "save":
        with pytest.raises(mp.NotFound):
            mp.open(url)
    else:  # only the wait was given up: the save is in flight, and the end of the process waits for it
        assert float(out.split()[1]) < 2.5
        assert mp.load(url)["a"].tolist() == [1] * 4


def test_ctrl_c_ends_a_load(tmp_path, url):
    source = """
    mp.save(url, {"a": np.zeros(50_000_000)}, durability="published")
    print("ready")
    try:
        while True:
            mp.load(url)
    except KeyboardInterrupt:
        print("interrupted")
    """
    process = start(tmp_path, source, url)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert end(process) == (0, "interrupted\n", "")


def test_a_child_of_a_fork_has_an_engine_of_its_own_and_inherited_objects_say_forked(tmp_path, url):
    source = """
    mp.save(url, {"a": np.arange(4)})
    checkpoint = mp.open(url)
    view, index = checkpoint["a"], checkpoint.index()
    manager = mp.CheckpointManager(url + "-run")
    handle = mp.save_async(url + "-slow", {"a": Slow()})
    pinned = mp.Place(url)
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        asks = [view.value, lambda: view[0], lambda: checkpoint.load(select="a"), lambda: checkpoint["a"], checkpoint.verify,
                handle.done, handle.result, handle.cancel, handle.progress, lambda: handle.step, manager.steps, manager.wait,
                lambda: manager.save(1, {"a": 1}), lambda: manager.delete(1), manager.close, manager.latest_step,
                lambda: manager.wait_for_step(timeout=0), lambda: mp.load(pinned)]
        for number, ask in enumerate(asks):
            try:
                ask()
            except mp.Forked as error:
                assert isinstance(error, RuntimeError) and "fork" in str(error) and error.hint
            else:
                print("no error of", number)
        assert mp.load(url)["a"].tolist() == [0, 1, 2, 3]
        mp.save(url + "-child", {"b": 1})
        with mp.CheckpointManager(url + "-child-run") as own:
            own.save(1, {"c": 2})
        print("child done")
        sys.exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    handle.result()
    assert manager.steps() == [] and view[1] == 1
    print("parent done")
    """
    code, out, err = end(start(tmp_path, source, url))
    assert (code, out, err) == (0, "child done\nparent done\n", "")
    assert mp.load(url + "-child") == {"b": 1} and mp.load(url + "-child-run") == {"c": 2}


def test_workers_of_multiprocessing_may_fork_while_a_save_runs(tmp_path, url):
    source = """
    import multiprocessing
    def work(number):
        return mp.load(url)["a"][number].item()
    mp.save(url, {"a": np.arange(8)})
    if __name__ == "__main__":
        handle = mp.save_async(url + "-slow", {"a": Slow()})
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(work, range(8)))
        handle.result()
    """
    code, out, err = end(start(tmp_path, source, url))
    assert (code, out) == (0, "[0, 1, 2, 3, 4, 5, 6, 7]\n"), err


def test_no_signal_handler_is_installed_unless_it_is_asked_for(program, run):
    program(
        f"""
        import signal
        before = [signal.getsignal(n) for n in range(1, 32)]
        import milepost as mp
        with mp.CheckpointManager({run!r}) as manager:
            manager.save(1, {{"a": 1}}).result()
            mp.load({run!r})
        assert [signal.getsignal(n) for n in range(1, 32)] == before
        """
    )


def test_sigterm_sets_the_flag_and_calls_the_handler_that_was_there(program, run):
    program(
        f"""
        import os, signal, milepost as mp
        called = []
        signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
        manager = mp.CheckpointManager({run!r}, save_interval_steps=100)
        other = mp.CheckpointManager({run!r} + "-other", save_interval_steps=100)
        manager.save(0, {{"a": 0}})
        manager.watch_sigterm(); other.watch_sigterm()
        assert not manager.should_save(3) and not manager.preempted
        os.kill(os.getpid(), signal.SIGTERM)
        assert called == [signal.SIGTERM] and manager.preempted and other.preempted
        assert manager.should_save(3)
        assert manager.save(3, {{"a": 3}})
        manager.wait()
        assert manager.steps() == [0, 3]
        manager.preempt(False)
        assert not manager.preempted and not manager.should_save(4)
        del manager
        import gc; gc.collect()
        os.kill(os.getpid(), signal.SIGTERM)
        assert called == [signal.SIGTERM] * 2
        """
    )


def test_a_sync_call_works_inside_a_running_loop(program, url, run):
    program(
        f"""
        import asyncio, milepost as mp
        async def cell():
            mp.save({url!r}, {{"a": 1}})
            assert mp.load({url!r}) == {{"a": 1}}
            with mp.CheckpointManager({run!r}) as manager:
                assert (await manager.save_async(1, {{"b": 2}})).step == 1
                assert not await manager.save_async(1, {{"b": 2}}) if not manager.should_save(1) else True
                assert manager.restore() == {{"b": 2}}
                assert await manager.restore_async(1) == {{"b": 2}}
            handle = mp.save_async({url!r} + "2", {{"a": 1}})
            await handle
            handle.result()
        asyncio.run(cell())
        """
    )


def test_other_threads_run_while_one_waits(tmp_path, url):
    source = """
    Slow.seconds = 0.5
    ticks = []
    done = threading.Event()
    def tick():
        while not done.wait(0.01):
            ticks.append(1)
    thread = threading.Thread(target=tick); thread.start()
    mp.save(url, {"a": Slow()})
    done.set(); thread.join()
    assert len(ticks) > 15, len(ticks)
    """
    code, out, err = end(start(tmp_path, source, url))
    assert code == 0, err


def test_a_daemon_thread_with_a_save_does_not_harm_the_end(tmp_path, url):
    source = """
    def forever():
        for i in range(10**6):
            mp.save(url, {"a": i}, overwrite=True, durability="published")
    threading.Thread(target=forever, daemon=True).start()
    time.sleep(0.5)
    """
    code, out, err = end(start(tmp_path, source, url))
    assert code == 0 and "panicked" not in err, err
    assert mp.open(url).verify()["good"]
