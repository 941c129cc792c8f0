"""Ctrl-C is heard at once wherever a call waits, and a save that it cancels leaves nothing visible."""

from __future__ import annotations

import time

import pytest

#: Seconds in which an interrupted call has to come back.
PROMPT = 8.0

HEAD = """
import os, signal, sys, threading, time
import numpy as np
import milepost as mp
from slowness import SLOWLY, StalledServer, slow, visible

def ctrl_c(after):
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()

def interrupted(call, *args, after=0.5, **kwargs):
    ctrl_c(after)
    begun = time.monotonic()
    try:
        call(*args, **kwargs)
    except KeyboardInterrupt:
        took = time.monotonic() - begun - after
        assert took < 8, took
        return
    raise AssertionError("it was not interrupted")
"""


def test_a_blocked_save_is_cancelled_and_nothing_is_visible(run):
    run(
        HEAD
        + """
interrupted(mp.save, "ckpt", slow(), **SLOWLY)
assert not visible("ckpt")
mp.save("ckpt", {"w": np.arange(3)})
assert mp.load("ckpt")["w"].tolist() == [0, 1, 2]
"""
    )


def test_an_interrupted_overwrite_leaves_the_old_checkpoint(run):
    run(
        HEAD
        + """
mp.save("ckpt", {"w": np.arange(3)})
interrupted(mp.save, "ckpt", slow(), overwrite=True, **SLOWLY)
assert mp.load("ckpt")["w"].tolist() == [0, 1, 2]
mp.open("ckpt").verify()
"""
    )


def test_waiting_for_a_result_is_interrupted_and_the_save_can_be_cancelled(run):
    run(
        HEAD
        + """
handle = mp.save_async("ckpt", slow(), **SLOWLY)
interrupted(handle.result)
handle.cancel()
try:
    handle.result(20)
    raise AssertionError("it was saved")
except mp.Cancelled:
    pass
assert handle.done() and not visible("ckpt")
"""
    )


def test_a_blocked_load_is_interrupted_and_the_next_one_works(run):
    run(
        HEAD
        + """
mp.save("ckpt", {"w": np.arange(100_000)}, chunk_bytes=1 << 14)
server = StalledServer(".")
interrupted(mp.load, server.url + "/ckpt")
assert server.asked.is_set()
server.release()
assert mp.load(server.url + "/ckpt")["w"].tolist() == list(range(100_000))
"""
    )


@pytest.mark.parametrize("call", ['mp.open(url)["w"].value', 'mp.open(url)["w"].__getitem__'])
def test_reading_a_leaf_is_interrupted(run, call):
    argument = ", slice(0, 9)" if "getitem" in call else ""
    run(
        HEAD
        + f"""
mp.save("ckpt", {{"w": np.arange(100_000)}}, chunk_bytes=1 << 14)
server = StalledServer(".")
url = server.url + "/ckpt"
interrupted({call}{argument})
"""
    )


def test_verifying_is_interrupted(run):
    run(
        HEAD
        + """
mp.save("ckpt", slow(96), compression="zstd:1")
def verify():
    while True:
        mp.open("ckpt").verify()
interrupted(verify)
"""
    )


def test_waiting_for_a_manager_is_interrupted(run):
    run(
        HEAD
        + """
manager = mp.CheckpointManager("run", **SLOWLY)
handle = manager.save(1, slow())
interrupted(manager.wait)
interrupted(handle.result)
handle.cancel()
try:
    manager.wait()
except mp.Cancelled:
    pass
assert manager.steps() == []
manager.save(2, {"w": np.arange(3)}).result()
assert manager.steps() == [2] and manager.restore()["w"].tolist() == [0, 1, 2]
manager.close()
"""
    )


def test_a_save_that_waits_for_the_one_in_flight_is_interrupted(run):
    run(
        HEAD
        + """
manager = mp.CheckpointManager("run", **SLOWLY)
first = manager.save(1, slow(16))
interrupted(manager.save, 2, {"w": np.arange(3)})
first.cancel()
first.exception(30)
manager.reload()
manager.save(3, {"w": np.arange(3)}).result()
assert manager.latest_step() == 3 and 1 not in manager.steps()
manager.close()
"""
    )


def test_waiting_for_a_step_that_never_comes_is_interrupted(run):
    run(
        HEAD
        + """
manager = mp.CheckpointManager("run")
manager.save(1, {"w": np.arange(3)}).result()
interrupted(manager.wait_for_step, above=1)
interrupted(lambda: next(iter(manager.new_steps(above=1))))
"""
    )


def test_an_uncaught_ctrl_c_ends_the_process_and_leaves_nothing(start, run):
    child = start(HEAD + 'print("go")\nmp.save("ckpt", slow(), **SLOWLY)')
    child.until("go")
    time.sleep(1)
    child.interrupt()
    code, _ = child.end(PROMPT)
    assert code == -2 and "KeyboardInterrupt" in child.err and "Exception ignored" not in child.err
    run(HEAD + 'assert not visible("ckpt")')


def test_a_second_ctrl_c_ends_the_wait_at_exit(start, run):
    child = start(HEAD + 'handle = mp.save_async("ckpt", slow(256), **SLOWLY)\nprint("go")\nhandle.result()')
    child.until("go")
    time.sleep(1)
    child.interrupt()
    time.sleep(2)
    assert child.process.poll() is None, "it waits for the save in flight"
    child.interrupt()
    child.end(PROMPT)
    run(HEAD + 'assert not visible("ckpt")')


def test_a_signal_handler_that_raises_is_heard_like_ctrl_c(run):
    run(
        HEAD
        + """
class Stop(Exception):
    pass

def stop(number, frame):
    raise Stop

signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.5)
try:
    mp.save("ckpt", slow(), **SLOWLY)
    raise AssertionError("it was not stopped")
except Stop:
    pass
assert not visible("ckpt")
"""
    )


def test_a_signal_handler_that_returns_disturbs_nothing(run):
    run(
        HEAD
        + """
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
mp.save("ckpt", slow(2), **SLOWLY)
signal.setitimer(signal.ITIMER_REAL, 0)
assert len(seen) > 3, "the handler ran only after the save"
assert np.array_equal(mp.load("ckpt")["w"], slow(2)["w"])
"""
    )
