"""Handles of saves: waiting, asking, awaiting, calling back, cancelling."""

from __future__ import annotations

import asyncio
import pathlib
import threading
import time

import numpy as np
import pytest
from conftest import same

import milepost as mp

TREE = {"w": np.arange(100_000.0), "n": 3}


class Gate:
    """An array that gives its bytes when it is let to: a save over it is in flight until then."""

    def __init__(self):
        self.open = threading.Event()
        self.asked = threading.Event()
        self.error: Exception | None = None

    def part(self, start, shape):
        self.asked.set()
        assert self.open.wait(60)
        if self.error is not None:
            raise self.error
        return np.ones(shape, np.float32).view(np.uint8)


@pytest.fixture
def gated(url, monkeypatch):
    """A save in flight behind a gate, its handle and its gate."""
    from milepost import _arrays, _milepost

    gates = []
    plain = _arrays._leaf

    def leaf(value, capture, options):
        if isinstance(value, Gate):
            return _milepost.Leaf.provider("float32", [4], value.part)
        return plain(value, capture, options)

    monkeypatch.setattr(_arrays, "_leaf", leaf)

    def start(**options):
        gate = Gate()
        gates.append(gate)
        return mp.save_async(url, {"g": gate}, **options), gate

    yield start
    for gate in gates:
        gate.open.set()


def test_a_handle_gives_the_same_outcome_to_everyone_who_asks(url):
    handle = mp.save_async(url, TREE, metadata={"a": 1})
    assert handle and handle.step is None
    saved = handle.result()
    assert handle.done() and handle.result(0) == saved and handle.exception() is None
    assert saved.record["metadata"] == {"a": 1}
    same(mp.load(url), TREE)


def test_save_async_returns_while_the_save_goes_on(url, gated):
    handle, gate = gated()
    assert gate.asked.wait(30)
    assert not handle.done() and "bytes" in repr(handle)
    assert not pathlib.Path(url, "zarr.json").exists()
    gate.open.set()
    handle.result()
    assert handle.done() and "saved" in repr(handle)
    same(mp.load(url), {"g": np.ones(4, np.float32)})


def test_a_timeout_of_waiting_lets_the_save_go_on(gated):
    handle, gate = gated()
    for ask in (handle.result, handle.exception):
        begun = time.monotonic()
        with pytest.raises(mp.SaveTimeout) as caught:
            ask(timeout=0.1)
        assert isinstance(caught.value, TimeoutError)
        assert 0.1 <= time.monotonic() - begun < 5
    with pytest.raises(TimeoutError):
        handle.result(0)
    gate.open.set()
    assert handle.result(timeout=30).data_bytes == 16


def test_cancelling_leaves_nothing_behind(url, gated):
    handle, gate = gated()
    assert gate.asked.wait(30)
    handle.cancel()
    gate.open.set()
    with pytest.raises(mp.Cancelled):
        handle.result(30)
    assert isinstance(handle.exception(), mp.Cancelled) and "failed" in repr(handle)
    with pytest.raises(mp.NotFound):
        mp.open(url)
    left = [p for p in pathlib.Path(url).parent.iterdir() if p.name.startswith(pathlib.Path(url).name)]
    assert not left, left


def test_cancelling_what_has_ended_does_nothing(url):
    handle = mp.save_async(url, TREE)
    handle.result()
    handle.cancel()
    handle.result()
    same(mp.load(url), TREE)


def test_dropping_a_handle_does_not_cancel_the_save(url, gated):
    handle, gate = gated()
    inner = handle._inner
    del handle
    gate.open.set()
    inner.wait(30)
    same(mp.load(url), {"g": np.ones(4, np.float32)})


def test_what_an_array_raises_is_the_failure_of_the_save(gated):
    handle, gate = gated()
    gate.error = RuntimeError("the device is gone")
    gate.open.set()
    error = handle.exception(30)
    assert isinstance(error, mp.Invalid) and "the device is gone" in str(error)
    assert error.context["leaf"] == "g"


def test_a_handle_is_awaitable(url):
    async def save():
        handle = mp.save_async(url, TREE)
        return await handle, await handle

    first, second = asyncio.run(save())
    assert first == second and first.data_bytes == 800_008


def test_awaiting_does_not_block_the_loop(gated):
    async def main():
        handle, gate = gated()
        task = asyncio.ensure_future(handle._finished())
        for _ in range(5):
            await asyncio.sleep(0.01)
            assert not task.done()
        gate.open.set()
        return await asyncio.wait_for(task, 30)

    assert asyncio.run(main()).data_bytes == 16


def test_awaiting_raises_what_the_save_failed_with(url):
    mp.save(url, TREE)

    async def save():
        await mp.save_async(url, TREE)

    with pytest.raises(mp.AlreadyExists):
        asyncio.run(save())


def test_an_abandoned_await_does_not_harm_the_save(url, gated):
    async def main():
        handle, gate = gated()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle._finished(), 0.05)
        return handle, gate

    handle, gate = asyncio.run(main())
    gate.open.set()
    handle.result(30)
    same(mp.load(url), {"g": np.ones(4, np.float32)})


def test_callbacks_come_once_with_the_handle_good_or_bad(url):
    for number in range(2):  # the second fails
        handle, called = mp.save_async(url, TREE), threading.Event()
        calls = []

        def back(given, calls=calls, called=called):
            calls.append((given, given.done(), type(given.exception())))
            called.set()

        handle.add_done_callback(back)
        assert called.wait(30)
        time.sleep(0.02)
        assert calls == [(handle, True, mp.AlreadyExists if number else type(None))]
        late = threading.Event()
        handle.add_done_callback(lambda _, late=late: late.set())
        assert late.wait(30)


def test_progress_counts_up_to_everything(url):
    handle = mp.save_async(url, TREE, chunk_bytes=1 << 16)
    handle.result()
    progress = handle.progress()
    assert progress["bytes_done"] == progress["bytes_total"] == 800_008
    assert progress["chunks_done"] == progress["chunks_total"] > 10
    assert progress["leaves_total"] == 2 and progress["elapsed"] > 0
    assert progress["eta"] == 0 and progress["bytes_per_second"] > 0


def test_many_saves_at_once_end_each_for_itself(tmp_path):
    handles = [mp.save_async(str(tmp_path / str(i)), {"i": i, "w": np.full(10_000, i)}) for i in range(20)]
    for number, handle in enumerate(handles):
        handle.result(60)
        same(mp.load(str(tmp_path / str(number))), {"i": number, "w": np.full(10_000, number)})


def test_two_saves_of_one_place_are_one_winner(url):
    handles = [mp.save_async(url, {"i": i}) for i in range(8)]
    errors = [handle.exception(60) for handle in handles]
    assert errors.count(None) == 1
    assert all(isinstance(e, (mp.AlreadyExists, mp.Conflict)) for e in errors if e is not None)
    assert mp.load(url) == {"i": errors.index(None)}


def test_threads_may_share_a_handle(url):
    handle = mp.save_async(url, TREE)
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(handle.result(60))) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert outcomes == [handle.result()] * 8
