"""Threads save at once, and go on while others save and load."""

from __future__ import annotations

import pytest

HEAD = """
import os, sys, threading, time
import numpy as np
import milepost as mp
from slowness import SLOWLY, StalledServer, slow, visible

def at_once(count, work):
    results = [None] * count
    gate = threading.Barrier(count)
    def go(n):
        gate.wait()
        try:
            results[n] = work(n)
        except BaseException as error:
            results[n] = error
    threads = [threading.Thread(target=go, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results

class Counter:
    \"\"\"Another thread that needs the interpreter all the time.\"\"\"

    def __enter__(self):
        self.ticks, self.going = [], True
        def count():
            while self.going:
                self.ticks.append(time.monotonic())
                time.sleep(0.001)
        self.thread = threading.Thread(target=count)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.going = False
        self.thread.join()
        gaps = np.diff(self.ticks)
        assert len(gaps) > 50 and gaps.max() < 0.4, (len(gaps), gaps.max())
"""


@pytest.mark.parametrize(
    "call",
    [
        'mp.save("ckpt", slow(2), **SLOWLY)',
        'mp.save_async("ckpt", slow(2), **SLOWLY).result()',
        "manager.save(1, slow(2)).result()",
        "manager.save(1, slow(2)) and manager.wait()",
        "manager.save(1, slow(2)) and manager.close()",
        "manager.save(1, slow(2)) and manager.save(2, slow(1)).result()",
        'server.release_later() or mp.load(server.url + "/there")',
        'mp.open("large").verify()',
        "manager.wait_for_step(above=0, timeout=1)",
    ],
)
def test_the_interpreter_is_free_meanwhile(run, call):
    run(
        HEAD
        + f"""
class Server(StalledServer):
    def release_later(self):
        threading.Timer(1, self.release).start()
mp.save("there", {{"w": np.arange(100_000)}}, chunk_bytes=1 << 14)
if "large" in {call!r}:
    mp.save("large", slow(96), compression="zstd:1")
server = Server(".")
manager = mp.CheckpointManager("run", **SLOWLY)
with Counter():
    {call}
"""
    )


def test_capturing_a_large_array_leaves_the_interpreter_free(run):
    run(
        HEAD
        + """
state = {str(n): np.ones(32 << 20, "uint8") for n in range(16)}
with Counter():
    for n in range(3):
        mp.save(f"ckpt-{n}", state)
"""
    )


def test_threads_save_to_places_of_their_own(run):
    run(
        HEAD
        + """
def work(n):
    for again in range(5):
        mp.save(f"ckpt-{n}-{again}", slow(1, n), chunk_bytes=1 << 14)
        assert np.array_equal(mp.load(f"ckpt-{n}-{again}")["w"], slow(1, n)["w"])
    return "well"
assert at_once(8, work) == ["well"] * 8
"""
    )


def test_threads_that_save_to_one_place_leave_one_whole_checkpoint(run):
    run(
        HEAD
        + """
for again in range(10):
    results = at_once(6, lambda n: mp.save(f"ckpt-{again}", {"w": np.full(10_000, n)}))
    winners = [n for n, result in enumerate(results) if isinstance(result, mp.Saved)]
    losers = [r for r in results if not isinstance(r, mp.Saved)]
    assert len(winners) == 1 and all(isinstance(r, (mp.AlreadyExists, mp.Conflict)) for r in losers), results
    assert (mp.load(f"ckpt-{again}")["w"] == winners[0]).all()
"""
    )


def test_threads_that_overwrite_one_place_leave_one_whole_checkpoint(run):
    run(
        HEAD
        + """
mp.save("ckpt", {"w": np.full(10_000, -1)})
for again in range(5):
    results = at_once(6, lambda n: mp.save("ckpt", {"w": np.full(10_000, n)}, overwrite=True))
    assert any(isinstance(result, mp.Saved) for result in results), results
    for result in results:
        assert isinstance(result, (mp.Saved, mp.Conflict)), result
    values = set(mp.load("ckpt")["w"].tolist())
    assert len(values) == 1
    mp.open("ckpt").verify()
"""
    )


def test_threads_share_a_manager(run):
    run(
        HEAD
        + """
manager = mp.CheckpointManager("run")
def work(n):
    for again in range(5):
        step = n * 100 + again
        handle = manager.save(step, {"w": np.full(1000, step)}, force=True)
        handle.result()
        assert (manager.restore(step)["w"] == step).all()
        manager.steps(), manager.stats(), manager.entries(), manager.is_saving(), manager.latest_step()
    return "well"
assert at_once(8, work) == ["well"] * 8, at_once
assert manager.steps() == sorted(n * 100 + again for n in range(8) for again in range(5))
manager.close()
"""
    )


def test_threads_read_one_checkpoint(run):
    run(
        HEAD
        + """
mp.save("ckpt", {str(n): np.full(50_000, n) for n in range(8)}, chunk_bytes=1 << 14)
checkpoint = mp.open("ckpt")
leaf = checkpoint["3"]
def work(n):
    for again in range(10):
        assert (checkpoint[str(n)][again * 10 : 40_000] == n).all()
        assert (leaf[again : again + 5] == 3).all()
        assert checkpoint.index("state").leaves[0].shape == (50_000,)
    tree = checkpoint.load()
    return all((tree[str(m)] == m).all() for m in range(8))
assert at_once(8, work) == [True] * 8
"""
    )


def test_handles_are_asked_from_many_threads(run):
    run(
        HEAD
        + """
handle = mp.save_async("ckpt", slow(2), **SLOWLY)
called = []
for n in range(4):
    handle.add_done_callback(lambda h, n=n: called.append((n, h.result().data_bytes)))
results = at_once(6, lambda n: handle.result(30))
assert all(result == results[0] for result in results) and results[0].data_bytes == 2 << 20
deadline = time.monotonic() + 5
while len(called) < 4 and time.monotonic() < deadline:
    time.sleep(0.01)
assert sorted(called) == [(n, 2 << 20) for n in range(4)]
handle.add_done_callback(lambda h: called.append("late"))
time.sleep(0.3)
assert called[-1] == "late"
"""
    )


def test_callbacks_of_a_manager_come_from_its_threads_without_a_deadlock(run):
    run(
        HEAD
        + """
manager = mp.CheckpointManager("run", max_to_keep=2)
events = []
def on_event(event):
    events.append(event)
    manager.steps(), manager.is_saving(), manager.latest_step()
manager.on_event(on_event)
for step in range(1, 8):
    manager.save(step, {"w": np.arange(1000)})
manager.wait()
manager.close()
assert len(events) >= 7 and all(isinstance(event, dict) for event in events), events
assert manager.steps() == [6, 7]
"""
    )


def test_python_policies_and_metrics_are_called_without_a_deadlock(run):
    run(
        HEAD
        + """
manager = mp.CheckpointManager(
    "run", max_to_keep=2, best=lambda metrics: metrics["loss"], best_mode="min",
    decision=mp.SaveDecision.when(lambda context: context.step % 2 == 0),
)
with Counter():
    for step in range(1, 12):
        manager.save(step, {"w": np.arange(100_000)}, metrics={"loss": abs(step - 6)})
        time.sleep(0.01)
    manager.wait()
manager.close()
assert manager.best_step() == 6 and 6 in manager.steps() and manager.steps()[-1] == 10
"""
    )


def test_a_manager_that_is_collected_on_a_thread_of_the_engine_does_not_deadlock(run):
    run(
        HEAD
        + """
import gc, weakref
gone, threads = [], set()

class Loop:
    def __init__(self):
        self.own = self
        self.manager = mp.CheckpointManager("run", **SLOWLY)

def collect(event):
    # The cycle is garbage by now: the collector runs the manager's end here, on the thread that saves.
    threads.add(type(threading.current_thread()).__name__)
    if event["event"] != "started":
        gc.collect()

gc.disable()
loop = Loop()
weakref.finalize(loop.manager, gone.append, 1)
loop.manager.on_event(collect)
handle = loop.manager.save(1, {"w": np.arange(100_000)})
del loop
handle.result(60)
deadline = time.monotonic() + 30
while not gone and time.monotonic() < deadline:
    time.sleep(0.01)
assert gone and "_DummyThread" in threads, threads
assert mp.load("run")["w"].shape == (100_000,)
with mp.CheckpointManager("run") as other:
    other.save(2, {"w": 1}).result()
"""
    )
