"""Calls inside a running event loop, as in a notebook; awaiting saves and loads."""

from __future__ import annotations

import pytest

HEAD = """
import asyncio, os, signal, sys, threading, time
import numpy as np
import milepost as mp
from slowness import SLOWLY, StalledServer, slow, visible

async def ticking(ticks):
    while True:
        ticks.append(time.monotonic())
        await asyncio.sleep(0.01)

def run(main):
    if LOOP == "uvloop":
        import uvloop
        uvloop.run(main)
    else:
        asyncio.run(main)
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request, run):
    return lambda code: run(f"LOOP = {request.param!r}\n" + HEAD + code + "\nrun(main())")


def test_sync_calls_work_inside_a_running_loop(loop):
    loop(
        """
async def main():
    mp.save("ckpt", {"w": np.arange(9)})
    assert mp.load("ckpt")["w"].tolist() == list(range(9))
    assert mp.open("ckpt")["w"][2:4].tolist() == [2, 3]
    assert mp.save_async("other", {"w": np.arange(9)}).result(20)
    with mp.CheckpointManager("run") as manager:
        manager.save(1, {"w": np.arange(9)})
        manager.wait()
        assert manager.restore()["w"].tolist() == list(range(9))
"""
    )


def test_awaiting_a_save_lets_other_tasks_run(loop):
    loop(
        """
async def main():
    ticks = []
    task = asyncio.create_task(ticking(ticks))
    saved = await mp.save_async("ckpt", slow(4), **SLOWLY)
    assert saved.data_bytes == 4 << 20 and visible("ckpt")
    assert len(ticks) > 20 and max(np.diff(ticks)) < 0.5, (len(ticks), max(np.diff(ticks)))
    task.cancel()
"""
    )


def test_awaiting_a_load_lets_other_tasks_run(loop):
    loop(
        """
async def main():
    mp.save("ckpt", {"w": np.arange(100_000)}, chunk_bytes=1 << 14)
    server = StalledServer(".")
    asyncio.get_running_loop().call_later(1, server.release)
    ticks = []
    task = asyncio.create_task(ticking(ticks))
    tree = await mp.load_async(server.url + "/ckpt")
    assert tree["w"].sum() == 4999950000
    assert len(ticks) > 40, len(ticks)
    task.cancel()
"""
    )


def test_many_saves_and_loads_at_once(loop):
    loop(
        """
async def main():
    states = [slow(1, seed) for seed in range(6)]
    saved = await asyncio.gather(*(mp.save_async(f"ckpt-{n}", state) for n, state in enumerate(states)))
    assert len(saved) == 6
    loaded = await asyncio.gather(*(mp.load_async(f"ckpt-{n}") for n in range(6)))
    assert all(np.array_equal(a["w"], b["w"]) for a, b in zip(states, loaded))
    manager = mp.CheckpointManager("run")
    results = await asyncio.gather(*(manager.save_async(n, {"w": n}) for n in range(1, 4)))
    assert [r.step for r in results] == [1, 2, 3]
    assert (await manager.restore_async(2))["w"] == 2
"""
    )


def test_what_a_save_fails_with_is_raised_where_it_is_awaited(loop):
    loop(
        """
async def main():
    mp.save("ckpt", {"w": 1})
    try:
        await mp.save_async("ckpt", {"w": 1})
        raise AssertionError
    except mp.AlreadyExists as error:
        assert isinstance(error, FileExistsError)
    try:
        await mp.load_async("nothing")
        raise AssertionError
    except mp.NotFound:
        pass
"""
    )


def test_giving_up_waiting_leaves_the_save_alone(loop):
    loop(
        """
async def main():
    handle = mp.save_async("ckpt", slow(2), **SLOWLY)
    try:
        await asyncio.wait_for(handle._finished(), 0.05)
        raise AssertionError
    except (asyncio.TimeoutError, TimeoutError):
        pass
    assert not handle.done()
    assert (await handle).data_bytes == 2 << 20 and (await handle) == handle.result()
"""
    )


def test_ctrl_c_ends_a_loop_that_awaits_a_save(run):
    run(
        "LOOP = 'asyncio'\n"
        + HEAD
        + """
async def main():
    handle = mp.save_async("ckpt", slow(), **SLOWLY)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        await handle
    finally:
        handle.cancel()
begun = time.monotonic()
try:
    asyncio.run(main())
    raise AssertionError
except KeyboardInterrupt:
    assert time.monotonic() - begun < 8
assert not visible("ckpt")
"""
    )


def test_a_loop_that_is_closed_before_the_save_ends_is_no_trouble(run):
    run(
        "LOOP = 'asyncio'\n"
        + HEAD
        + """
handles = []
async def main():
    handles.append(mp.save_async("ckpt", slow(2), **SLOWLY))
    asyncio.ensure_future(handles[0]._finished())
    await asyncio.sleep(0.05)
asyncio.run(main())
handles[0].result()
time.sleep(0.3)
"""
    )
