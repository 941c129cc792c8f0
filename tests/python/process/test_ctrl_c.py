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


MODEL = (
    HEAD
    + """
from safetensors.numpy import save_file
import glob

def left():
    return sorted(n for n in glob.glob("**", recursive=True, include_hidden=True) if "stderr" not in n)
"""
)


def test_an_interrupted_import_is_cancelled_and_nothing_is_visible(run):
    run(
        MODEL
        + """
save_file(slow(), "model.safetensors")
interrupted(mp.import_safetensors, "model.safetensors", "ckpt", **SLOWLY)
assert not visible("ckpt")
assert left() == ["model.safetensors"], "it goes on, or has left something"
mp.import_safetensors("model.safetensors", "ckpt")
assert np.array_equal(mp.load("ckpt")["w"], slow()["w"])
"""
    )


def test_an_interrupted_conversion_ends_and_goes_on_where_it_stopped(run):
    run(
        MODEL
        + """
os.mkdir("models")
for step in (1, 2):
    save_file(slow(1 if step == 1 else 64, step), f"models/model_{step}.safetensors")
interrupted(mp.convert, "models", "run", after=2.5, **SLOWLY)
assert mp.CheckpointManager("run", read_only=True).steps() == [1]
saved = mp.convert("models", "run")
assert [one.step for one in saved] == [2]
assert np.array_equal(mp.load("run", step=2)["w"], slow(64, 2)["w"])
"""
    )


@pytest.mark.parametrize(
    "call", ['extract("files", "out")', 'export_safetensors("out/model.safetensors", item="state")', "verify()"]
)
def test_an_interrupted_read_of_much_stops_and_leaves_no_file(run, call):
    run(
        MODEL
        + f"""
os.mkdir("files"), os.mkdir("out")
open("files/big", "wb").write(bytes(range(256)) * 40_000)
mp.save("ckpt", items={{"state": {{"w": np.arange(1_000_000)}}, "files": mp.Files("files")}}, chunk_bytes=1 << 16)
server = StalledServer(".")
checkpoint = mp.open(server.url + "/ckpt")
interrupted(lambda: checkpoint.{call})
assert server.asked.is_set()
asked = server.count
server.release()
time.sleep(1)
assert server.count <= asked + 16, "it goes on"
assert os.listdir("out") == []
"""
    )


def test_an_interrupted_save_that_is_tried_again_never_commits_what_changed_meanwhile(run):
    run(
        HEAD
        + """
import resource
# More than the budget: the call reads the caller's memory until all is written, and no attempt can open a file.
tree = {"w": np.zeros(64 << 20, np.uint8)}
engine = mp.Engine(memory_bytes=8 << 20)
manager = mp.CheckpointManager("run", retries=1000, engine=engine, chunk_bytes=1 << 20)
manager.save(0, {"a": np.zeros(3)}).result()
ended = threading.Event()
manager.on_event(lambda event: event["event"] == "failed" and ended.set())
ctrl_c(1.5)
files = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, files[1]))
try:
    manager.save(1, tree)
    raise AssertionError("it was not interrupted")
except KeyboardInterrupt:
    pass
tree["w"][:] = 7
resource.setrlimit(resource.RLIMIT_NOFILE, files)
assert ended.wait(30) and manager.stats()["retries"] > 0
manager.reload()
assert manager.steps() == [0]
manager.save(2, tree).result()
assert np.all(manager.restore(2)["w"] == 7)
manager.close()
"""
    )


def test_ctrl_c_in_a_wait_keeps_the_failure_for_later(run):
    run(
        HEAD
        + """
import resource
manager = mp.CheckpointManager("run", **SLOWLY)
handle = manager.save(1, slow(16))
interrupted(manager.wait)
assert not handle.done()
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, resource.RLIM_INFINITY))
while not handle.done() or manager.is_saving():
    time.sleep(0.01)
time.sleep(0.5)  # who waited on is told now, and nobody asks him
try:
    manager.wait()
    raise AssertionError("the failure is lost")
except mp.MilepostError as error:
    assert "File too large" in str(error), error
manager.wait()  # told once
manager.close()
"""
    )
