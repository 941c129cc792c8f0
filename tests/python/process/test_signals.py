"""No signal is anybody's but the program's, unless it asks."""

from __future__ import annotations

import signal

HEAD = """
import os, signal, sys, threading, time
import numpy as np
"""

USE = """
import milepost as mp
from slowness import SLOWLY, slow, visible
mp.save("ckpt", {"w": np.arange(9)})
mp.load("ckpt")
with mp.CheckpointManager("run") as manager:
    manager.save(1, {"w": np.arange(9)})
"""


def test_importing_and_using_installs_no_handler(run):
    run(
        HEAD
        + """
def state():
    words = [line for line in open("/proc/self/status") if line.startswith("Sig")]
    words = [word for word in words if not word.startswith(("SigQ", "SigPnd"))]
    return words, {number: signal.getsignal(number) for number in signal.valid_signals()}, \\
        signal.pthread_sigmask(signal.SIG_BLOCK, [])
before = state()
"""
        + USE
        + 'assert state() == before, (before, state())\nassert mp.CheckpointManager("run")\nassert state() == before'
    )


def test_sigterm_without_a_watch_ends_the_process_and_leaves_nothing(start, run):
    child = start(HEAD + USE + 'mp.save_async("slow", slow(), **SLOWLY)\nprint("go")\ntime.sleep(60)')
    child.until("go")
    child.process.send_signal(signal.SIGTERM)
    assert child.end(10)[0] == -signal.SIGTERM
    run(HEAD + USE.replace("ckpt", "other").replace('"run"', '"run-2"') + 'assert not visible("slow")')


def test_a_watched_sigterm_sets_the_flag_and_calls_the_handler_that_was_there(run):
    run(
        HEAD
        + USE
        + """
seen = []
signal.signal(signal.SIGTERM, lambda *arguments: seen.append(arguments))
manager = mp.CheckpointManager("run-2", save_interval_steps=100)
manager.save(1, {"w": np.arange(9)}).result()
assert not manager.save(2, {"w": np.arange(9)}) and not manager.preempted
manager.watch_sigterm()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.1)
assert manager.preempted and [number for number, frame in seen] == [signal.SIGTERM] and seen[0][1] is not None
assert manager.save(3, {"w": np.arange(9)}).result().step == 3
"""
    )


def test_a_watched_sigterm_is_the_loops_to_end(run):
    run(
        HEAD
        + USE
        + """
manager = mp.CheckpointManager("run-2", save_interval_steps=100)
manager.watch_sigterm()
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
for step in range(1, 10_000):
    time.sleep(0.01)
    manager.save(step, {"step": step})
    if manager.preempted:
        break
manager.close()
assert manager.steps()[-1] == step and 10 < step < 1000, (step, manager.steps())
"""
    )


def test_a_loop_that_saves_and_then_leaves_has_saved_the_step(run):
    """The signal comes between the save of a step and the look at the flag."""
    run(
        HEAD
        + USE
        + """
manager = mp.CheckpointManager("run-2", save_interval_steps=100)
manager.watch_sigterm()
for step in range(1, 10):
    saved = manager.save(step, {"step": step})
    if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    if manager.preempted:
        break
manager.close()
assert saved and manager.steps() == [1, 6], (step, manager.steps())
assert manager.preempted
"""
    )


def test_every_manager_that_watches_is_told(run):
    run(
        HEAD
        + USE
        + """
managers = [mp.CheckpointManager(f"run-{n}") for n in range(3)]
for manager in managers:
    manager.watch_sigterm()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.1)
assert all(manager.preempted for manager in managers)
"""
    )


def test_a_watch_outlives_its_manager_without_holding_it(run):
    run(
        HEAD
        + USE
        + """
import gc, weakref
manager = mp.CheckpointManager("run-2")
manager.watch_sigterm()
gone = weakref.ref(manager)
manager = None
gc.collect()
assert gone() is None
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.1)
"""
    )


def test_only_the_main_thread_can_watch(run):
    run(
        HEAD
        + USE
        + """
manager = mp.CheckpointManager("run-2")
failures = []
def watch():
    try:
        manager.watch_sigterm()
    except ValueError as error:
        failures.append(error)
thread = threading.Thread(target=watch)
thread.start()
thread.join()
assert len(failures) == 1
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""
    )


def test_sigterm_within_a_blocked_save_lets_it_end(run):
    run(
        HEAD
        + USE
        + """
manager = mp.CheckpointManager("run-2")
manager.watch_sigterm()
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
mp.save("slow", slow(4), **SLOWLY)
assert manager.preempted and visible("slow")
"""
    )
